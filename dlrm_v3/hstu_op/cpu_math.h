// Functions of vector registers: the logistic function, SiLU, sums of lanes.
//
// Included once by each build of cpu_kernels.cc; everything has internal linkage.
#pragma once

#include "../../interact_op/cpu_tiles.h"

namespace {

typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));

template <size_t... I>
inline Integers lane_numbers(std::index_sequence<I...>) {
  return Integers{static_cast<int32_t>(I)...};
}

// 0, 1, 2 ..
inline Integers lane_numbers() { return lane_numbers(std::make_index_sequence<kLanes>()); }

// Both return `other` if `values` is not a number, and the compiler makes one instruction of each.
ALWAYS_INLINE Vector at_most(Vector values, Vector other) {
#if defined(__AVX512F__)
  return bits_of<Vector>(_mm512_min_ps(bits_of<__m512>(values), bits_of<__m512>(other)));
#elif defined(__AVX2__)
  return bits_of<Vector>(_mm256_min_ps(bits_of<__m256>(values), bits_of<__m256>(other)));
#else
  return values < other ? values : other;
#endif
}

ALWAYS_INLINE Vector at_least(Vector values, Vector other) {
#if defined(__AVX512F__)
  return bits_of<Vector>(_mm512_max_ps(bits_of<__m512>(values), bits_of<__m512>(other)));
#elif defined(__AVX2__)
  return bits_of<Vector>(_mm256_max_ps(bits_of<__m256>(values), bits_of<__m256>(other)));
#else
  return values > other ? values : other;
#endif
}

// 1 / x to rounding, for x of 1 to 2^101.
ALWAYS_INLINE Vector reciprocal(Vector x) {
#if defined(__AVX512F__)
  const Vector close = bits_of<Vector>(_mm512_rcp14_ps(bits_of<__m512>(x)));
  return close + close * (1.0f - x * close);
#else
  return 1.0f / x;
#endif
}

// 1 / (1 + exp(-x)), within 2e-7 of its value for x > -60; 2^-100 at least.
ALWAYS_INLINE Vector sigmoid(Vector x) {
  const Vector limit = Vector{} + 100.0f;
  // exp(-x) = 2^power = 2^whole * 2^part, with |part| <= 1/2; not a number becomes the limit, so
  // callers multiply by x.
  const Vector power = at_least(at_most(x * -1.44269504f, limit), -limit);
  const Vector magic = Vector{} + 12582912.0f;  // 1.5 * 2^23, whose neighbours are integers
  const Vector shifted = power + magic;
  const Vector part = power - (shifted - magic);
  const Vector whole = bits_of<Vector>((bits_of<Integers>(shifted) + 127) << 23);
  Vector series = part * 1.32764701e-3f + 9.67554096e-3f;
  series = series * part + 5.55071309e-2f;
  series = series * part + 0.240221202f;
  series = series * part + 0.693146944f;
  series = series * part + 1.0f;
  return reciprocal(series * whole + 1.0f);
}

inline float sum_of_lanes(Vector values) {
  float lanes[kLanes];
  store(lanes, values);
  for (int step = kLanes / 2; step; step /= 2) {
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  }
  return lanes[0];
}

}  // namespace
