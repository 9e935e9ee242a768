// Fully connected layers with ReLU, forward and backward, on CPUs: kernels behind a C interface,
// without any header of TensorFlow.
//
// A block of samples passes through all layers before the next block begins, so that what a layer
// reads still lies in the caches. All values are float32; matrices are dense and row-major unless
// they are said to be packed.
#ifndef MLP_H
#define MLP_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Instruction sets; each level includes those before it.
enum { MLP_PORTABLE, MLP_AVX2, MLP_AVX512 };

// A good number of samples of a block, and of a kernel's rows whose gradient is computed at a time;
// the latter is a multiple of every panel.
enum { MLP_BLOCK = 256, MLP_ROWS = 128 };

typedef struct {
  int32_t layers;
  int32_t last_relu;      // whether the last layer has a ReLU; all others have one
  const int64_t* widths;  // [layers + 1]: values of a sample before the first layer and after each
} MlpShape;

// The highest level that this CPU supports.
int mlp_cpu_level(void);

// Number of floats that all kernels take when they are packed, in either direction.
int64_t mlp_packed_size(const MlpShape* shape);

// Number of floats, for each sample of a block, that forward keeps for the backward pass.
int64_t mlp_hidden_size(const MlpShape* shape);

// Number of floats, for each sample of a block, that errors keeps for gradients.
int64_t mlp_errors_size(const MlpShape* shape);

// Number of floats, for each sample of a block, that forward or gradients needs as scratch memory.
int64_t mlp_scratch_size(const MlpShape* shape);

// Packs the kernels [inputs, outputs] of all layers for forward (`transposed` 0) or errors (1).
// Each of `parts` calls writes its share of `packed`, in any order. `level` is at most
// mlp_cpu_level(), here and below.
void mlp_cpu_pack(int level, const MlpShape* shape, int transposed, const float* const* kernels,
                  int64_t part, int64_t parts, float* packed);

// Computes a block on the calling thread: input [samples, widths[0]] -> output
// [samples, widths[layers]], and `hidden`, in panels.
void mlp_cpu_forward(int level, const MlpShape* shape, const float* packed,
                     const float* const* biases, int64_t samples, const float* input, float* hidden,
                     float* output, float* scratch);

// Computes, on the calling thread, the errors of a block from `upstream`, the gradient of the
// output: the gradients of what each layer computes before its ReLU, in panels, and that of the
// input, which is written to `input_gradient` unless it is NULL. `hidden` and `output` are those of
// forward.
void mlp_cpu_errors(int level, const MlpShape* shape, const float* packed, int64_t samples,
                    const float* hidden, const float* output, const float* upstream,
                    float* input_gradient, float* errors);

// Computes, on the calling thread, a block's share of the gradient of rows [first, last) of a
// layer's kernel [inputs, outputs], and with the first row that of the bias; `first` is a multiple
// of MLP_ROWS. `add` says whether it is added to what is there. `input`, `hidden` and `errors` are
// those of the block.
void mlp_cpu_gradients(int level, const MlpShape* shape, int32_t layer, int64_t first, int64_t last,
                       int64_t samples, const float* input, const float* hidden,
                       const float* errors, int add, float* kernel, float* bias, float* scratch);

#ifdef __cplusplus
}
#endif

#endif
