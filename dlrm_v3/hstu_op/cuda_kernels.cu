// The operations of hstu.h on CUDA: launches of their kernels.

#include <type_traits>

#include "cuda_attention.cuh"

namespace {

constexpr int kSumThreads = 128;

// The kernel's type is given because CUDA 11.8 cannot deduce it.
template <typename Shape, typename Argument>
cudaError_t launch(void (*kernel)(Shape, Argument), dim3 blocks, int threads, int64_t bytes,
                   Shape shape, Argument argument, cudaStream_t stream) {
  if (blocks.x == 0) return cudaSuccess;
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error) return error;
  void* arguments[] = {&shape, &argument};
  return cudaLaunchKernel<void(Shape, Argument)>(kernel, blocks, static_cast<unsigned>(threads),
                                                 arguments, static_cast<size_t>(bytes), stream);
}

template <typename Shape, typename Argument>
cudaError_t launch_rows(void (*kernel)(Shape, Argument), int64_t rows, int64_t most,
                        const Shape& shape, Argument argument, cudaStream_t stream) {
  return launch(kernel, static_cast<unsigned>(rows < most ? rows : most), kWarp, 0, shape, argument,
                stream);
}

// Calls run(zero of the type, whether tensor cores multiply it).
template <typename Run>
cudaError_t with_type(int32_t type, bool tf32, const Run& run) {
  if (type == HSTU_FLOAT16) return run(__half(), std::true_type());
  if (type == HSTU_BFLOAT16) return run(__nv_bfloat16(), std::true_type());
  return tf32 ? run(float(), std::true_type()) : run(float(), std::false_type());
}

AttentionShape shape_of(const HstuAttention& attention) {
  AttentionShape shape = {};
  shape.attention = attention;
  shape.attention_dim = static_cast<int>(attention.attention_dim);
  shape.value_dim = static_cast<int>(attention.value_dim);
  shape.attention_tiles = (shape.attention_dim + kTile - 1) / kTile;
  shape.value_tiles = (shape.value_dim + kTile - 1) / kTile;
  shape.width = attention.heads * attention.value_dim;
  shape.columns = 2 * attention.heads * (attention.value_dim + attention.attention_dim);
  return shape;
}

template <typename T>
int64_t shared_bytes(const AttentionShape& shape, bool backward) {
  unsigned char* const begin = reinterpret_cast<unsigned char*>(uintptr_t{32});
  return Shared<T>(shape, backward, begin).end() - begin;
}

template <typename T>
dim3 blocks_of(const HstuAttention& attention, int64_t rows) {
  dim3 blocks(
      static_cast<unsigned>(attention.requests ? rows / kRows<T> + 2 * attention.requests : 0));
  blocks.y = static_cast<unsigned>(attention.heads);
  return blocks;
}

cudaError_t sum_blocks(const float* sums, int64_t rows, int64_t width, float* gamma, float* beta,
                       cudaStream_t stream) {
  const SumsOfBlocks given = {sums, static_cast<int>(rows < kSumBlocks ? rows : kSumBlocks),
                              static_cast<int>(width), gamma, beta};
  return launch(sum_blocks_kernel,
                static_cast<unsigned>((2 * width + kSumThreads - 1) / kSumThreads), kSumThreads, 0,
                given, 0, stream);
}

const char* words(cudaError_t error) { return error ? cudaGetErrorString(error) : nullptr; }

}  // namespace

extern "C" {

int64_t hstu_cuda_norm_scratch(int64_t width) { return kSumBlocks * 2 * width; }

int64_t hstu_cuda_attention_scratch(const HstuAttention* attention) {
  const int64_t width = attention->heads * attention->value_dim;
  return attention->rows * width + hstu_cuda_norm_scratch(width);
}

const char* hstu_cuda_attention(const HstuAttention* attention, int tf32, void* output,
                                void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return words(with_type(attention->type, tf32, [&](auto zero, auto tensor_cores) {
    using T = decltype(zero);
    const AttentionShape shape = shape_of(*attention);
    const cudaError_t error = launch(
        attend_kernel<T, decltype(tensor_cores)::value>, blocks_of<T>(*attention, attention->rows),
        kThreads<T>, shared_bytes<T>(shape, false), shape, static_cast<T*>(output), queue);
    if (error) return error;
    return launch_rows(gate_kernel<T>, attention->rows, attention->rows, *attention,
                       static_cast<T*>(output), queue);
  }));
}

const char* hstu_cuda_attention_gradient(const HstuAttention* attention,
                                         const HstuAttentionGradient* gradient, int tf32,
                                         float* scratch, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return words(with_type(attention->type, tf32, [&](auto zero, auto tensor_cores) {
    using T = decltype(zero);
    constexpr bool kTensorCores = decltype(tensor_cores)::value;
    AttentionShape shape = shape_of(*attention);
    shape.gradient = *gradient;
    shape.av = scratch;
    float* const sums = scratch + attention->rows * shape.width;
    const GateGradient gate = {*attention, *gradient, scratch};
    cudaError_t error =
        launch_rows(gate_gradient_kernel<T>, attention->rows, kSumBlocks, gate, sums, queue);
    if (!error) {
      error =
          sum_blocks(sums, attention->rows, shape.width, gradient->gamma, gradient->beta, queue);
    }
    if (!error && attention->history_offsets) {  // of rows behind the last offset
      error = cudaMemsetAsync(
          gradient->history, 0,
          static_cast<size_t>(attention->history_rows * shape.columns / 2) * sizeof(T), queue);
    }
    const int64_t bytes = shared_bytes<T>(shape, true);
    const int64_t keys = attention->history_offsets ? attention->history_rows : attention->rows;
    if (!error) {
      error = launch(key_gradient_kernel<T, kTensorCores>, blocks_of<T>(*attention, keys),
                     kThreads<T>, bytes, shape, static_cast<T*>(nullptr), queue);
    }
    if (error) return error;
    return launch(query_gradient_kernel<T, kTensorCores>, blocks_of<T>(*attention, attention->rows),
                  kThreads<T>, bytes, shape, static_cast<T*>(nullptr), queue);
  }));
}

const char* hstu_cuda_norm(const HstuNorm* norm, void* output, void* stream) {
  return words(with_type(norm->type, false, [&](auto zero, auto) {
    using T = decltype(zero);
    return launch_rows(norm_kernel<T>, norm->rows, norm->rows, *norm, static_cast<T*>(output),
                       static_cast<cudaStream_t>(stream));
  }));
}

const char* hstu_cuda_norm_gradient(const HstuNorm* norm, const void* upstream, void* x,
                                    float* gamma, float* beta, float* scratch, void* stream) {
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  return words(with_type(norm->type, false, [&](auto zero, auto) {
    using T = decltype(zero);
    const GivenNorm given = {*norm, upstream, x};
    const cudaError_t error =
        launch_rows(norm_gradient_kernel<T>, norm->rows, kSumBlocks, given, scratch, queue);
    if (error) return error;
    return sum_blocks(scratch, norm->rows, norm->width, gamma, beta, queue);
  }));
}

const char* hstu_cuda_dropout(const HstuDropout* dropout, void* output, void* stream) {
  return words(with_type(dropout->type, false, [&](auto zero, auto) {
    using T = decltype(zero);
    return launch_rows(dropout_kernel<T>, dropout->rows, dropout->rows, *dropout,
                       static_cast<T*>(output), static_cast<cudaStream_t>(stream));
  }));
}

}  // extern "C"
