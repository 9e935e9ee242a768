// Enough of CUDA for cuda_kernels.cu to run on a CPU: what its kernels compute and where they read
// and write can then be tested without a GPU. Nothing of a GPU's timing or memory is modelled.
//
// A block's threads are coroutines, which wait for each other where they are synchronised; blocks
// run one after another. Only what the project's kernels use is here.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __device__
#define __host__
#define __global__
#define __shared__
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

struct dim3 {
  unsigned x, y = 1;
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

constexpr unsigned kLanes = 32, kMostThreads = 256;
constexpr size_t kStack = 256 << 10;

// Where `count` threads meet; a thread that comes again waits for the next meeting.
struct Meeting {
  unsigned arrived = 0, past = 0;
};

static ucontext_t caller, threads[kMostThreads];
static unsigned alive;
static Meeting warps[kMostThreads / kLanes], block;
static float exchanged[kMostThreads];
static void (*body)();

inline void meet(Meeting& meeting, unsigned count) {
  const unsigned past = meeting.past;
  if (++meeting.arrived == count) {
    meeting.arrived = 0;
    ++meeting.past;
  }
  while (meeting.past == past) swapcontext(&threads[threadIdx.x], &caller);
}

inline void thread_main() {
  body();
  --alive;
}

inline void run_block() {
  static char* const stacks = static_cast<char*>(malloc(kMostThreads * kStack));
  static bool ended[kMostThreads];
  alive = blockDim.x;
  for (unsigned i = 0; i < blockDim.x; ++i) {
    ended[i] = false;
    getcontext(&threads[i]);
    threads[i].uc_stack.ss_sp = stacks + i * kStack;
    threads[i].uc_stack.ss_size = kStack;
    threads[i].uc_link = &caller;
    makecontext(&threads[i], thread_main, 0);
  }
  while (alive) {
    for (unsigned i = 0; i < blockDim.x; ++i) {
      if (ended[i]) continue;
      const unsigned before = alive;
      threadIdx.x = i;
      swapcontext(&caller, &threads[i]);
      ended[i] = alive < before;
    }
  }
}

}  // namespace emulation

inline void __syncwarp() {
  emulation::meet(emulation::warps[threadIdx.x / emulation::kLanes], emulation::kLanes);
}
inline void __syncthreads() { emulation::meet(emulation::block, blockDim.x); }

inline float __shfl_xor_sync(unsigned, float value, int mask) {
  const unsigned own = threadIdx.x;
  emulation::exchanged[own] = value;
  __syncwarp();
  const float found = emulation::exchanged[own ^ static_cast<unsigned>(mask)];
  __syncwarp();
  return found;
}

inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }

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
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
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
  for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
      memset(shared, 0xff, sizeof shared);
      run_block();
    }
  }
  return cudaSuccess;
}

}  // namespace emulation

template <typename Kernel>
cudaError_t cudaLaunchKernel(Kernel* kernel, dim3 grid, dim3 block, void** arguments, size_t,
                             cudaStream_t) {
  return emulation::launch(kernel, grid, block, arguments);
}
