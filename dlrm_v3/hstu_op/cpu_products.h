// Products of matrices in register tiles, and what brings rows of any type into their form.
//
// Included once by each build of cpu_kernels.cc; everything has internal linkage.
#pragma once

#include "cpu_math.h"

namespace {

// Rows of `width` values of any type -> rows of floats times `factor`, `padded` values apart, with
// zeros behind the width.
template <typename T>
void copy_rows(const T* from, int64_t stride, int64_t rows, int64_t width, float factor, float* to,
               int64_t padded) {
  for (int64_t row = 0; row < rows; ++row, from += stride, to += padded) {
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes) store(to + d, load(from + d) * factor);
    for (; d < padded; d += kLanes) {
      store(to + d, d < width ? load(from + d, width - d) * factor : Vector{});
    }
  }
}

// The same, transposed: [width, HSTU_BLOCK], with zeros behind the last row up to a whole vector.
template <typename T>
void copy_columns(const T* from, int64_t stride, int64_t rows, int64_t width, float factor,
                  float* to) {
  for (int64_t row = 0; row < rows; row += kLanes, from += kLanes * stride) {
    const int64_t count = rows - row < kLanes ? rows - row : kLanes;
    for (int64_t d = 0; d < width; d += kLanes) {
      Vector tile[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        tile[i] = i < count ? load(from + i * stride + d, width - d) * factor : Vector{};
      }
      transpose(tile);
      const int64_t columns = width - d < kLanes ? width - d : kLanes;
      for (int i = 0; i < columns; ++i) store(to + (d + i) * HSTU_BLOCK + row, tile[i]);
    }
  }
}

// R rows of `to` (+)= their product, over all of `padded` columns.
template <Order order, int R>
ALWAYS_INLINE void add_product(const float* factors, int64_t stride, const float* y, int64_t padded,
                               int64_t depth, bool first, float* to) {
  const auto columns = [&](auto count, int64_t column) {
    constexpr int kCount = decltype(count)::value;
    Vector sums[R][kCount];
    float* const place = to + column;
    if (first) {
      clear(sums);
    } else {
      UNROLL for (int r = 0; r < R; ++r) {
        UNROLL for (int c = 0; c < kCount; ++c) {
          sums[r][c] = load(place + r * padded + c * kLanes);
        }
      }
    }
    multiply<order>(factors, stride, y + column, padded, depth, sums);
    UNROLL for (int r = 0; r < R; ++r) {
      UNROLL for (int c = 0; c < kCount; ++c) store(place + r * padded + c * kLanes, sums[r][c]);
    }
  };
  int64_t column = 0;
  for (; column + kLanes < padded; column += 2 * kLanes) {
    columns(std::integral_constant<int, 2>(), column);
  }
  if (column < padded) columns(std::integral_constant<int, 1>(), column);
}

}  // namespace
