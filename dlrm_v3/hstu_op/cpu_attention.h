// Attention of one head, forward and backward, in blocks of HSTU_BLOCK queries and keys.
//
// Forward, the lanes are queries: products with keys, then their weights, [keys, queries], then
// weighted sums of values. Backward, the lanes are keys. In both, one side is transposed once for
// the many blocks of the other, which are read as they are.
#pragma once

#include <math.h>

#include "cpu_kernels.h"
#include "cpu_products.h"

namespace {

constexpr int64_t kBlock = HSTU_BLOCK;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Of the products of queries and keys.
inline float product_factor(const HstuHead& head) {
  return 1.0f / sqrtf(static_cast<float>(head.attention_dim));
}

template <typename T>
inline const T* row_of(const void* rows, int64_t row, int64_t stride) {
  return static_cast<const T*>(rows) + row * stride;
}

template <typename T>
float dot(const T* a, const T* b, int64_t width) {
  Vector sum = {};
  for (int64_t d = 0; d < width; d += kLanes) {
    sum += load(a + d, width - d) * load(b + d, width - d);
  }
  return sum_of_lanes(sum);
}

inline float silu(float x) {
  const Vector value = Vector{} + x;
  return (value * sigmoid(value))[0];
}

// A target's own value, weighted, onto its sums.
template <typename T>
void add_self(const HstuHead& head, int64_t row, float* sums) {
  const float product = dot(row_of<T>(head.queries, row, head.stride),
                            row_of<T>(head.keys, row, head.stride), head.attention_dim);
  const float weight = silu(product * product_factor(head));
  const T* const value = row_of<T>(head.values, row, head.stride);
  for (int64_t d = 0; d < head.value_dim; d += kLanes) {
    store(sums + d, load(sums + d) + weight * load(value + d, head.value_dim - d));
  }
}

// The weights of `keys` [count, width] for a block of queries: [count, kBlock]. Query i has keys up
// to `diagonal` + i; what follows up to the last query of its tile of kRows is 0, the rest not
// written.
inline void weigh_keys(const float* keys, int64_t count, int64_t width, const float* queries,
                       int64_t query_count, int64_t diagonal, float* weights) {
  for_panels(query_count, [&](auto vectors, int64_t first) {
    constexpr int C = decltype(vectors)::value;
    const int64_t visible = smaller(count, diagonal + first + C * kLanes + kRows - 1);
    for_row_tiles(0, visible, [&](auto rows, int64_t key) {
      constexpr int R = decltype(rows)::value;
      Vector sums[R][C];
      clear(sums);
      multiply<kAlongSteps>(keys + key * width, width, queries + first, kBlock, width, sums);
      UNROLL for (int c = 0; c < C; ++c) {
        const int64_t before = key - diagonal - first - c * kLanes;  // queries before the diagonal
        UNROLL for (int r = 0; r < R; ++r) {
          Vector weight = sums[r][c] * sigmoid(sums[r][c]);
          if (before + r > 0) {
            weight = lane_numbers() >= static_cast<int32_t>(before + r) ? weight : Vector{};
          }
          store(weights + (key + r) * kBlock + first + c * kLanes, weight);
        }
      }
    });
  });
}

template <typename T>
void attend(const HstuHead& head, int64_t begin, int64_t end, float* scratch, T* output,
            int64_t stride) {
  const bool causal = begin < head.causal;
  const int64_t width = head.attention_dim, padded = rounded_up(head.value_dim, kLanes);
  const int64_t queries = end - begin, seen = causal ? end : head.history;
  float* const transposed = scratch;                // [width, kBlock]
  float* const keys = transposed + width * kBlock;  // [kBlock, width]
  float* const values = keys + kBlock * width;      // [kBlock, padded]
  float* const sums = values + kBlock * padded;     // [kBlock, padded]
  float* const weights = sums + kBlock * padded;    // [kBlock, kBlock]
  copy_columns(row_of<T>(head.queries, begin, head.stride), head.stride, queries, width,
               product_factor(head), transposed);
  if (seen == 0) memset(sums, 0, static_cast<size_t>(queries * padded) * sizeof(float));
  for (int64_t key = 0; key < seen; key += kBlock) {
    const int64_t count = smaller(kBlock, seen - key);
    const int64_t diagonal = causal ? begin - key : count;
    copy_rows(row_of<T>(head.history_keys, key, head.history_stride), head.history_stride, count,
              width, 1.0f, keys, width);
    copy_rows(row_of<T>(head.history_values, key, head.history_stride), head.history_stride, count,
              head.value_dim, 1.0f, values, padded);
    weigh_keys(keys, count, width, transposed, queries, diagonal, weights);
    for_row_tiles(0, queries, [&](auto rows, int64_t query) {
      constexpr int R = decltype(rows)::value;
      add_product<kAlongRows, R>(weights + query, kBlock, values, padded,
                                 smaller(count, diagonal + query + R), key == 0,
                                 sums + query * padded);
    });
  }
  for (int64_t row = begin; row < end; ++row) {
    float* const from = sums + (row - begin) * padded;
    if (!causal) add_self<T>(head, row, from);
    for (int64_t d = 0; d < head.value_dim; d += kLanes) {
      store(output + row * stride + d, load(from + d) * head.scale, head.value_dim - d);
    }
  }
}

// A block's weights and, from the gradients of its sums, those of its products.
struct GradientBlock {
  const float *queries, *upstream;  // [kBlock, padded]
  const float *keys, *values;       // transposed: [width, kBlock]
  int64_t width, value_width, padded, value_padded;
  float *weights, *gradients;  // [queries, keys], kBlock values apart
};

// `causal`: query i has keys up to i.
inline void weigh_queries(const GradientBlock& block, int64_t queries, int64_t keys, bool causal) {
  for_row_tiles(0, queries, [&](auto rows, int64_t query) {
    constexpr int R = decltype(rows)::value;
    for_panels(keys, [&](auto vectors, int64_t first) {
      constexpr int C = decltype(vectors)::value;
      float* const weights = block.weights + query * kBlock + first;
      float* const gradients = block.gradients + query * kBlock + first;
      Vector sums[R][C];
      clear(sums);
      const auto keep = [&](float* to) {
        UNROLL for (int r = 0; r < R; ++r) {
          UNROLL for (int c = 0; c < C; ++c) store(to + r * kBlock + c * kLanes, sums[r][c]);
        }
      };
      if (causal && first >= query + R) {
        keep(weights);
        return keep(gradients);
      }
      multiply<kAlongSteps>(block.queries + query * block.padded, block.padded, block.keys + first,
                            kBlock, block.width, sums);
      keep(weights);
      clear(sums);
      multiply<kAlongSteps>(block.upstream + query * block.value_padded, block.value_padded,
                            block.values + first, kBlock, block.value_width, sums);
      UNROLL for (int r = 0; r < R; ++r) {
        UNROLL for (int c = 0; c < C; ++c) {
          const int64_t place = r * kBlock + c * kLanes;
          const Vector product = load(weights + place), gate = sigmoid(product);
          Vector weight = product * gate;
          Vector gradient = sums[r][c] * (gate + weight * (1.0f - gate));
          const int64_t last = query + r - first - c * kLanes;  // lane of the diagonal
          if (causal && last < kLanes - 1) {
            const Integers seen = lane_numbers() <= static_cast<int32_t>(last);
            weight = seen ? weight : Vector{};
            gradient = seen ? gradient : Vector{};
          }
          store(weights + place, weight);
          store(gradients + place, gradient);
        }
      }
    });
  });
}

template <typename T>
void store_rows(const float* from, int64_t padded, int64_t rows, int64_t width, T* to,
                int64_t stride) {
  for (int64_t row = 0; row < rows; ++row, from += padded, to += stride) {
    for (int64_t d = 0; d < width; d += kLanes) store(to + d, load(from + d), width - d);
  }
}

template <typename T>
void attend_gradient(const HstuHead& head, int64_t rows, int64_t first, int64_t last,
                     const float* upstream, int64_t stride, float* scratch, float* query_gradients,
                     T* key_gradient, T* value_gradient) {
  const int64_t width = head.attention_dim, padded = hstu_padded(width);
  const int64_t value_width = head.value_dim, value_padded = rounded_up(value_width, kLanes);
  const auto array = [&](int64_t columns) {
    float* const begin = scratch;
    scratch += kBlock * columns;
    return begin;
  };
  float *const queries = array(padded), *const keys = array(padded), *const by_key = array(padded),
               *const key_sums = array(padded);
  float *const sums = array(value_padded), *const values = array(value_padded),
               *const value_sums = array(value_padded);
  float *const weights = array(kBlock), *const gradients = array(kBlock);
  const GradientBlock block = {queries,     sums,   keys,         values,  width,
                               value_width, padded, value_padded, weights, gradients};

  const int64_t first_query = hstu_first_query(&head, first);
  for (int64_t key = first; key < last; key += kBlock) {
    const int64_t count = smaller(kBlock, last - key);
    const T* const key_rows = row_of<T>(head.history_keys, key, head.history_stride);
    copy_columns(key_rows, head.history_stride, count, width, 1.0f, keys);
    copy_rows(key_rows, head.history_stride, count, width, 1.0f, by_key, padded);
    copy_columns(row_of<T>(head.history_values, key, head.history_stride), head.history_stride,
                 count, value_width, 1.0f, values);
    const int64_t start = hstu_first_query(&head, key);
    for (int64_t query = start, next; query < rows; query = next) {
      next = smaller(query + kBlock, query < head.causal ? head.causal : rows);
      const int64_t query_count = next - query;
      const bool causal = query < head.causal && query == key;
      copy_rows(row_of<T>(head.queries, query, head.stride), head.stride, query_count, width,
                product_factor(head), queries, padded);
      copy_rows(upstream + query * stride, stride, query_count, value_width, 1.0f, sums,
                value_padded);
      weigh_queries(block, query_count, count, causal);
      for_row_tiles(0, count, [&](auto r, int64_t row) {
        constexpr int R = decltype(r)::value;
        const int64_t begin = causal ? row : 0;  // no query before attends these keys
        const int64_t place = begin * kBlock + row;
        add_product<kAlongRows, R>(weights + place, kBlock, sums + begin * value_padded,
                                   value_padded, query_count - begin, query == start,
                                   value_sums + row * value_padded);
        add_product<kAlongRows, R>(gradients + place, kBlock, queries + begin * padded, padded,
                                   query_count - begin, query == start, key_sums + row * padded);
      });
      for_row_tiles(0, query_count, [&](auto r, int64_t row) {
        constexpr int R = decltype(r)::value;
        add_product<kAlongSteps, R>(gradients + row * kBlock, kBlock, by_key, padded,
                                    causal ? smaller(count, row + R) : count, key == first,
                                    query_gradients + (query - first_query + row) * padded);
      });
    }
    store_rows(key_sums, padded, count, width, key_gradient + key * head.history_stride,
               head.history_stride);
    store_rows(value_sums, value_padded, count, value_width,
               value_gradient + key * head.history_stride, head.history_stride);
  }
}

template <typename T>
void finish_gradient(const HstuHead& head, int64_t row, const float* const* parts, int64_t count,
                     const float* upstream, float* scratch, T* query_gradient, T* key_gradient,
                     T* value_gradient) {
  const int64_t width = head.attention_dim;
  const T* const query = row_of<T>(head.queries, row, head.stride);
  const T* const key = row_of<T>(head.keys, row, head.stride);
  const T* const value = row_of<T>(head.values, row, head.stride);
  const float factor = product_factor(head);
  float gradient = 0;  // of the product with its own key
  if (row >= head.causal) {
    copy_rows(value, 0, 1, head.value_dim, 1.0f, scratch, rounded_up(head.value_dim, kLanes));
    const float product = factor * dot(query, key, width);
    const float gate = sigmoid(Vector{} + product)[0], weight = product * gate;
    gradient = (gate + weight * (1.0f - gate)) * dot(upstream, scratch, head.value_dim) * factor;
    for (int64_t d = 0; d < head.value_dim; d += kLanes) {
      store(value_gradient + d, load(upstream + d, head.value_dim - d) * weight,
            head.value_dim - d);
    }
    for (int64_t d = 0; d < width; d += kLanes) {
      store(key_gradient + d, load(query + d, width - d) * gradient, width - d);
    }
  }
  for (int64_t d = 0; d < width; d += kLanes) {
    Vector sum = {};
    for (int64_t i = 0; i < count; ++i) sum += load(parts[i] + d);
    if (row >= head.causal) {
      sum = sum * factor + load(key + d, width - d) * gradient;
    } else {
      sum *= factor;
    }
    store(query_gradient + d, sum, width - d);
  }
}

}  // namespace
