// Rows of tables of any type, decoded to float32 where the interaction reads them, alone or pooled.
//
// It knows addresses alone: neither ids nor whether a row lies in memory or in a file.
#pragma once

#include "kernels.h"
#include "scorer.h"
#include "vectors.h"

namespace {

constexpr int kPrefetchRows = 8;  // asked for ahead

ALWAYS_INLINE void prefetch_row(const char* row, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(row + at);
}

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

// decode(row, table) gives what makes the floats of a row from a place on.
template <typename Decode>
ALWAYS_INLINE void copy_rows(const GatherCall& call, int64_t row_bytes, const Decode& decode) {
  const int64_t count = call.samples * call.tables;
  int64_t table = 0;
  float* sample = call.output;
  for (int64_t i = 0; i < count; ++i) {
    if (i + kPrefetchRows < count) prefetch_row(call.rows[i + kPrefetchRows], row_bytes);
    const int64_t place = call.tables_listed[table];
    const auto values = decode(call.rows[i], place);
    float* const to = sample + place * call.width;
    for (int64_t j = 0; j < call.width; j += kLanes) store(to + j, values(j), call.width - j);
    if (++table == call.tables) {
      table = 0;
      sample += call.stride;
    }
  }
}

// The sum or mean of the rows of each bag; that of no rows is 0.
template <typename Decode>
ALWAYS_INLINE void pool_rows(const GatherCall& call, int64_t row_bytes, const Decode& decode) {
  const int64_t* start = call.starts;
  const int64_t end = start[call.samples * call.tables];
  float* sample = call.output;
  for (int64_t s = 0; s < call.samples; ++s, sample += call.stride) {
    for (int64_t table = 0; table < call.tables; ++table, ++start) {
      const int64_t place = call.tables_listed[table], ids = start[1] - start[0];
      const bool mean = call.pooling[place] == SCORER_BAG_MEAN && ids > 1;
      const Vector scale = Vector{} + (mean ? 1.0f / static_cast<float>(ids) : 1.0f);
      float* const to = sample + place * call.width;
      for (int64_t i = start[0]; i < start[1] && i + kPrefetchRows < end; ++i) {
        prefetch_row(call.rows[i + kPrefetchRows], row_bytes);
      }
      for (int64_t j = 0; j < call.width; j += kLanes) {
        Vector sum = {};
        for (int64_t i = start[0]; i < start[1]; ++i) {
          const Vector values = decode(call.rows[i], place)(j);
          sum += call.weights ? values * (Vector{} + call.weights[i]) : values;
        }
        store(to + j, sum * scale, call.width - j);
      }
    }
  }
}

template <typename Decode>
ALWAYS_INLINE void gather_rows(const GatherCall& call, int64_t row_bytes, const Decode& decode) {
  if (call.starts) {
    pool_rows(call, row_bytes, decode);
  } else {
    copy_rows(call, row_bytes, decode);
  }
}

void gather(const GatherCall& call) {
  const int64_t width = call.width;
  switch (call.row_type) {
    case SCORER_FLOAT32:
      gather_rows(call, width * 4, [width](const char* row, int64_t) {
        const float* const from = reinterpret_cast<const float*>(row);
        return [=](int64_t j) { return load(from + j, width - j); };
      });
      break;
    case SCORER_FLOAT16:
      gather_rows(call, width * 2, [width](const char* row, int64_t) {
        const Float16* const from = reinterpret_cast<const Float16*>(row);
        return [=](int64_t j) { return load(from + j, width - j); };
      });
      break;
    case SCORER_INT8:
      gather_rows(call, width, [&call, width](const char* row, int64_t table) {
        const Vector scale = Vector{} + call.scales[table];
        return [=](int64_t j) { return load_bytes<int8_t>(row + j, width - j) * scale; };
      });
      break;
    default:
      gather_rows(call, width + 8, [width](const char* row, int64_t) {
        const Vector scale = Vector{} + read<float>(row + width);
        const Vector bias = Vector{} + read<float>(row + width + 4);
        return [=](int64_t j) { return load_bytes<uint8_t>(row + j, width - j) * scale + bias; };
      });
  }
}

}  // namespace
