// Products of 16 x 16 tiles in shared memory by one warp: tensor cores, or plain float32
// arithmetic.
//
// Both kinds have the same three operations and the same memory layout, so kernels need not know
// which they use. Tensor cores sum in float32, too.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>
#include <stdint.h>

namespace {

constexpr int kTile = 16;
constexpr int kTileStride = kTile + 4;  // of a tile of sums; spreads its rows over the banks
constexpr int kWarp = 32;

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ inline T from_float(float value);
template <>
__device__ inline float from_float(float value) {
  return value;
}
template <>
__device__ inline __half from_float(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 from_float(float value) {
  return __float2bfloat16_rn(value);
}

// Each lane keeps eight neighbouring sums of a row.
template <typename T>
class PlainTile {
 public:
  __device__ PlainTile() {
    for (float& sum : sums_) sum = 0;
  }

  // += A B^T of two [16, 16] tiles in row-major order, `stride` values from row to row.
  __device__ void add_transposed(const T* a, int64_t a_stride, const T* b, int64_t b_stride) {
    for (int k = 0; k < kTile; ++k) {
      const float factor = to_float(a[row() * a_stride + k]);
      for (int i = 0; i < 8; ++i) sums_[i] += factor * to_float(b[(column() + i) * b_stride + k]);
    }
  }

  // += A B.
  __device__ void add(const T* a, int64_t a_stride, const T* b, int64_t b_stride) {
    for (int k = 0; k < kTile; ++k) {
      const float factor = to_float(a[row() * a_stride + k]);
      for (int i = 0; i < 8; ++i) sums_[i] += factor * to_float(b[k * b_stride + column() + i]);
    }
  }

  __device__ void store(float* to) const {
    for (int i = 0; i < 8; ++i) to[row() * kTileStride + column() + i] = sums_[i];
  }

 private:
  __device__ static int row() { return threadIdx.x % kWarp / 2; }
  __device__ static int column() { return threadIdx.x % 2 * 8; }

  float sums_[8];
};

// `Element` is the type that tensor cores use for T; they multiply tiles of depth kDepth.
template <typename T, typename Element, int kDepth>
class TensorCoreTile {
 public:
  __device__ TensorCoreTile() { nvcuda::wmma::fill_fragment(sums_, 0.0f); }

  __device__ void add_transposed(const T* a, int64_t a_stride, const T* b, int64_t b_stride) {
    for (int k = 0; k < kTile; k += kDepth) {
      multiply<nvcuda::wmma::col_major>(a + k, a_stride, b + k, b_stride);
    }
  }

  __device__ void add(const T* a, int64_t a_stride, const T* b, int64_t b_stride) {
    for (int k = 0; k < kTile; k += kDepth) {
      multiply<nvcuda::wmma::row_major>(a + k, a_stride, b + k * b_stride, b_stride);
    }
  }

  __device__ void store(float* to) const {
    nvcuda::wmma::store_matrix_sync(to, sums_, kTileStride, nvcuda::wmma::mem_row_major);
  }

 private:
  template <typename Layout>
  __device__ void multiply(const T* a, int64_t a_stride, const T* b, int64_t b_stride) {
    using namespace nvcuda::wmma;
    fragment<matrix_a, kTile, kTile, kDepth, Element, row_major> left;
    fragment<matrix_b, kTile, kTile, kDepth, Element, Layout> right;
    load_matrix_sync(left, a, static_cast<unsigned>(a_stride));
    load_matrix_sync(right, b, static_cast<unsigned>(b_stride));
    round_to_element(left);
    round_to_element(right);
    mma_sync(sums_, left, right, sums_);
  }

  template <typename Fragment>
  __device__ static void round_to_element(Fragment& fragment) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    if constexpr (sizeof(T) == sizeof(float)) {
      for (int i = 0; i < fragment.num_elements; ++i) {
        fragment.x[i] = nvcuda::wmma::__float_to_tf32(fragment.x[i]);
      }
    }
#endif
  }

  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kTile, kTile, kDepth, float> sums_;
};

template <typename T, bool kTensorCores>
struct TileKind {
  using type = PlainTile<T>;
};

// Architectures without tensor cores for a type use plain arithmetic.
template <>
struct TileKind<__half, true> {
  using type = TensorCoreTile<__half, __half, 16>;
};
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <>
struct TileKind<__nv_bfloat16, true> {
  using type = TensorCoreTile<__nv_bfloat16, __nv_bfloat16, 16>;
};
template <>
struct TileKind<float, true> {
  using type = TensorCoreTile<float, nvcuda::wmma::precision::tf32, 8>;
};
#endif

template <typename T, bool kTensorCores>
using Tile = typename TileKind<T, kTensorCores>::type;

}  // namespace
