// A vector register of floats, with loads from and stores to float32, float16 and bfloat16 memory.
//
// Included once by each build of cpu_kernels.cc, whose instruction set it uses. Everything has
// internal linkage, so that the linker cannot merge the functions of different builds.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
// Rows of a register tile: with two registers per row, the sums fill half of the registers.
constexpr int kRows = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRows = 6;
#else
constexpr int kLanes = 4;
constexpr int kRows = 6;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef int32_t Indices __attribute__((vector_size(4 * kLanes)));

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename To, typename From>
inline To bits_of(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "as many bits");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <typename To>
inline To read(const void* from) {
  To to;
  memcpy(&to, from, sizeof to);
  return to;
}

template <typename From>
inline void write(void* to, const From& from) {
  memcpy(to, &from, sizeof from);
}

inline Vector load(const float* from) { return read<Vector>(from); }

inline Vector load(const BFloat16* from) {
  return bits_of<Vector>(__builtin_convertvector(read<Halves>(from), Words) << 16);
}

inline void store(float* to, Vector values) { write(to, values); }

inline void store(BFloat16* to, Vector values) {
  const Words bits = bits_of<Words>(values);
  const Words to_nearest_even = bits + 0x7fff + (bits >> 16 & 1);
  const Words not_a_number = bits | 0x400000;  // remains a NaN when its low bits are dropped
  const Words rounded = (bits & 0x7fffffff) > 0x7f800000 ? not_a_number : to_nearest_even;
  write(to, __builtin_convertvector(rounded >> 16, Halves));
}

#if defined(__AVX512F__)

inline Vector load(const Float16* from) {
  return bits_of<Vector>(_mm512_cvtph_ps(read<__m256i>(from)));
}

inline void store(Float16* to, Vector values) {
  write(to, _mm512_cvtps_ph(bits_of<__m512>(values), _MM_FROUND_TO_NEAREST_INT));
}

#elif defined(__AVX2__)

inline Vector load(const Float16* from) {
  return bits_of<Vector>(_mm256_cvtph_ps(read<__m128i>(from)));
}

inline void store(Float16* to, Vector values) {
  write(to, _mm256_cvtps_ph(bits_of<__m256>(values), _MM_FROUND_TO_NEAREST_INT));
}

#else

// Neither may produce or read a subnormal float32: TensorFlow makes the CPU treat these as zero.

inline Vector load(const Float16* from) {
  const Words bits = __builtin_convertvector(read<Halves>(from), Words);
  const Words sign = (bits & 0x8000) << 16;
  const Words magnitude = (bits & 0x7fff) << 13;
  const Words normal = magnitude + (112u << 23);
  const Vector smallest = bits_of<Vector>(Words{} + (113u << 23));  // 2^-14
  const Words subnormal = bits_of<Words>(bits_of<Vector>(magnitude + (113u << 23)) - smallest);
  const Words special = magnitude | 0x7f800000;
  const Words finite = magnitude < (1u << 23) ? subnormal : normal;
  return bits_of<Vector>(sign | (magnitude < (31u << 23) ? finite : special));
}

inline void store(Float16* to, Vector values) {
  const Words bits = bits_of<Words>(values);
  const Words magnitude = bits & 0x7fffffff;
  const Words normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  // Adding 0.5 leaves the ten bits of a subnormal float16, rounded, in the lowest bits of the sum.
  const Words subnormal =
      bits_of<Words>(bits_of<Vector>(magnitude) + 0.5f) - bits_of<uint32_t>(0.5f);
  const Words finite = magnitude < (113u << 23) ? subnormal : normal;
  const Words special = magnitude > 0x7f800000 ? Words{} + 0x7e00 : Words{} + 0x7c00;
  const Words half = magnitude < (143u << 23) ? finite : special;
  write(to, __builtin_convertvector(half | (bits >> 16 & 0x8000), Halves));
}

#endif

// Loads the first `count` values, and zeros after them; reads no memory beyond.
template <typename T>
inline Vector load(const T* from, int64_t count) {
  if (count >= kLanes) return load(from);
  T values[kLanes] = {};
  memcpy(values, from, static_cast<size_t>(count) * sizeof(T));
  return load(values);
}

// Stores the first `count` values; writes no memory beyond.
template <typename T>
inline void store(T* to, Vector values, int64_t count) {
  if (count >= kLanes) return store(to, values);
  T converted[kLanes];
  store(converted, values);
  memcpy(to, converted, static_cast<size_t>(count) * sizeof(T));
}

template <size_t... I>
inline void transpose(Vector (&rows)[kLanes], std::index_sequence<I...>) {
  const Indices low = {static_cast<int32_t>(I / 2 + I % 2 * kLanes)...};
  const Indices high = low + kLanes / 2;
  // Each step rotates the bits of every value's index (row, column) by one; log2(kLanes) steps swap
  // row and column.
  for (int step = 1; step < kLanes; step *= 2) {
    Vector next[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], low);
      next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + kLanes / 2], high);
    }
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

inline void transpose(Vector (&rows)[kLanes]) {
  transpose(rows, std::make_index_sequence<kLanes>());
}

}  // namespace
