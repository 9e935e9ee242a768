// The CPU kernels of one instruction set. Built once for each level of interact.h, with that
// level's compiler flags; LEVEL is part of the names of the two functions that it defines.
//
// Forward and backward process one sample at a time: its vectors fit into the first-level cache, so
// memory is read once. Products are computed in register tiles of up to kRows rows by two vectors.

#include "cpu_tiles.h"
#include "cpu_vector.h"
#include "interact.h"

#include <stdlib.h>

namespace {

// Number of pairs before those of `row`: the index of (row, 0).
inline int64_t pairs_before(int64_t row) { return row * (row - 1) / 2; }

// The memory of one call, divided into arrays.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { free(memory_); }

  // Registers an array of zeros; allocate() sets `*place` to it.
  template <typename T>
  void array(T** place, int64_t count) {
    places_[count_++] = {reinterpret_cast<void**>(place), bytes_};
    bytes_ += rounded_up(count * static_cast<int64_t>(sizeof(T)), 64);
  }

  bool allocate() {
    memory_ = static_cast<char*>(aligned_alloc(64, static_cast<size_t>(bytes_)));
    if (!memory_) return false;
    memset(memory_, 0, static_cast<size_t>(bytes_));
    for (int i = 0; i < count_; ++i) {
      void* const place = memory_ + places_[i].offset;
      memcpy(places_[i].pointer, &place, sizeof place);
    }
    return true;
  }

 private:
  struct Place {
    void** pointer;
    int64_t offset;
  };
  Place places_[4];
  int count_ = 0;
  int64_t bytes_ = 0;
  char* memory_ = nullptr;
};

int64_t feature_count(const InteractBatch& batch) {
  int64_t features = 0;
  for (int32_t i = 0; i < batch.group_count; ++i) features += batch.groups[i].rows;
  return features;
}

// The start of each vector of a sample, or of its gradient.
template <typename T, typename Array>
void find_rows(const InteractBatch& batch, Array InteractGroup::* array, int64_t sample, T** rows) {
  for (int32_t i = 0; i < batch.group_count; ++i) {
    const InteractGroup& group = batch.groups[i];
    T* row = static_cast<T*>(group.*array) + sample * group.rows * batch.width;
    for (int64_t j = 0; j < group.rows; ++j, row += batch.width) *rows++ = row;
  }
}

// rows [stride] of `width` values -> columns [width, stride]; stride is a multiple of kLanes.
template <typename T>
void transpose_rows(const T* const* rows, int64_t width, int64_t stride, float* columns) {
  for (int64_t d = 0; d < width; d += kLanes) {
    const int64_t count = width - d < kLanes ? width - d : kLanes;
    for (int64_t row = 0; row < stride; row += kLanes) {
      Vector tile[kLanes];
      if (count == kLanes) {
        for (int i = 0; i < kLanes; ++i) tile[i] = load(rows[row + i] + d);
      } else {
        for (int i = 0; i < kLanes; ++i) tile[i] = load(rows[row + i] + d, count);
      }
      transpose(tile);
      if (count == kLanes) {
        for (int i = 0; i < kLanes; ++i) store(columns + (d + i) * stride + row, tile[i]);
      } else {
        for (int i = 0; i < count; ++i) store(columns + (d + i) * stride + row, tile[i]);
      }
    }
  }
}

// Products of rows [row, row + R) with C registers full of rows, beginning at row `column`.
template <int R, int C>
ALWAYS_INLINE void multiply_tile(const float* columns, int64_t width, int64_t stride, int64_t row,
                                 int64_t column, float* pairs) {
  Vector sums[R][C];
  UNROLL for (int r = 0; r < R; ++r) { UNROLL for (int c = 0; c < C; ++c) sums[r][c] = Vector{}; }
  for (int64_t d = 0; d < width; ++d, columns += stride) {
    Vector x[C];
    UNROLL for (int c = 0; c < C; ++c) x[c] = load(columns + column + c * kLanes);
    UNROLL for (int r = 0; r < R; ++r) {
      UNROLL for (int c = 0; c < C; ++c) sums[r][c] += columns[row + r] * x[c];
    }
  }
  UNROLL for (int r = 0; r < R; ++r) {
    float* const to = pairs + pairs_before(row + r) + column;
    UNROLL for (int c = 0; c < C; ++c) store(to + c * kLanes, sums[r][c]);
  }
}

