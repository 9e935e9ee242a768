// Enough of CUDA for cuda_kernels.cu to run on a CPU: what its kernels compute and where they read
// and write can then be tested without a GPU. Nothing of a GPU's timing or memory is modelled.
//
// A warp's lanes are coroutines; at __syncwarp each waits for the others. Only what these kernels
// use is here: no synchronisation beyond a warp, so warps run one after another.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <vector>

#define __device__
#define __host__
#define __global__
#define __shared__
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

struct dim3 {
  unsigned x;
  dim3(unsigned count) : x(count) {}
};
struct uint4 {
  uint32_t x, y, z, w;
};

static dim3 threadIdx(0), blockIdx(0), blockDim(0), gridDim(0);

struct __half {
  _Float16 value;
};
inline float __half2float(__half from) { return static_cast<float>(from.value); }
inline __half __float2half_rn(float from) { return {static_cast<_Float16>(from)}; }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 from) {
  const uint32_t bits = static_cast<uint32_t>(from.bits) << 16;
  float to;
  memcpy(&to, &bits, sizeof to);
  return to;
}
inline __nv_bfloat16 __float2bfloat16_rn(float from) {
  uint32_t bits;
  memcpy(&bits, &from, sizeof bits);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

namespace emulation {

constexpr int kLanes = 32;
constexpr size_t kStack = 256 << 10;

static ucontext_t caller, lanes[kLanes];
static int lane, alive;
static float exchanged[kLanes];
static void (*body)();

inline void wait() { swapcontext(&lanes[lane], &caller); }

inline void lane_main() {
  body();
  --alive;
}

inline void run_warp(unsigned first_thread) {
  static std::vector<char> stacks(kLanes * kStack);
  alive = kLanes;
  for (int i = 0; i < kLanes; ++i) {
    getcontext(&lanes[i]);
    lanes[i].uc_stack.ss_sp = stacks.data() + i * kStack;
    lanes[i].uc_stack.ss_size = kStack;
    lanes[i].uc_link = &caller;
    makecontext(&lanes[i], lane_main, 0);
  }
  while (alive) {  // all lanes meet equally often, so all end in the same round
    for (lane = 0; lane < kLanes; ++lane) {
      threadIdx.x = first_thread + static_cast<unsigned>(lane);
      swapcontext(&caller, &lanes[lane]);
    }
  }
}

}  // namespace emulation

inline void __syncwarp() { emulation::wait(); }

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  const int own = emulation::lane;
  emulation::exchanged[own] = value;
  emulation::wait();
  const float found = emulation::exchanged[own ^ mask];
  emulation::wait();
  return found;
}

namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major };
namespace precision {
struct tf32 {};
}  // namespace precision

inline float value_of(float value) { return value; }
inline float value_of(__half value) { return __half2float(value); }
inline float value_of(__nv_bfloat16 value) { return __bfloat162float(value); }

// Every lane holds the whole tile.
template <typename Use, int M, int N, int K, typename Element, typename Layout = void>
struct fragment {
  static constexpr int num_elements = 256;
  float x[num_elements];
};

template <typename F>
void fill_fragment(F& to, float value) {
  for (float& x : to.x) x = value;
}

template <int M, int N, int K, typename E, typename T>
void load_matrix_sync(fragment<matrix_a, M, N, K, E, row_major>& to, const T* from, unsigned ld) {
  for (int i = 0; i < M; ++i)
    for (int k = 0; k < K; ++k) to.x[i * K + k] = value_of(from[i * ld + k]);
}
template <int M, int N, int K, typename E, typename T>
void load_matrix_sync(fragment<matrix_b, M, N, K, E, row_major>& to, const T* from, unsigned ld) {
  for (int k = 0; k < K; ++k)
    for (int j = 0; j < N; ++j) to.x[k * N + j] = value_of(from[k * ld + j]);
}
template <int M, int N, int K, typename E, typename T>
void load_matrix_sync(fragment<matrix_b, M, N, K, E, col_major>& to, const T* from, unsigned ld) {
  for (int k = 0; k < K; ++k)
    for (int j = 0; j < N; ++j) to.x[k * N + j] = value_of(from[j * ld + k]);
}

template <int M, int N, int K, typename A, typename B>
void mma_sync(fragment<accumulator, M, N, K, float>& to, const A& a, const B& b,
              const fragment<accumulator, M, N, K, float>&) {
  for (int i = 0; i < M; ++i)
    for (int k = 0; k < K; ++k)
      for (int j = 0; j < N; ++j) to.x[i * N + j] += a.x[i * K + k] * b.x[k * N + j];
}

template <int M, int N, int K>
void store_matrix_sync(float* to, const fragment<accumulator, M, N, K, float>& from, unsigned ld,
                       layout_t) {
  for (int i = 0; i < M; ++i)
    for (int j = 0; j < N; ++j) to[i * ld + j] = from.x[i * N + j];
}

inline float __float_to_tf32(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits = (bits + 0x1000) & ~0x1fffu;
  memcpy(&value, &bits, sizeof bits);
  return value;
}

}  // namespace wmma
}  // namespace nvcuda

enum cudaError_t { cudaSuccess };
enum { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
typedef void* cudaStream_t;

constexpr int kMostSharedMemory = 227 << 10;
extern "C" {
int emulated_shared_memory = kMostSharedMemory;  // a test makes it small
}

namespace {
// What `extern __shared__` names in the kernels.
__align__(32) unsigned char shared[kMostSharedMemory];
}  // namespace

inline cudaError_t cudaGetDevice(int*) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 2 : emulated_shared_memory;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return ""; }

namespace emulation {

template <typename A, typename B>
cudaError_t launch(void (*kernel)(A, B), dim3 grid, dim3 block, void** arguments) {
  static void (*run)(A, B);
  static A* first;
  static B* second;
  run = kernel;
  first = static_cast<A*>(arguments[0]);
  second = static_cast<B*>(arguments[1]);
  body = [] { run(*first, *second); };
  gridDim = grid;
  blockDim = block;
  for (unsigned b = 0; b < grid.x; ++b) {
    blockIdx.x = b;
    memset(shared, 0xff, sizeof shared);
    for (unsigned t = 0; t < block.x; t += kLanes) run_warp(t);
  }
  return cudaSuccess;
}

}  // namespace emulation

template <typename Kernel>
cudaError_t cudaLaunchKernel(Kernel* kernel, dim3 grid, dim3 block, void** arguments, size_t,
                             cudaStream_t) {
  return emulation::launch(kernel, grid, block, arguments);
}
