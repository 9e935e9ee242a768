// Finds out which instruction sets this CPU has, and names each one's build of the kernels.
//
// It knows nothing of what kernels do.

#include "kernels.h"
#include "scorer.h"

extern const Kernels scorer_kernels_portable;
#ifdef __x86_64__
extern const Kernels scorer_kernels_avx2, scorer_kernels_avx2_vnni, scorer_kernels_avx512,
    scorer_kernels_avx512_vnni, scorer_kernels_avx512_amx;

#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

// Linux gives the registers of the matrix unit to processes that ask for them.
static bool may_use_matrices() {
#ifdef __linux__
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
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
    case SCORER_AVX512_AMX:
      return avx512 && __builtin_cpu_supports("avx512vnni") &&
             __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("amx-tile") &&
             __builtin_cpu_supports("amx-int8") && __builtin_cpu_supports("amx-bf16") &&
             may_use_matrices();
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
  static const Kernels* const kernels[] = {&scorer_kernels_portable,    &scorer_kernels_avx2,
                                           &scorer_kernels_avx2_vnni,   &scorer_kernels_avx512,
                                           &scorer_kernels_avx512_vnni, &scorer_kernels_avx512_amx};
  return *kernels[level];
#else
  (void)level;
  return scorer_kernels_portable;
#endif
}
