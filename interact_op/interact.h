// The dot interaction of DLRM: kernels behind a C interface, without any header of TensorFlow.
//
// A sample has F vectors of `width` values. Its output is the first vector, then the dot products
// of all pairs in the order (1,0), (2,0), (2,1), (3,0) .., then zeros up to a multiple of
// INTERACT_ALIGNMENT values. The vectors come in groups, each a separate array, so that nobody has
// to concatenate them; group 0 holds only the first vector.
//
// All arithmetic is float32, whatever the type of the values.
#ifndef INTERACT_H
#define INTERACT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { INTERACT_ALIGNMENT = 8 };

enum { INTERACT_FLOAT32, INTERACT_FLOAT16, INTERACT_BFLOAT16 };

// Instruction sets; each level includes those before it.
enum { INTERACT_PORTABLE, INTERACT_AVX2, INTERACT_AVX512 };

// Arrays [batch, rows, width]: dense, row-major, aligned to their values' size.
typedef struct {
  const void* vectors;
  void* gradient;  // written by backward, not read; unused by forward
  int64_t rows;
} InteractGroup;

typedef struct {
  int32_t type;  // of all values
  int32_t group_count;
  const InteractGroup* groups;  // groups[0].rows == 1
  int64_t width;
} InteractBatch;

// Number of output values per sample, including padding.
int64_t interact_output_width(int64_t features, int64_t width);

// The highest level that this CPU supports.
int interact_cpu_level(void);

// Computes samples [begin, end) on the calling thread: groups' vectors -> output
// [batch, output width]. `level` is at most interact_cpu_level(). Returns 0, or -1 if memory runs
// out.
int interact_cpu_forward(int level, const InteractBatch* batch, int64_t begin, int64_t end,
                         void* output);

// Computes samples [begin, end) on the calling thread: groups' vectors and the gradient of the
// output [batch, output width] -> groups' gradients. Level and result as above.
int interact_cpu_backward(int level, const InteractBatch* batch, int64_t begin, int64_t end,
                          const void* upstream);

enum { INTERACT_CUDA_MAX_GROUPS = 32 };

// Compute the whole batch of `samples` on a CUDA stream, in device memory, and return without
// waiting for the end. `tf32`: whether float32 products may use tensor cores, which keep 10 bits of
// each factor. At most INTERACT_CUDA_MAX_GROUPS groups. The output and its gradient begin at
// multiples of 16 bytes. Each returns NULL, or CUDA's message about what failed.
const char* interact_cuda_forward(const InteractBatch* batch, int64_t samples, int tf32,
                                  void* output, void* stream);
const char* interact_cuda_backward(const InteractBatch* batch, int64_t samples, int tf32,
                                   const void* upstream, void* stream);

#ifdef __cplusplus
}
#endif

#endif
