// What is done row by row: attention's gate, the layer norm, dropout. A warp has a row.
//
// A block is one warp, which adds to gradients of gamma and beta of its own; another kernel sums
// those of all blocks in their order, so results are the same in each run.
#pragma once

#include "../../interact_op/cuda_tiles.cuh"
#include "hstu.h"

namespace {

constexpr int kSumBlocks = 1024;  // whose gradients of gamma and beta are summed

__device__ inline int lane() { return threadIdx.x % kWarp; }
__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ inline float warp_sum(float value) {
  for (int step = kWarp / 2; step; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

struct Moments {
  float mean, inverse;
};

template <typename T>
__device__ Moments moments_of(const T* x, int width, float epsilon) {
  float sum = 0, squares = 0;
  for (int d = lane(); d < width; d += kWarp) sum += to_float(x[d]);
  const float mean = warp_sum(sum) / static_cast<float>(width);
  for (int d = lane(); d < width; d += kWarp) {
    const float centred = to_float(x[d]) - mean;
    squares += centred * centred;
  }
  return {mean, rsqrtf(warp_sum(squares) / static_cast<float>(width) + epsilon)};
}

template <typename T>
__global__ void gate_kernel(const __grid_constant__ HstuAttention attention, T* output) {
  const int width = static_cast<int>(attention.heads * attention.value_dim);
  const int part = width / static_cast<int>(attention.groups);
  const int64_t columns = 2 * attention.heads * (attention.value_dim + attention.attention_dim);
  const int64_t used = attention.offsets[attention.requests];
  for (int64_t row = blockIdx.x; row < attention.rows; row += gridDim.x) {
    T* const to = output + row * 3 * width;
    if (row >= used) {
      for (int d = lane(); d < 3 * width; d += kWarp) to[d] = from_float<T>(0.0f);
      continue;
    }
    const T* const u = static_cast<const T*>(attention.projected) + row * columns;
    for (int first = 0; first < width; first += part) {
      const T* const av = to + width + first;
      const Moments moments = moments_of(av, part, attention.epsilon);
      for (int d = lane(); d < part; d += kWarp) {
        const float x = to_float(u[first + d]), gated = x * sigmoid(x);
        const float own = (to_float(av[d]) - moments.mean) * moments.inverse;
        const float norm = own * attention.gamma[first + d] + attention.beta[first + d];
        to[first + d] = from_float<T>(gated);
        to[2 * width + first + d] = from_float<T>(gated * norm);
      }
    }
  }
}

struct GateGradient {
  HstuAttention attention;
  HstuAttentionGradient gradient;
  float* av;
};

// Clears a block's gradients of gamma and beta; each lane adds to its own columns.
__device__ inline float* cleared_sums(float* sums, int width) {
  float* const own = sums + static_cast<int64_t>(blockIdx.x) * 2 * width;
  for (int d = lane(); d < 2 * width; d += kWarp) own[d] = 0;
  __syncwarp();
  return own;
}

template <typename T>
__global__ void gate_gradient_kernel(const __grid_constant__ GateGradient given, float* all_sums) {
  const HstuAttention& attention = given.attention;
  const int width = static_cast<int>(attention.heads * attention.value_dim);
  const int part = width / static_cast<int>(attention.groups);
  const int64_t columns = 2 * attention.heads * (attention.value_dim + attention.attention_dim);
  const int64_t used = attention.offsets[attention.requests];
  float* const sums = cleared_sums(all_sums, width);
  for (int64_t row = blockIdx.x; row < attention.rows; row += gridDim.x) {
    T* const of_u = static_cast<T*>(given.gradient.projected) + row * columns;
    if (row >= used) {
      for (int64_t d = lane(); d < columns; d += kWarp) of_u[d] = from_float<T>(0.0f);
      continue;
    }
    const T* const u = static_cast<const T*>(attention.projected) + row * columns;
    const T* const av = static_cast<const T*>(given.gradient.output) + (row * 3 + 1) * width;
    const T* const above = static_cast<const T*>(given.gradient.upstream) + row * 3 * width;
    float* const of_av = given.av + row * width;
    for (int first = 0; first < width; first += part) {
      const Moments moments = moments_of(av + first, part, attention.epsilon);
      float sum = 0, products = 0;
      for (int i = lane(); i < part; i += kWarp) {
        const int d = first + i;
        const float x = to_float(u[d]), share = sigmoid(x), gated = x * share;
        const float own = (to_float(av[d]) - moments.mean) * moments.inverse;
        const float of_y = to_float(above[2 * width + d]);
        const float norm = own * attention.gamma[d] + attention.beta[d];
        const float of_gated = to_float(above[d]) + of_y * norm;
        of_u[d] = from_float<T>(of_gated * (share + gated * (1.0f - share)));
        const float of_norm = of_y * gated, of_own = of_norm * attention.gamma[d];
        sums[d] += of_norm * own;
        sums[width + d] += of_norm;
        of_av[d] = of_own;
        sum += of_own;
        products += of_own * own;
      }
      const float mean = warp_sum(sum) / static_cast<float>(part);
      const float product = warp_sum(products) / static_cast<float>(part);
      for (int i = lane(); i < part; i += kWarp) {
        const int d = first + i;
        const float own = (to_float(av[d]) - moments.mean) * moments.inverse;
        const float through = moments.inverse * (of_av[d] - mean - own * product);
        of_av[d] = (to_float(above[width + d]) + through) * attention.scale;
      }
    }
  }
}

struct SumsOfBlocks {
  const float* sums;  // [blocks, 2, width]
  int blocks, width;
  float *gamma, *beta;
};

__global__ void sum_blocks_kernel(const __grid_constant__ SumsOfBlocks given, int) {
  const int d = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (d >= 2 * given.width) return;
  float sum = 0;
  for (int block = 0; block < given.blocks; ++block) {
    sum += given.sums[static_cast<int64_t>(block) * 2 * given.width + d];
  }
  (d < given.width ? given.gamma[d] : given.beta[d - given.width]) = sum;
}

template <typename T>
__global__ void norm_kernel(const __grid_constant__ HstuNorm norm, T* output) {
  const int width = static_cast<int>(norm.width);
  for (int64_t row = blockIdx.x; row < norm.rows; row += gridDim.x) {
    const T* const from = static_cast<const T*>(norm.x) + row * width;
    const Moments moments = moments_of(from, width, norm.epsilon);
    for (int d = lane(); d < width; d += kWarp) {
      const float x = to_float(from[d]);
      const float n = (x - moments.mean) * moments.inverse * norm.gamma[d] + norm.beta[d];
      output[row * width + d] = from_float<T>(norm.swish ? x * sigmoid(n) : n);
    }
  }
}

struct GivenNorm {
  HstuNorm norm;
  const void* upstream;
  void* x;
};

template <typename T>
__global__ void norm_gradient_kernel(const __grid_constant__ GivenNorm given, float* all_sums) {
  const HstuNorm& norm = given.norm;
  const int width = static_cast<int>(norm.width);
  float* const sums = cleared_sums(all_sums, width);
  for (int64_t row = blockIdx.x; row < norm.rows; row += gridDim.x) {
    const T* const from = static_cast<const T*>(norm.x) + row * width;
    const T* const above = static_cast<const T*>(given.upstream) + row * width;
    const Moments moments = moments_of(from, width, norm.epsilon);
    const auto own = [&](int d) { return (to_float(from[d]) - moments.mean) * moments.inverse; };
    const auto share = [&](int d) { return sigmoid(own(d) * norm.gamma[d] + norm.beta[d]); };
    const auto of_norm = [&](int d) {
      const float upstream = to_float(above[d]);
      if (!norm.swish) return upstream;
      return upstream * to_float(from[d]) * share(d) * (1.0f - share(d));
    };
    float sum = 0, products = 0;
    for (int d = lane(); d < width; d += kWarp) {
      sums[d] += of_norm(d) * own(d);
      sums[width + d] += of_norm(d);
      sum += of_norm(d) * norm.gamma[d];
      products += of_norm(d) * norm.gamma[d] * own(d);
    }
    const float mean = warp_sum(sum) / static_cast<float>(width);
    const float product = warp_sum(products) / static_cast<float>(width);
    for (int d = lane(); d < width; d += kWarp) {
      float found = moments.inverse * (of_norm(d) * norm.gamma[d] - mean - own(d) * product);
      if (norm.swish) found += to_float(above[d]) * share(d);
      static_cast<T*>(given.x)[row * width + d] = from_float<T>(found);
    }
  }
}

__device__ inline uint32_t mixed(uint32_t x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

template <typename T>
__global__ void dropout_kernel(const __grid_constant__ HstuDropout dropout, T* output) {
  const int width = static_cast<int>(dropout.width);
  for (int64_t row = blockIdx.x; row < dropout.rows; row += gridDim.x) {
    const uint64_t key = static_cast<uint64_t>(dropout.keys[row]);
    const uint32_t start =
        mixed(static_cast<uint32_t>(key) ^ mixed(static_cast<uint32_t>(key >> 32)));
    const T* const from = static_cast<const T*>(dropout.x) + row * width;
    for (int d = lane(); d < width; d += kWarp) {
      const bool kept = mixed(start + static_cast<uint32_t>(d) * 0x9e3779b9u) >= dropout.threshold;
      output[row * width + d] = from_float<T>(kept ? to_float(from[d]) * dropout.factor : 0.0f);
    }
  }
}

}  // namespace
