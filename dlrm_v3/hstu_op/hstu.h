// The operations of HSTU: kernels behind a C interface, without any header of TensorFlow.
//
// Sequences of uneven length lie one behind the other: request b has the rows [offsets[b],
// offsets[b + 1]), of which the last targets[b] are its targets, and those before its history. A
// row of the history attends itself and the rows before it, a target the whole history and itself.
// Arrays are dense and row-major. All arithmetic is float32, whatever the type of the values.
#ifndef HSTU_H
#define HSTU_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { HSTU_FLOAT32, HSTU_FLOAT16, HSTU_BFLOAT16 };

// Instruction sets; each level includes those before it.
enum { HSTU_PORTABLE, HSTU_AVX2, HSTU_AVX512 };

// The highest level that this CPU supports.
int hstu_cpu_level(void);

// Threads to run on. `run` calls task(argument, i) for each i of [0, tasks), in any order and on
// any threads, and returns when all have returned; it is not called for a single task.
typedef struct {
  int64_t count;
  void (*run)(void* pool, int64_t tasks, void (*task)(void* argument, int64_t i), void* argument);
  void* pool;
} HstuThreads;

// With H heads, A values of a query and a key, and V of a value, a projected row holds 2 H (V + A)
// values, [u: H V | v: H V | q: H A | k: H A], each part in order of heads, and an output row 3 H V
// values, [u' | av | y]:
//   u' = silu(u)
//   av = scale * sum over the attended rows j of silu(q . k_j / sqrt(A)) v_j, for each head
//   y = u' * (normalised(av) * gamma + beta), where each of `groups` equal parts of av has mean 0
//       and variance 1 after normalising: (av - mean) / sqrt(variance + epsilon)
// `rows` may exceed offsets[requests]: the output of the rows behind it is 0.
typedef struct {
  int32_t type;  // of projected, output and history
  int64_t heads, attention_dim, value_dim, groups;
  float scale, epsilon;
  int64_t rows, requests;
  const int32_t* offsets;  // [requests + 1], from 0, ascending, at most `rows`
  const void* projected;   // [rows, 2 H (V + A)]
  const float* gamma;      // [H V]
  const float* beta;       // [H V]
  // Either the history is part of the sequences, and these are their numbers of targets ..
  const int32_t* targets;  // [requests], at most the request's rows
  // .. or all rows are targets, and the history lies elsewhere: rows of values and keys,
  // [v: H V | k: H A], with offsets as above. One of `targets` and `history_offsets` is NULL.
  const void* history;
  const int32_t* history_offsets;
  int64_t history_rows;  // at least the last offset
} HstuAttention;

// Each of the functions below returns 0, or -1 if memory runs out. `level` is at most
// hstu_cpu_level(). Results do not depend on the number of threads.
int hstu_cpu_attention(int level, const HstuThreads* threads, const HstuAttention* attention,
                       void* output);

// output: that of hstu_cpu_attention. upstream: its gradient. The others are written.
typedef struct {
  const void* output;
  const void* upstream;
  void* projected;
  void* history;  // where attention->history_offsets is given
  float* gamma;
  float* beta;
} HstuAttentionGradient;

int hstu_cpu_attention_gradient(int level, const HstuThreads* threads,
                                const HstuAttention* attention,
                                const HstuAttentionGradient* gradient);

// n = normalised(x) * gamma + beta over each row; the output is n, or with `swish` x * sigmoid(n).
typedef struct {
  int32_t type;  // of x and the output
  int32_t swish;
  int64_t rows, width;
  float epsilon;
  const void* x;
  const float* gamma;
  const float* beta;
} HstuNorm;

int hstu_cpu_norm(int level, const HstuThreads* threads, const HstuNorm* norm, void* output);

int hstu_cpu_norm_gradient(int level, const HstuThreads* threads, const HstuNorm* norm,
                           const void* upstream, void* x, float* gamma, float* beta);

// output = factor * x where hash(key of the row, column) >= threshold, else 0. In arithmetic modulo
// 2^32, with mix(x) = { x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b;
// x ^= x >> 16 }, the hash is mix(mix(low ^ mix(high)) + column * 0x9e3779b9), where low and high
// are the halves of the key.
typedef struct {
  int32_t type;
  int64_t rows, width;
  uint32_t threshold;
  float factor;
  const void* x;
  const int64_t* keys;  // [rows]
} HstuDropout;

int hstu_cpu_dropout(int level, const HstuThreads* threads, const HstuDropout* dropout,
                     void* output);

// The same on a CUDA stream, with all arrays in device memory, offsets and targets too; they return
// without waiting for the end. Attention's dimensions are at most HSTU_CUDA_MOST_DIM. `tf32`:
// whether float32 products may use tensor cores, which keep 10 bits of each factor. Each returns
// NULL, or CUDA's message about what failed.
enum { HSTU_CUDA_MOST_DIM = 128 };

const char* hstu_cuda_attention(const HstuAttention* attention, int tf32, void* output,
                                void* stream);
const char* hstu_cuda_attention_gradient(const HstuAttention* attention,
                                         const HstuAttentionGradient* gradient, int tf32,
                                         float* scratch, void* stream);
const char* hstu_cuda_norm(const HstuNorm* norm, void* output, void* stream);
const char* hstu_cuda_norm_gradient(const HstuNorm* norm, const void* upstream, void* x,
                                    float* gamma, float* beta, float* scratch, void* stream);
const char* hstu_cuda_dropout(const HstuDropout* dropout, void* output, void* stream);

// Number of floats of scratch memory that the gradients need.
int64_t hstu_cuda_attention_scratch(const HstuAttention* attention);
int64_t hstu_cuda_norm_scratch(int64_t width);

#ifdef __cplusplus
}
#endif

#endif
