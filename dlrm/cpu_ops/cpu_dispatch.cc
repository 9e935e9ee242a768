// Chooses the build of the CPU kernels for the instruction set at run time.

#include "mlp.h"

typedef void Pack(const MlpShape*, int, const float* const*, int64_t, int64_t, float*);
typedef void Forward(const MlpShape*, const float*, const float* const*, int64_t, const float*,
                     float*, float*, float*);
typedef void Errors(const MlpShape*, const float*, int64_t, const float*, const float*,
                    const float*, float*, float*);
typedef void Gradients(const MlpShape*, int32_t, int64_t, int64_t, int64_t, const float*,
                       const float*, const float*, int, float*, float*, float*);

namespace {

// A multiple of every level's panel.
int64_t padded(int64_t width) { return (width + 31) / 32 * 32; }

}  // namespace

extern "C" {

Pack mlp_pack_portable;
Forward mlp_forward_portable;
Errors mlp_errors_portable;
Gradients mlp_gradients_portable;
#ifdef __x86_64__
Pack mlp_pack_avx2, mlp_pack_avx512;
Forward mlp_forward_avx2, mlp_forward_avx512;
Errors mlp_errors_avx2, mlp_errors_avx512;
Gradients mlp_gradients_avx2, mlp_gradients_avx512;
#define LEVELS(function) {mlp_##function##_portable, mlp_##function##_avx2, mlp_##function##_avx512}
#else
#define LEVELS(function) {mlp_##function##_portable}
#endif

int mlp_cpu_level(void) {
#ifdef __x86_64__
  // This also checks that the operating system saves these registers.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return __builtin_cpu_supports("avx512f") ? MLP_AVX512 : MLP_AVX2;
  }
#endif
  return MLP_PORTABLE;
}

int64_t mlp_packed_size(const MlpShape* shape) {
  int64_t size = 0;
  for (int32_t i = 0; i < shape->layers; ++i) {
    size += padded(shape->widths[i]) * padded(shape->widths[i + 1]);
  }
  return size;
}

int64_t mlp_hidden_size(const MlpShape* shape) {
  return mlp_errors_size(shape) - padded(shape->widths[shape->layers]);
}

int64_t mlp_errors_size(const MlpShape* shape) {
  int64_t size = 0;
  for (int32_t i = 1; i <= shape->layers; ++i) size += padded(shape->widths[i]);
  return size;
}

int64_t mlp_scratch_size(const MlpShape* shape) { return padded(shape->widths[0]); }

void mlp_cpu_pack(int level, const MlpShape* shape, int transposed, const float* const* kernels,
                  int64_t part, int64_t parts, float* packed) {
  static Pack* const levels[] = LEVELS(pack);
  levels[level](shape, transposed, kernels, part, parts, packed);
}

void mlp_cpu_forward(int level, const MlpShape* shape, const float* packed,
                     const float* const* biases, int64_t samples, const float* input, float* hidden,
                     float* output, float* scratch) {
  static Forward* const levels[] = LEVELS(forward);
  levels[level](shape, packed, biases, samples, input, hidden, output, scratch);
}

void mlp_cpu_errors(int level, const MlpShape* shape, const float* packed, int64_t samples,
                    const float* hidden, const float* output, const float* upstream,
                    float* input_gradient, float* errors) {
  static Errors* const levels[] = LEVELS(errors);
  levels[level](shape, packed, samples, hidden, output, upstream, input_gradient, errors);
}

void mlp_cpu_gradients(int level, const MlpShape* shape, int32_t layer, int64_t first, int64_t last,
                       int64_t samples, const float* input, const float* hidden,
                       const float* errors, int add, float* kernel, float* bias, float* scratch) {
  static Gradients* const levels[] = LEVELS(gradients);
  levels[level](shape, layer, first, last, samples, input, hidden, errors, add, kernel, bias,
                scratch);
}

}  // extern "C"
