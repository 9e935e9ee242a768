// Attention in tiles of 16 x 16 by tensor cores, or in plain float32 arithmetic.
//
// A block has kRows queries or keys of a head, a warp 16 of them, whose sums stay in registers
// while the other side passes through shared memory. The gradients of keys and of queries have a
// kernel each, which both compute the weights: no atomics, so results are the same in each run.
#pragma once

#include "cuda_rows.cuh"

namespace {

constexpr int kMostTiles = HSTU_CUDA_MOST_DIM / kTile;

// 16-bit types have twice the rows in as much shared memory.
template <typename T>
constexpr int kRows = sizeof(T) == 4 ? 32 : 64;
template <typename T>
constexpr int kThreads = kRows<T> / kTile * kWarp;
template <typename T>
constexpr int kPad = 16 / sizeof(T);  // spreads rows over the banks

struct AttentionShape {
  HstuAttention attention;
  HstuAttentionGradient gradient;
  const float* av;  // the gradient of av times the scale
  int attention_dim, value_dim, attention_tiles, value_tiles;
  int64_t width, columns;  // of av, of projected
};

// The rows of a head's request, and those of them that a block has.
struct Rows {
  int64_t first;  // of the request, among all
  int rows, history, causal, begin, end;
  int64_t history_first, history_stride;
  bool found;
};

__device__ inline int64_t clamped(int64_t value, int64_t least, int64_t most) {
  return value < least ? least : value > most ? most : value;
}

// Block numbers of request b begin at offsets[b] / size + 2 b: history and targets each begin a
// block. Wrong offsets give wrong rows, but none outside the arrays.
__device__ inline Rows rows_of_block(const AttentionShape& shape, const int32_t* offsets,
                                     int64_t most, int size) {
  const HstuAttention& given = shape.attention;
  const int64_t block = blockIdx.x;
  int64_t low = 0, high = given.requests;  // the last request that does not begin behind the block
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (clamped(offsets[middle], 0, most) / size + 2 * middle <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  Rows rows = {};
  rows.first = clamped(given.offsets[low], 0, given.rows);
  rows.rows =
      static_cast<int>(clamped(given.offsets[low + 1], rows.first, given.rows) - rows.first);
  if (given.history_offsets) {
    rows.history_first = clamped(given.history_offsets[low], 0, given.history_rows);
    rows.history = static_cast<int>(
        clamped(given.history_offsets[low + 1], rows.history_first, given.history_rows) -
        rows.history_first);
    rows.history_stride = shape.columns / 2;
  } else {
    rows.history_first = rows.first;
    rows.history = rows.causal =
        rows.rows - static_cast<int>(clamped(given.targets[low], 0, rows.rows));
    rows.history_stride = shape.columns;
  }
  rows.begin = static_cast<int>(block - clamped(offsets[low], 0, most) / size - 2 * low);
  return rows;
}

// A block of queries: of the history or of the targets.
__device__ inline Rows queries_of_block(const AttentionShape& shape, int size) {
  Rows rows = rows_of_block(shape, shape.attention.offsets, shape.attention.rows, size);
  const int before = (rows.causal + size - 1) / size;
  const bool target = rows.begin >= before;
  const int end = target ? rows.rows : rows.causal;
  rows.begin = target ? rows.causal + (rows.begin - before) * size : rows.begin * size;
  rows.end = rows.begin + size < end ? rows.begin + size : end;
  rows.found = rows.begin < rows.end;
  return rows;
}

// A block of the history's keys.
__device__ inline Rows keys_of_block(const AttentionShape& shape, int size) {
  const HstuAttention& given = shape.attention;
  Rows rows = given.history_offsets
                  ? rows_of_block(shape, given.history_offsets, given.history_rows, size)
                  : rows_of_block(shape, given.offsets, given.rows, size);
  rows.begin *= size;
  rows.end = rows.begin + size < rows.history ? rows.begin + size : rows.history;
  rows.found = rows.begin < rows.end;
  return rows;
}

// The columns of a head.
struct Places {
  int64_t value, query, key, history_value, history_key;

  __device__ Places(const AttentionShape& shape, int64_t head) {
    value = shape.width + head * shape.value_dim;
    query = 2 * shape.width + head * shape.attention_dim;
    key = query + shape.attention.heads * shape.attention_dim;
    history_value = shape.attention.history_offsets ? value - shape.width : value;
    history_key = shape.attention.history_offsets ? shape.width + head * shape.attention_dim : key;
  }
};

// Rows of any type -> [kRows, tiles * kTile] in shared memory, with zeros around them.
template <typename T, typename From>
__device__ void load_rows(const From* from, int64_t stride, int rows, int width, int tiles, T* to,
                          int to_stride) {
  const int padded = tiles * kTile;
  for (int i = static_cast<int>(threadIdx.x); i < kRows<T> * padded; i += kThreads<T>) {
    const int row = i / padded, d = i % padded;
    const bool inside = row < rows && d < width;
    to[row * to_stride + d] = from_float<T>(inside ? to_float(from[row * stride + d]) : 0.0f);
  }
}

// A block's arrays in shared memory; strides in values.
template <typename T>
struct Shared {
  int attention_stride, value_stride, weight_stride;
  T *queries, *keys, *values, *upstream, *weights, *gradients;
  float *sums, *others;  // a tile of each warp

  __host__ __device__ Shared(const AttentionShape& shape, bool backward, unsigned char* memory) {
    attention_stride = shape.attention_tiles * kTile + kPad<T>;
    value_stride = shape.value_tiles * kTile + kPad<T>;
    weight_stride = kRows<T> + kPad<T>;
    float* const tiles = reinterpret_cast<float*>(memory);
    const int tile = kTile * kTileStride * (kRows<T> / kTile);
    sums = tiles;
    others = tiles + tile;
    T* next = reinterpret_cast<T*>(tiles + 2 * tile);
    queries = next;
    keys = next += kRows<T> * attention_stride;
    values = next += kRows<T> * attention_stride;
    weights = next += kRows<T> * value_stride;
    gradients = next += kRows<T> * weight_stride;
    upstream = next += backward ? kRows<T> * weight_stride : 0;
    end_ = reinterpret_cast<unsigned char*>(next + (backward ? kRows<T> * value_stride : 0));
  }

  __host__ __device__ unsigned char* end() const { return end_; }

 private:
  unsigned char* end_;
};

template <typename T>
__device__ float dot_of_rows(const T* a, const T* b, int width) {
  float sum = 0;
  for (int d = lane(); d < width; d += kWarp) sum += to_float(a[d]) * to_float(b[d]);
  return warp_sum(sum);
}

template <typename T>
__device__ float dot_of_rows(const float* a, const T* b, int width, int) {
  float sum = 0;
  for (int d = lane(); d < width; d += kWarp) sum += a[d] * to_float(b[d]);
  return warp_sum(sum);
}

template <typename T, bool kTensorCores>
__global__ void attend_kernel(const __grid_constant__ AttentionShape shape, T* output) {
  extern __shared__ __align__(32) unsigned char shared[];
  const Shared<T> memory(shape, false, shared);
  const Rows rows = queries_of_block(shape, kRows<T>);
  if (!rows.found) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, own = warp * kTile;
  const int64_t head = blockIdx.y;
  const Places places(shape, head);
  const float factor = rsqrtf(static_cast<float>(shape.attention_dim));
  const T* const projected =
      static_cast<const T*>(shape.attention.projected) + rows.first * shape.columns;
  const T* const history = shape.attention.history_offsets
                               ? static_cast<const T*>(shape.attention.history) +
                                     rows.history_first * rows.history_stride
                               : projected;
  float* const sums = memory.sums + warp * kTile * kTileStride;
  load_rows(projected + rows.begin * shape.columns + places.query, shape.columns,
            rows.end - rows.begin, shape.attention_dim, shape.attention_tiles, memory.queries,
            memory.attention_stride);

  Tile<T, kTensorCores> found[kMostTiles];
  const bool causal = rows.begin < rows.causal;
  const int seen = causal ? rows.end : rows.history;
  for (int key = 0; key < seen; key += kRows<T>) {
    const int count = seen - key < kRows<T> ? seen - key : kRows<T>;
    __syncthreads();
    load_rows(history + key * rows.history_stride + places.history_key, rows.history_stride, count,
              shape.attention_dim, shape.attention_tiles, memory.keys, memory.attention_stride);
    load_rows(history + key * rows.history_stride + places.history_value, rows.history_stride,
              count, shape.value_dim, shape.value_tiles, memory.values, memory.value_stride);
    __syncthreads();
    for (int column = 0; column < kRows<T>; column += kTile) {
      Tile<T, kTensorCores> tile;
      for (int d = 0; d < shape.attention_tiles * kTile; d += kTile) {
        tile.add_transposed(
            memory.queries + own * memory.attention_stride + d, memory.attention_stride,
            memory.keys + column * memory.attention_stride + d, memory.attention_stride);
      }
      tile.store(sums);
      __syncwarp();
      for (int i = lane(); i < kTile * kTile; i += kWarp) {
        const int row = i / kTile, j = column + i % kTile;
        const float x = sums[row * kTileStride + i % kTile] * factor;
        const bool attends = j < count && (!causal || key + j <= rows.begin + own + row);
        memory.weights[(own + row) * memory.weight_stride + j] =
            from_float<T>(attends ? x * sigmoid(x) : 0.0f);
      }
      __syncwarp();
    }
#pragma unroll
    for (int t = 0; t < kMostTiles; ++t) {
      if (t >= shape.value_tiles) break;
      for (int j = 0; j < kRows<T>; j += kTile) {
        found[t].add(memory.weights + own * memory.weight_stride + j, memory.weight_stride,
                     memory.values + j * memory.value_stride + t * kTile, memory.value_stride);
      }
    }
  }

  // A target attends itself, too: its weight is kept beside the sums.
  float* const weights = memory.others + warp * kTile * kTileStride;
  for (int row = 0; row < kTile; ++row) {
    float weight = 0;
    if (!causal && rows.begin + own + row < rows.end) {
      const T* const self = projected + (rows.begin + own + row) * shape.columns;
      const float x =
          factor * dot_of_rows(self + places.query, self + places.key, shape.attention_dim);
      weight = x * sigmoid(x);
    }
    if (lane() == 0) weights[row] = weight;
  }
#pragma unroll
  for (int t = 0; t < kMostTiles; ++t) {
    if (t >= shape.value_tiles) break;
    __syncwarp();
    found[t].store(sums);
    __syncwarp();
    for (int i = lane(); i < kTile * kTile; i += kWarp) {
      const int row = rows.begin + own + i / kTile, d = t * kTile + i % kTile;
      if (row >= rows.end || d >= shape.value_dim) continue;
      const float self =
          causal ? 0.0f
                 : weights[i / kTile] * to_float(projected[row * shape.columns + places.value + d]);
      output[(rows.first + row) * 3 * shape.width + places.value + d] =
          from_float<T>((sums[i / kTile * kTileStride + i % kTile] + self) * shape.attention.scale);
    }
  }
}

// A tile of products and one of the gradients of weights -> both in shared memory, as the sums'
// factors. `attends(row, column)` says which pairs count.
template <typename T, typename Attends>
__device__ void store_weights(const Shared<T>& memory, int own, int column, const float* products,
                              const float* gradients, float factor, const Attends& attends) {
  for (int i = lane(); i < kTile * kTile; i += kWarp) {
    const int row = i / kTile, place = row * kTileStride + i % kTile;
    const float x = products[place] * factor, share = sigmoid(x), weight = x * share;
    const bool seen = attends(row, column + i % kTile);
    const int to = (own + row) * memory.weight_stride + column + i % kTile;
    memory.weights[to] = from_float<T>(seen ? weight : 0.0f);
    memory.gradients[to] =
        from_float<T>(seen ? gradients[place] * (share + weight * (1.0f - share)) * factor : 0.0f);
  }
}

template <typename T>
__device__ void store_tile(const float* sums, int rows, int columns, T* to, int64_t stride) {
  for (int i = lane(); i < kTile * kTile; i += kWarp) {
    const int row = i / kTile, d = i % kTile;
    if (row < rows && d < columns) {
      to[row * stride + d] = from_float<T>(sums[row * kTileStride + d]);
    }
  }
}

// The gradients of keys and values: a warp has 16 keys.
template <typename T, bool kTensorCores>
__global__ void key_gradient_kernel(const __grid_constant__ AttentionShape shape, T*) {
  extern __shared__ __align__(32) unsigned char shared[];
  const Shared<T> memory(shape, true, shared);
  const Rows rows = keys_of_block(shape, kRows<T>);
  if (!rows.found) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, own = warp * kTile;
  const Places places(shape, blockIdx.y);
  const float factor = rsqrtf(static_cast<float>(shape.attention_dim));
  const T* const projected =
      static_cast<const T*>(shape.attention.projected) + rows.first * shape.columns;
  const float* const upstream =
      shape.av + rows.first * shape.width + static_cast<int64_t>(blockIdx.y) * shape.value_dim;
  const bool apart = shape.attention.history_offsets != nullptr;
  const int64_t first_key = rows.history_first + rows.begin;
  const T* const history =
      static_cast<const T*>(apart ? shape.attention.history : shape.attention.projected) +
      first_key * rows.history_stride;
  T* const gradient = static_cast<T*>(apart ? shape.gradient.history : shape.gradient.projected) +
                      first_key * rows.history_stride;
  float* const sums = memory.sums + warp * kTile * kTileStride;
  float* const others = memory.others + warp * kTile * kTileStride;
  const int keys = rows.end - rows.begin;
  load_rows(history + places.history_key, rows.history_stride, keys, shape.attention_dim,
            shape.attention_tiles, memory.keys, memory.attention_stride);
  load_rows(history + places.history_value, rows.history_stride, keys, shape.value_dim,
            shape.value_tiles, memory.values, memory.value_stride);

  Tile<T, kTensorCores> key_sums[kMostTiles], value_sums[kMostTiles];
  for (int query = apart ? 0 : rows.begin; query < rows.rows;) {
    const int end = query < rows.causal ? rows.causal : rows.rows;
    const int count = end - query < kRows<T> ? end - query : kRows<T>;
    const bool causal = query < rows.causal;
    __syncthreads();
    load_rows(projected + query * shape.columns + places.query, shape.columns, count,
              shape.attention_dim, shape.attention_tiles, memory.queries, memory.attention_stride);
    load_rows(upstream + query * shape.width, shape.width, count, shape.value_dim,
              shape.value_tiles, memory.upstream, memory.value_stride);
    __syncthreads();
    for (int column = 0; column < kRows<T>; column += kTile) {
      Tile<T, kTensorCores> products, gradients;
      for (int d = 0; d < shape.attention_tiles * kTile; d += kTile) {
        products.add_transposed(
            memory.keys + own * memory.attention_stride + d, memory.attention_stride,
            memory.queries + column * memory.attention_stride + d, memory.attention_stride);
      }
      for (int d = 0; d < shape.value_tiles * kTile; d += kTile) {
        gradients.add_transposed(memory.values + own * memory.value_stride + d, memory.value_stride,
                                 memory.upstream + column * memory.value_stride + d,
                                 memory.value_stride);
      }
      products.store(sums);
      gradients.store(others);
      __syncwarp();
      store_weights(memory, own, column, sums, others, factor, [&](int row, int j) {
        return j < count && (!causal || rows.begin + own + row <= query + j);
      });
      __syncwarp();
    }
#pragma unroll
    for (int t = 0; t < kMostTiles; ++t) {
      for (int j = 0; j < kRows<T>; j += kTile) {
        const int place = own * memory.weight_stride + j;
        if (t < shape.value_tiles) {
          value_sums[t].add(memory.weights + place, memory.weight_stride,
                            memory.upstream + j * memory.value_stride + t * kTile,
                            memory.value_stride);
        }
        if (t < shape.attention_tiles) {
          key_sums[t].add(memory.gradients + place, memory.weight_stride,
                          memory.queries + j * memory.attention_stride + t * kTile,
                          memory.attention_stride);
        }
      }
    }
    query += count;
  }
  const auto write = [&](Tile<T, kTensorCores>& tile, int t, int width, int64_t place) {
    __syncwarp();
    tile.store(sums);
    __syncwarp();
    store_tile(sums, keys - own, width - t * kTile,
               gradient + own * rows.history_stride + place + t * kTile, rows.history_stride);
  };
#pragma unroll
  for (int t = 0; t < kMostTiles; ++t) {
    if (t < shape.attention_tiles) {
      write(key_sums[t], t, shape.attention_dim, places.history_key);
    }
    if (t < shape.value_tiles) write(value_sums[t], t, shape.value_dim, places.history_value);
  }
}

// The gradients of queries, a warp has 16 of them; and what targets get from attending themselves.
template <typename T, bool kTensorCores>
__global__ void query_gradient_kernel(const __grid_constant__ AttentionShape shape, T*) {
  extern __shared__ __align__(32) unsigned char shared[];
  const Shared<T> memory(shape, true, shared);
  const Rows rows = queries_of_block(shape, kRows<T>);
  if (!rows.found) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, own = warp * kTile;
  const Places places(shape, blockIdx.y);
  const float factor = rsqrtf(static_cast<float>(shape.attention_dim));
  const T* const projected =
      static_cast<const T*>(shape.attention.projected) + rows.first * shape.columns;
  T* const gradient = static_cast<T*>(shape.gradient.projected) + rows.first * shape.columns;
  const float* const upstream =
      shape.av + rows.first * shape.width + static_cast<int64_t>(blockIdx.y) * shape.value_dim;
  const T* const history = shape.attention.history_offsets
                               ? static_cast<const T*>(shape.attention.history) +
                                     rows.history_first * rows.history_stride
                               : projected;
  float* const sums = memory.sums + warp * kTile * kTileStride;
  float* const others = memory.others + warp * kTile * kTileStride;
  const int queries = rows.end - rows.begin;
  load_rows(projected + rows.begin * shape.columns + places.query, shape.columns, queries,
            shape.attention_dim, shape.attention_tiles, memory.queries, memory.attention_stride);
  load_rows(upstream + rows.begin * shape.width, shape.width, queries, shape.value_dim,
            shape.value_tiles, memory.upstream, memory.value_stride);

  Tile<T, kTensorCores> found[kMostTiles];
  const bool causal = rows.begin < rows.causal;
  const int seen = causal ? rows.end : rows.history;
  for (int key = 0; key < seen; key += kRows<T>) {
    const int count = seen - key < kRows<T> ? seen - key : kRows<T>;
    __syncthreads();
    load_rows(history + key * rows.history_stride + places.history_key, rows.history_stride, count,
              shape.attention_dim, shape.attention_tiles, memory.keys, memory.attention_stride);
    load_rows(history + key * rows.history_stride + places.history_value, rows.history_stride,
              count, shape.value_dim, shape.value_tiles, memory.values, memory.value_stride);
    __syncthreads();
    for (int column = 0; column < kRows<T>; column += kTile) {
      Tile<T, kTensorCores> products, gradients;
      for (int d = 0; d < shape.attention_tiles * kTile; d += kTile) {
        products.add_transposed(
            memory.queries + own * memory.attention_stride + d, memory.attention_stride,
            memory.keys + column * memory.attention_stride + d, memory.attention_stride);
      }
      for (int d = 0; d < shape.value_tiles * kTile; d += kTile) {
        gradients.add_transposed(
            memory.upstream + own * memory.value_stride + d, memory.value_stride,
            memory.values + column * memory.value_stride + d, memory.value_stride);
      }
      products.store(sums);
      gradients.store(others);
      __syncwarp();
      store_weights(memory, own, column, sums, others, factor, [&](int row, int j) {
        return j < count && (!causal || key + j <= rows.begin + own + row);
      });
      __syncwarp();
    }
#pragma unroll
    for (int t = 0; t < kMostTiles; ++t) {
      if (t >= shape.attention_tiles) break;
      for (int j = 0; j < kRows<T>; j += kTile) {
        found[t].add(memory.gradients + own * memory.weight_stride + j, memory.weight_stride,
                     memory.keys + j * memory.attention_stride + t * kTile,
                     memory.attention_stride);
      }
    }
  }

  float* const of_self = others;  // of each row's product with its own key, times the factor
  for (int row = 0; row < kTile; ++row) {
    float found_here = 0;
    const int64_t place = rows.begin + own + row;
    if (!causal && place < rows.end) {
      const T* const self = projected + place * shape.columns;
      const float* const above = upstream + place * shape.width;
      const float x =
          factor * dot_of_rows(self + places.query, self + places.key, shape.attention_dim);
      const float share = sigmoid(x), weight = x * share;
      const float of_weight = dot_of_rows(above, self + places.value, shape.value_dim, 0);
      found_here = of_weight * (share + weight * (1.0f - share)) * factor;
      T* const to = gradient + place * shape.columns;
      for (int d = lane(); d < shape.value_dim; d += kWarp) {
        to[places.value + d] = from_float<T>(weight * above[d]);
      }
      for (int d = lane(); d < shape.attention_dim; d += kWarp) {
        to[places.key + d] = from_float<T>(found_here * to_float(self[places.query + d]));
      }
    }
    if (lane() == 0) of_self[row] = found_here;
  }
#pragma unroll
  for (int t = 0; t < kMostTiles; ++t) {
    if (t >= shape.attention_tiles) break;
    __syncwarp();
    found[t].store(sums);
    __syncwarp();
    for (int i = lane(); i < kTile * kTile; i += kWarp) {
      const int64_t row = rows.begin + own + i / kTile;
      const int d = t * kTile + i % kTile;
      if (row >= rows.end || d >= shape.attention_dim) continue;
      const float self = of_self[i / kTile];
      const float key = causal ? 0.0f : to_float(projected[row * shape.columns + places.key + d]);
      gradient[row * shape.columns + places.query + d] =
          from_float<T>(sums[i / kTile * kTileStride + i % kTile] + self * key);
    }
  }
}

}  // namespace
