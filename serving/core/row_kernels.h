// Rows of tables of any type, decoded to float32 where the interaction reads them.
//
// It knows addresses alone: neither ids nor whether a row lies in memory or in a file.
#pragma once

#include "kernels.h"
#include "scorer.h"
#include "vectors.h"

namespace {

constexpr int kPrefetchRows = 8;  // asked for ahead

// The first of kLanes values of one byte as floats.
template <typename Byte>
ALWAYS_INLINE Vector load_bytes(const char* from, int64_t count) {
  char bytes[kLanes] = {};
  const char* source = from;
  if (count < kLanes) {
    memcpy(bytes, from, static_cast<size_t>(count));
    source = bytes;
  }
#if defined(__AVX512F__)
  const __m128i packed = read<__m128i>(source);
  return bits_of<Vector>(_mm512_cvtepi32_ps(Byte(-1) < 0 ? _mm512_cvtepi8_epi32(packed)
                                                         : _mm512_cvtepu8_epi32(packed)));
#elif defined(__AVX2__)
  const __m128i packed = _mm_cvtsi64_si128(read<int64_t>(source));
  return bits_of<Vector>(_mm256_cvtepi32_ps(Byte(-1) < 0 ? _mm256_cvtepi8_epi32(packed)
                                                         : _mm256_cvtepu8_epi32(packed)));
#else
  Vector values;
  for (int i = 0; i < kLanes; ++i) values[i] = static_cast<float>(static_cast<Byte>(source[i]));
  return values;
#endif
}

template <typename Decode>
ALWAYS_INLINE void gather_rows(const GatherCall& call, int64_t row_bytes, const Decode& decode) {
  const int64_t count = call.samples * call.tables;
  int64_t table = 0;
  float* sample = call.output;
  for (int64_t i = 0; i < count; ++i) {
    if (i + kPrefetchRows < count) {
      const char* const coming = call.rows[i + kPrefetchRows];
      for (int64_t at = 0; at < row_bytes; at += kLine) __builtin_prefetch(coming + at);
    }
    const int64_t place = call.tables_listed[table];
    decode(call.rows[i], place, sample + place * call.width);
    if (++table == call.tables) {
      table = 0;
      sample += call.stride;
    }
  }
}

void gather(const GatherCall& call) {
  const int64_t width = call.width;
  switch (call.row_type) {
    case SCORER_FLOAT32:
      gather_rows(call, width * 4, [&](const char* row, int64_t, float* to) {
        const float* const from = reinterpret_cast<const float*>(row);
        for (int64_t i = 0; i < width; i += kLanes) {
          store(to + i, load(from + i, width - i), width - i);
        }
      });
      break;
    case SCORER_FLOAT16:
      gather_rows(call, width * 2, [&](const char* row, int64_t, float* to) {
        const Float16* const from = reinterpret_cast<const Float16*>(row);
        for (int64_t i = 0; i < width; i += kLanes) {
          store(to + i, load(from + i, width - i), width - i);
        }
      });
      break;
    case SCORER_INT8:
      gather_rows(call, width, [&](const char* row, int64_t table, float* to) {
        const Vector scale = Vector{} + call.scales[table];
        for (int64_t i = 0; i < width; i += kLanes) {
          store(to + i, load_bytes<int8_t>(row + i, width - i) * scale, width - i);
        }
      });
      break;
    default:
      gather_rows(call, width + 8, [&](const char* row, int64_t, float* to) {
        const Vector scale = Vector{} + read<float>(row + width);
        const Vector bias = Vector{} + read<float>(row + width + 4);
        for (int64_t i = 0; i < width; i += kLanes) {
          store(to + i, load_bytes<uint8_t>(row + i, width - i) * scale + bias, width - i);
        }
      });
  }
}

}  // namespace