// The strict lower triangle of X X^T, row-major. Whole registers are stored: what a store writes
// beyond its row lies in rows that are written later, or in the kLanes values after the last pair.
void multiply(const float* columns, int64_t features, int64_t width, int64_t stride, float* pairs) {
  // The rows of a band need the same number of registers of columns: those up to the diagonal.
  for (int64_t band = 1; band < features; band += kLanes) {
    const int64_t end = band + kLanes < features ? band + kLanes : features;
    for_row_tiles(band, end, [&](auto rows, int64_t row) {
      int64_t column = band - 1 + kLanes;
      while (column >= 2 * kLanes) {
        column -= 2 * kLanes;
        multiply_tile<rows, 2>(columns, width, stride, row, column, pairs);
      }
      if (column) multiply_tile<rows, 1>(columns, width, stride, row, 0, pairs);
    });
  }
}

template <typename T>
int forward(const InteractBatch& batch, int64_t begin, int64_t end, T* output) {
  const int64_t width = batch.width, features = feature_count(batch);
  const int64_t stride = rounded_up(features, kLanes);
  const int64_t values = width + pairs_before(features);
  const int64_t output_width = interact_output_width(features, width);
  Scratch scratch;
  const T** rows;
  T* zeros;
  float *columns, *result;
  scratch.array(&rows, stride);
  scratch.array(&zeros, width);
  scratch.array(&columns, width * stride);
  scratch.array(&result, values + INTERACT_ALIGNMENT + kLanes);
  if (!scratch.allocate()) return -1;
  for (int64_t i = features; i < stride; ++i) rows[i] = zeros;

  output += begin * output_width;
  for (int64_t sample = begin; sample < end; ++sample, output += output_width) {
    find_rows(batch, &InteractGroup::vectors, sample, rows);
    transpose_rows(rows, width, stride, columns);
    for (int64_t d = 0; d < width; d += kLanes) store(result + d, load(rows[0] + d, width - d));
    multiply(columns, features, width, stride, result + width);
    memset(result + values, 0, INTERACT_ALIGNMENT * sizeof(float));
    for (int64_t i = 0; i < output_width; i += kLanes) {
      store(output + i, load(result + i), output_width - i);
    }
  }
  return 0;
}

// Rows [row, row + R) of S X for V registers of columns; S is symmetric, with a zero diagonal and
// `pairs` as its lower triangle. `x` and `sums` point to the first of these columns.
template <int R, int V>
ALWAYS_INLINE void symmetric_product(const float* pairs, const float* x, int64_t features,
                                     int64_t stride, int64_t row, Vector (&sums)[R][V]) {
  const auto add = [&](int64_t j, int r, float factor) {
    UNROLL for (int v = 0; v < V; ++v) sums[r][v] += factor * load(x + j * stride + v * kLanes);
  };
  const float* own[R];
  UNROLL for (int r = 0; r < R; ++r) own[r] = pairs + pairs_before(row + r);
  for (int64_t j = 0; j < row; ++j) {
    UNROLL for (int r = 0; r < R; ++r) add(j, r, own[r][j]);
  }
  UNROLL for (int k = 0; k < R; ++k) {
    UNROLL for (int r = 0; r < R; ++r) {
      if (r != k) add(row + k, r, r > k ? own[r][row + k] : own[k][row + r]);
    }
  }
  const float* others = pairs + pairs_before(row + R) + row;
  for (int64_t j = row + R; j < features; others += j++) {
    UNROLL for (int r = 0; r < R; ++r) add(j, r, others[r]);
  }
}

