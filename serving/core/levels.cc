// Chooses the build of the kernels at run time.

#include "kernels.h"
#include "scorer.h"

extern const Kernels scorer_kernels_portable;
#ifdef __x86_64__
extern const Kernels scorer_kernels_avx2, scorer_kernels_avx2_vnni, scorer_kernels_avx512,
    scorer_kernels_avx512_vnni;
#endif

extern "C" int scorer_supports(int level) {
  if (level == SCORER_PORTABLE) return 1;
#ifdef __x86_64__
  // This also checks that the operating system saves these registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 =
      avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  switch (level) {
    case SCORER_AVX2:
      return avx2;
    case SCORER_AVX2_VNNI:
      return avx2 && __builtin_cpu_supports("avxvnni");
    case SCORER_AVX512:
      return avx512;
    case SCORER_AVX512_VNNI:
      return avx512 && __builtin_cpu_supports("avx512vnni");
  }
#endif
  return 0;
}

extern "C" int scorer_cpu_level(void) {
  int level = SCORER_LEVELS - 1;
  while (!scorer_supports(level)) --level;
  return level;
}

const Kernels& kernels_of(int level) {
#ifdef __x86_64__
  static const Kernels* const kernels[] = {&scorer_kernels_portable, &scorer_kernels_avx2,
                                           &scorer_kernels_avx2_vnni, &scorer_kernels_avx512,
                                           &scorer_kernels_avx512_vnni};
  return *kernels[level];
#else
  (void)level;
  return scorer_kernels_portable;
#endif
}
