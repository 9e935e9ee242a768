// The CUDA kernels. A warp processes one sample at a time, with all its vectors in shared memory,
// until the batch is done: no atomics, no synchronisation beyond the warp. Samples too large for
// shared memory use kernels that read global memory instead.

#include <stdint.h>
#include <string.h>

#include "cuda_tiles.cuh"
#include "interact.h"

namespace {

constexpr int kMaxGroups = INTERACT_CUDA_MAX_GROUPS;
constexpr int kMaxWarps = 4;  // of a block
constexpr int kLargeThreads = 256;

struct Group {
  const void* vectors;
  void* gradient;
  int64_t rows;
};

// A sample and its arrays in shared memory; strides in values, sizes in bytes.
struct Shape {
  Group groups[kMaxGroups];
  int group_count;
  int features, padded_features;  // padded to whole tiles
  int width, padded_width;
  int output_width;
  int x_stride, s_stride;
  int64_t samples;
  int warp_bytes;
  bool whole;  // rows begin at multiples of 16 bytes and end there
};

__host__ __device__ inline int rounded_up(int value, int multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

__host__ __device__ inline int64_t pairs_before(int64_t row) { return row * (row - 1) / 2; }

// A warp's arrays: X, S (backward), a tile of sums, and one sample's output or its gradient.
template <typename T>
struct Memory {
  T *x, *s, *output;
  float* sums;

  __host__ __device__ static int bytes(const Shape& shape, bool backward) {
    const int x = shape.padded_features * shape.x_stride;
    const int s = backward ? shape.padded_features * shape.s_stride : 0;
    const int sums = kTile * kTileStride * static_cast<int>(sizeof(float));
    const int output = rounded_up(shape.output_width * static_cast<int>(sizeof(T)), 32);
    return (x + s) * static_cast<int>(sizeof(T)) + sums + output;
  }

  __device__ Memory(const Shape& shape, bool backward, unsigned char* begin)
      : x(reinterpret_cast<T*>(begin)), s(x + shape.padded_features * shape.x_stride) {
    T* const end = backward ? s + shape.padded_features * shape.s_stride : s;
    sums = reinterpret_cast<float*>(end);
    output = reinterpret_cast<T*>(sums + kTile * kTileStride);
  }
};

template <typename T>
constexpr int kPerChunk = 16 / sizeof(T);

__device__ inline int lane() { return threadIdx.x % kWarp; }

template <typename T>
__device__ void fill_zero(T* values, int count) {
  for (int i = lane(); i < count; i += kWarp) values[i] = from_float<T>(0.0f);
}

// A sample's vectors -> x; the padding around them was set to zero once and stays so.
template <typename T>
__device__ void load_vectors(const Shape& shape, int64_t sample, T* x) {
  for (int g = 0, row = 0; g < shape.group_count; ++g) {
    const int rows = static_cast<int>(shape.groups[g].rows);
    const int count = rows * shape.width;
    const T* const from = static_cast<const T*>(shape.groups[g].vectors) + sample * count;
    T* const to = x + row * shape.x_stride;
    if (shape.whole) {
      const int chunks = shape.width / kPerChunk<T>;
      for (int i = lane(); i < rows * chunks; i += kWarp) {
        const int place = i / chunks * shape.x_stride + i % chunks * kPerChunk<T>;
        *reinterpret_cast<uint4*>(to + place) = reinterpret_cast<const uint4*>(from)[i];
      }
    } else {
      for (int i = lane(); i < count; i += kWarp) {
        to[i / shape.width * shape.x_stride + i % shape.width] = from[i];
      }
    }
    row += rows;
  }
}

template <typename T>
__device__ void copy_output(const T* from, T* to, int count) {
  for (int i = lane(); i < count / kPerChunk<T>; i += kWarp) {
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  }
}

template <typename T, bool kTensorCores>
__global__ void forward_kernel(const __grid_constant__ Shape shape, T* output) {
  extern __shared__ __align__(32) unsigned char shared[];
  const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp;
  const Memory<T> memory(shape, false, shared + warp * shape.warp_bytes);
  const int tiles = shape.padded_features / kTile;
  const int pairs = static_cast<int>(pairs_before(shape.features));
  fill_zero(memory.x, shape.padded_features * shape.x_stride);
  fill_zero(memory.output + shape.width + pairs, shape.output_width - shape.width - pairs);

  for (int64_t sample = static_cast<int64_t>(blockIdx.x) * warps + warp; sample < shape.samples;
       sample += static_cast<int64_t>(gridDim.x) * warps) {
    __syncwarp();
    load_vectors(shape, sample, memory.x);
    __syncwarp();
    for (int i = lane(); i < shape.width; i += kWarp) memory.output[i] = memory.x[i];
    for (int a = 0; a < tiles; ++a) {
      for (int b = 0; b <= a; ++b) {
        Tile<T, kTensorCores> tile;
        const T* const left = memory.x + a * kTile * shape.x_stride;
        const T* const right = memory.x + b * kTile * shape.x_stride;
        for (int d = 0; d < shape.padded_width; d += kTile) {
          tile.add_transposed(left + d, shape.x_stride, right + d, shape.x_stride);
        }
        tile.store(memory.sums);
        __syncwarp();
        for (int i = lane(); i < kTile * kTile; i += kWarp) {
          const int row = a * kTile + i / kTile, column = b * kTile + i % kTile;
          if (column < row && row < shape.features) {
            memory.output[shape.width + pairs_before(row) + column] =
                from_float<T>(memory.sums[i / kTile * kTileStride + i % kTile]);
          }
        }
        __syncwarp();
      }
    }
    copy_output(memory.output, output + sample * shape.output_width, shape.output_width);
  }
}

// Upstream's pairs -> the symmetric s, whose diagonal and padding were set to zero once.
template <typename T>
__device__ void fill_symmetric(const Shape& shape, const T* pairs, T* s) {
  for (int row = 1; row < shape.features; ++row, pairs += row - 1) {
    for (int column = lane(); column < row; column += kWarp) {
      s[row * shape.s_stride + column] = s[column * shape.s_stride + row] = pairs[column];
    }
  }
}

// The start of a row's gradient.
template <typename T>
__device__ T* gradient_of(const Shape& shape, int64_t sample, int row) {
  int g = 0;
  for (; row >= shape.groups[g].rows; ++g) row -= static_cast<int>(shape.groups[g].rows);
  return static_cast<T*>(shape.groups[g].gradient) +
         (sample * shape.groups[g].rows + row) * shape.width;
}

// A tile of sums -> global memory; each lane stores 16 bytes where rows allow it.
template <typename T>
__device__ void store_gradient(const Shape& shape, const Memory<T>& memory, int64_t sample,
                               int first_row, int first_column) {
  constexpr int kChunks = kTile / kPerChunk<T>;
  for (int i = lane(); i < kTile * kChunks; i += kWarp) {
    const int row = first_row + i / kChunks;
    const int column = first_column + i % kChunks * kPerChunk<T>;
    if (row >= shape.features || column >= shape.width) continue;
    const float* const sums = memory.sums + i / kChunks * kTileStride + i % kChunks * kPerChunk<T>;
    T* const to = gradient_of<T>(shape, sample, row) + column;
    T values[kPerChunk<T>];
    for (int k = 0; k < kPerChunk<T>; ++k) {
      const bool bottom = row == 0 && column + k < shape.width;
      values[k] = from_float<T>(sums[k] + (bottom ? to_float(memory.output[column + k]) : 0.0f));
    }
    if (shape.whole) {
      uint4 chunk;
      memcpy(&chunk, values, sizeof chunk);
      *reinterpret_cast<uint4*>(to) = chunk;
    } else {
      for (int k = 0; k < kPerChunk<T> && column + k < shape.width; ++k) to[k] = values[k];
    }
  }
}

template <typename T, bool kTensorCores>
__global__ void backward_kernel(const __grid_constant__ Shape shape, const T* upstream) {
  extern __shared__ __align__(32) unsigned char shared[];
  const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp;
  const Memory<T> memory(shape, true, shared + warp * shape.warp_bytes);
  fill_zero(memory.x, shape.padded_features * shape.x_stride);
  fill_zero(memory.s, shape.padded_features * shape.s_stride);

  for (int64_t sample = static_cast<int64_t>(blockIdx.x) * warps + warp; sample < shape.samples;
       sample += static_cast<int64_t>(gridDim.x) * warps) {
    __syncwarp();
    load_vectors(shape, sample, memory.x);
    copy_output(upstream + sample * shape.output_width, memory.output, shape.output_width);
    __syncwarp();
    fill_symmetric(shape, memory.output + shape.width, memory.s);
    __syncwarp();
    for (int row = 0; row < shape.padded_features; row += kTile) {
      for (int d = 0; d < shape.padded_width; d += kTile) {
        Tile<T, kTensorCores> tile;
        for (int k = 0; k < shape.padded_features; k += kTile) {
          tile.add(memory.s + row * shape.s_stride + k, shape.s_stride,
                   memory.x + k * shape.x_stride + d, shape.x_stride);
        }
        tile.store(memory.sums);
        __syncwarp();
        store_gradient(shape, memory, sample, row, d);
        __syncwarp();
      }
    }
  }
}

template <typename T>
__device__ const T* vector_of(const Shape& shape, int64_t sample, int row) {
  int g = 0;
  for (; row >= shape.groups[g].rows; ++g) row -= static_cast<int>(shape.groups[g].rows);
  return static_cast<const T*>(shape.groups[g].vectors) +
         (sample * shape.groups[g].rows + row) * shape.width;
}

// One block per sample, one warp per pair; its lanes divide the values of the product.
template <typename T>
__global__ void large_forward_kernel(const __grid_constant__ Shape shape, T* output) {
  const int warps = blockDim.x / kWarp, warp = threadIdx.x / kWarp;
  for (int64_t sample = blockIdx.x; sample < shape.samples; sample += gridDim.x) {
    T* const to = output + sample * shape.output_width;
    const T* const bottom = vector_of<T>(shape, sample, 0);
    const int pairs = static_cast<int>(pairs_before(shape.features));
    for (int i = threadIdx.x; i < shape.width; i += blockDim.x) to[i] = bottom[i];
    for (int i = shape.width + pairs + threadIdx.x; i < shape.output_width; i += blockDim.x) {
      to[i] = from_float<T>(0.0f);
    }
    for (int row = 1; row < shape.features; ++row) {
      const T* const left = vector_of<T>(shape, sample, row);
      for (int column = warp; column < row; column += warps) {
        const T* const right = vector_of<T>(shape, sample, column);
        float sum = 0;
        for (int d = lane(); d < shape.width; d += kWarp) {
          sum += to_float(left[d]) * to_float(right[d]);
        }
        for (int step = kWarp / 2; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
        if (lane() == 0) to[shape.width + pairs_before(row) + column] = from_float<T>(sum);
      }
    }
  }
}

// One block per sample; a thread computes one value of the gradient at a time.
template <typename T>
__global__ void large_backward_kernel(const __grid_constant__ Shape shape, const T* upstream) {
  for (int64_t sample = blockIdx.x; sample < shape.samples; sample += gridDim.x) {
    const T* const from = upstream + sample * shape.output_width;
    const T* const pairs = from + shape.width;
    for (int row = 0; row < shape.features; ++row) {
      T* const to = gradient_of<T>(shape, sample, row);
      for (int d = threadIdx.x; d < shape.width; d += blockDim.x) {
        float sum = row ? 0.0f : to_float(from[d]);
        for (int other = 0; other < shape.features; ++other) {
          if (other == row) continue;
          const int high = other > row ? other : row, low = other > row ? row : other;
          sum += to_float(pairs[pairs_before(high) + low]) *
                 to_float(vector_of<T>(shape, sample, other)[d]);
        }
        to[d] = from_float<T>(sum);
      }
    }
  }
}

template <typename T>
Shape shape_of(const InteractBatch& batch, int64_t samples, bool backward) {
  Shape shape = {};
  shape.group_count = batch.group_count;
  shape.width = static_cast<int>(batch.width);
  uintptr_t places = 0;
  for (int g = 0; g < batch.group_count; ++g) {
    const InteractGroup& group = batch.groups[g];
    shape.groups[g] = {group.vectors, group.gradient, group.rows};
    shape.features += static_cast<int>(group.rows);
    places |= reinterpret_cast<uintptr_t>(group.vectors);
    if (backward) places |= reinterpret_cast<uintptr_t>(group.gradient);
  }
  shape.padded_features = rounded_up(shape.features, kTile);
  shape.padded_width = rounded_up(shape.width, kTile);
  shape.output_width = static_cast<int>(interact_output_width(shape.features, batch.width));
  // An odd multiple of 16 bytes: the same columns of eight consecutive rows lie in distinct banks.
  shape.x_stride = shape.padded_width + kPerChunk<T>;
  shape.s_stride = shape.padded_features + kPerChunk<T>;
  shape.samples = samples;
  shape.warp_bytes = rounded_up(Memory<T>::bytes(shape, backward), 32);
  shape.whole = batch.width * sizeof(T) % 16 == 0 && places % 16 == 0;
  return shape;
}

// Launches as many blocks as can run at a time; each continues until the batch is done.
template <typename Argument>
cudaError_t launch(void (*kernel)(Shape, Argument), void (*large)(Shape, Argument), Shape shape,
                   Argument argument, cudaStream_t stream) {
  if (shape.samples == 0) return cudaSuccess;
  int device, processors, available, resident;
  cudaError_t error = cudaGetDevice(&device);
  if (!error) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (!error) {
    error = cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error) return error;

  const int fit = available / shape.warp_bytes;
  const int warps = fit < kMaxWarps ? fit : kMaxWarps;
  const int threads = warps ? warps * kWarp : kLargeThreads;
  const int bytes = warps * shape.warp_bytes;
  if (!warps) kernel = large;
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (!error) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, bytes);
  }
  if (error) return error;
  const int64_t most = static_cast<int64_t>(processors) * (resident > 0 ? resident : 1);
  const int64_t needed = warps ? (shape.samples + warps - 1) / warps : shape.samples;
  void* arguments[] = {&shape, &argument};
  // The kernel's type is given because CUDA 11.8 cannot deduce it.
  return cudaLaunchKernel<void(Shape, Argument)>(
      kernel, static_cast<unsigned>(needed < most ? needed : most), static_cast<unsigned>(threads),
      arguments, bytes, stream);
}

template <typename T, bool kTensorCores>
cudaError_t forward(const InteractBatch& batch, int64_t samples, void* output, void* stream) {
  return launch(forward_kernel<T, kTensorCores>, large_forward_kernel<T>,
                shape_of<T>(batch, samples, false), static_cast<T*>(output),
                static_cast<cudaStream_t>(stream));
}

template <typename T, bool kTensorCores>
cudaError_t backward(const InteractBatch& batch, int64_t samples, const void* upstream,
                     void* stream) {
  return launch(backward_kernel<T, kTensorCores>, large_backward_kernel<T>,
                shape_of<T>(batch, samples, true), static_cast<const T*>(upstream),
                static_cast<cudaStream_t>(stream));
}

const char* words(cudaError_t error) { return error ? cudaGetErrorString(error) : nullptr; }

}  // namespace

extern "C" const char* interact_cuda_forward(const InteractBatch* batch, int64_t samples, int tf32,
                                             void* output, void* stream) {
  switch (batch->type) {
    case INTERACT_FLOAT16:
      return words(forward<__half, true>(*batch, samples, output, stream));
    case INTERACT_BFLOAT16:
      return words(forward<__nv_bfloat16, true>(*batch, samples, output, stream));
    default:
      return words(tf32 ? forward<float, true>(*batch, samples, output, stream)
                        : forward<float, false>(*batch, samples, output, stream));
  }
}

extern "C" const char* interact_cuda_backward(const InteractBatch* batch, int64_t samples, int tf32,
                                              const void* upstream, void* stream) {
  switch (batch->type) {
    case INTERACT_FLOAT16:
      return words(backward<__half, true>(*batch, samples, upstream, stream));
    case INTERACT_BFLOAT16:
      return words(backward<__nv_bfloat16, true>(*batch, samples, upstream, stream));
    default:
      return words(tf32 ? backward<float, true>(*batch, samples, upstream, stream)
                        : backward<float, false>(*batch, samples, upstream, stream));
  }
}