template <int R, int V, typename T>
ALWAYS_INLINE void gradient_tile(const float* pairs, const float* x, const T* upstream,
                                 int64_t features, int64_t width, int64_t stride, int64_t row,
                                 int64_t column, T* const* gradients) {
  Vector sums[R][V];
  UNROLL for (int r = 0; r < R; ++r) { UNROLL for (int v = 0; v < V; ++v) sums[r][v] = Vector{}; }
  if (row == 0) {
    UNROLL for (int v = 0; v < V; ++v) {
      const int64_t d = column + v * kLanes;
      sums[0][v] = load(upstream + d, width - d);
    }
  }
  symmetric_product(pairs, x + column, features, stride, row, sums);
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int v = 0; v < V; ++v) {
      const int64_t d = column + v * kLanes;
      store(gradients[row + r] + d, sums[r][v], width - d);
    }
  }
}

inline const float* as_floats(const float* from, int64_t, float*) { return from; }

template <typename T>
inline const float* as_floats(const T* from, int64_t count, float* converted) {
  for (int64_t i = 0; i < count; i += kLanes) store(converted + i, load(from + i, count - i));
  return converted;
}

template <typename T>
int backward(const InteractBatch& batch, int64_t begin, int64_t end, const T* upstream) {
  const int64_t width = batch.width, features = feature_count(batch);
  const int64_t stride = rounded_up(width, kLanes), pairs = pairs_before(features);
  const int64_t output_width = interact_output_width(features, width);
  Scratch scratch;
  const T** rows;
  T** gradients;
  float *x, *converted;
  scratch.array(&rows, features);
  scratch.array(&gradients, features);
  scratch.array(&x, features * stride);
  scratch.array(&converted, rounded_up(pairs, kLanes));
  if (!scratch.allocate()) return -1;

  upstream += begin * output_width;
  for (int64_t sample = begin; sample < end; ++sample, upstream += output_width) {
    find_rows(batch, &InteractGroup::vectors, sample, rows);
    find_rows(batch, &InteractGroup::gradient, sample, gradients);
    for (int64_t i = 0; i < features; ++i) {
      for (int64_t d = 0; d < width; d += kLanes) {
        store(x + i * stride + d, load(rows[i] + d, width - d));
      }
    }
    const float* const factors = as_floats(upstream + width, pairs, converted);
    for_row_tiles(0, features, [&](auto count, int64_t row) {
      int64_t d = 0;
      for (; d + kLanes < width; d += 2 * kLanes) {
        gradient_tile<count, 2>(factors, x, upstream, features, width, stride, row, d, gradients);
      }
      if (d < width) {
        gradient_tile<count, 1>(factors, x, upstream, features, width, stride, row, d, gradients);
      }
    });
  }
  return 0;
}

}  // namespace

extern "C" int JOINED(interact_forward_, LEVEL)(const InteractBatch* batch, int64_t begin,
                                                int64_t end, void* output) {
  switch (batch->type) {
    case INTERACT_FLOAT16:
      return forward(*batch, begin, end, static_cast<Float16*>(output));
    case INTERACT_BFLOAT16:
      return forward(*batch, begin, end, static_cast<BFloat16*>(output));
    default:
      return forward(*batch, begin, end, static_cast<float*>(output));
  }
}

extern "C" int JOINED(interact_backward_, LEVEL)(const InteractBatch* batch, int64_t begin,
                                                 int64_t end, const void* upstream) {
  switch (batch->type) {
    case INTERACT_FLOAT16:
      return backward(*batch, begin, end, static_cast<const Float16*>(upstream));
    case INTERACT_BFLOAT16:
      return backward(*batch, begin, end, static_cast<const BFloat16*>(upstream));
    default:
      return backward(*batch, begin, end, static_cast<const float*>(upstream));
  }
}
