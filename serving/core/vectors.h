// Vectors of one instruction set, beyond those of interact_op: integers, fused products, rounding.
//
// It knows neither layers nor rows. Like the other headers of kernels.cc it belongs to the build of
// each level and has internal linkage, so that the linker cannot merge the functions of different
// builds. Nothing is contracted by the compiler: float layers ask for fused products where there
// are any, and all else rounds alike on all levels.
#pragma once

#include "../../interact_op/cpu_vector.h"

#define UNROLL _Pragma("GCC unroll 16")
#define ALWAYS_INLINE __attribute__((always_inline)) inline

namespace {

constexpr int kLine = 64;  // bytes of a cache line

typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));

ALWAYS_INLINE Vector multiply_add(Vector a, Vector b, Vector sum) {
#if defined(__AVX512F__)
  return bits_of<Vector>(
      _mm512_fmadd_ps(bits_of<__m512>(a), bits_of<__m512>(b), bits_of<__m512>(sum)));
#elif defined(__AVX2__)
  return bits_of<Vector>(
      _mm256_fmadd_ps(bits_of<__m256>(a), bits_of<__m256>(b), bits_of<__m256>(sum)));
#else
  return a * b + sum;
#endif
}

ALWAYS_INLINE Vector larger(Vector a, Vector b) { return a > b ? a : b; }
ALWAYS_INLINE Vector smaller(Vector a, Vector b) { return a < b ? a : b; }
ALWAYS_INLINE Vector to_floats(Integers values) { return __builtin_convertvector(values, Vector); }

// The nearest integers, halves to even, of values within the range of uint8_t around zero.
ALWAYS_INLINE Vector nearest(Vector values) {
  const Vector magic = Vector{} + 12582912.0f;  // 1.5 * 2^23, whose neighbours are integers
  return (values + magic) - magic;
}

}  // namespace
