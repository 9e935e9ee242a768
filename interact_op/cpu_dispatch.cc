// Chooses the build of the CPU kernels for the instruction set at run time.

#include "interact.h"

typedef int Forward(const InteractBatch*, int64_t, int64_t, void*);
typedef int Backward(const InteractBatch*, int64_t, int64_t, const void*);

extern "C" {

Forward interact_forward_portable;
Backward interact_backward_portable;
#ifdef __x86_64__
Forward interact_forward_avx2, interact_forward_avx512;
Backward interact_backward_avx2, interact_backward_avx512;
#endif

int64_t interact_output_width(int64_t features, int64_t width) {
  const int64_t values = width + features * (features - 1) / 2;
  return (values + INTERACT_ALIGNMENT - 1) / INTERACT_ALIGNMENT * INTERACT_ALIGNMENT;
}

int interact_cpu_level(void) {
#ifdef __x86_64__
  // This also checks that the operating system saves these registers.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return __builtin_cpu_supports("avx512f") ? INTERACT_AVX512 : INTERACT_AVX2;
  }
#endif
  return INTERACT_PORTABLE;
}

int interact_cpu_forward(int level, const InteractBatch* batch, int64_t begin, int64_t end,
                         void* output) {
#ifdef __x86_64__
  static Forward* const levels[] = {interact_forward_portable, interact_forward_avx2,
                                    interact_forward_avx512};
  return levels[level](batch, begin, end, output);
#else
  (void)level;
  return interact_forward_portable(batch, begin, end, output);
#endif
}

int interact_cpu_backward(int level, const InteractBatch* batch, int64_t begin, int64_t end,
                          const void* upstream) {
#ifdef __x86_64__
  static Backward* const levels[] = {interact_backward_portable, interact_backward_avx2,
                                     interact_backward_avx512};
  return levels[level](batch, begin, end, upstream);
#else
  (void)level;
  return interact_backward_portable(batch, begin, end, upstream);
#endif
}

}  // extern "C"
