// How the CPU kernels cut matrices into register tiles; shared by all kernels of the project.
//
// Like cpu_vector.h it belongs to one build of them and has internal linkage.
#pragma once

#include <stdint.h>

#include <utility>

#include "cpu_vector.h"

#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)

// Sums stay in registers only if the compiler unrolls the loops over them before it places arrays.
#define UNROLL _Pragma("GCC unroll 16")
#define ALWAYS_INLINE __attribute__((always_inline)) inline

namespace {

inline int64_t rounded_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Calls `tile` with `count` as a compile-time constant; 1 <= count <= kRows.
template <typename Tile, size_t... I>
inline void with_constant(int64_t count, const Tile& tile, std::index_sequence<I...>) {
  (void)((count == I + 1 && (tile(std::integral_constant<int, I + 1>()), true)) || ...);
}

// Cuts rows [begin, end) into tiles of nearly equal height, at most kRows each.
template <typename Tile>
inline void for_row_tiles(int64_t begin, int64_t end, const Tile& tile) {
  const int64_t tiles = (end - begin + kRows - 1) / kRows;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = begin + (end - begin) * i / tiles;
    const int64_t last = begin + (end - begin) * (i + 1) / tiles;
    const auto call = [&](auto rows) { tile(rows, first); };
    with_constant(last - first, call, std::make_index_sequence<kRows>());
  }
}

// Calls panel(constant number of vectors, first column) for all of `count` columns.
template <typename Panel>
ALWAYS_INLINE void for_panels(int64_t count, const Panel& panel) {
  int64_t column = 0;
  for (; column + kLanes < count; column += 2 * kLanes) {
    panel(std::integral_constant<int, 2>(), column);
  }
  if (column < count) panel(std::integral_constant<int, 1>(), column);
}

// The factors of a product, one for each row and step: `along_rows`: those of a step lie side by
// side; else those of a row do.
enum Order { kAlongRows, kAlongSteps };

// sums[r] += sum over `depth` steps of factor(r, step) * y[step], for R rows and C vectors of
// columns.
template <Order order, int R, int C>
ALWAYS_INLINE void multiply(const float* factors, int64_t stride, const float* y, int64_t y_stride,
                            int64_t depth, Vector (&sums)[R][C]) {
  const float* rows[R];
  UNROLL for (int r = 0; r < R; ++r) rows[r] = factors + r * (order == kAlongRows ? 1 : stride);
  for (int64_t step = 0; step < depth; ++step, y += y_stride) {
    Vector x[C];
    UNROLL for (int c = 0; c < C; ++c) x[c] = load(y + c * kLanes);
    const int64_t place = order == kAlongRows ? step * stride : step;
    UNROLL for (int r = 0; r < R; ++r) {
      UNROLL for (int c = 0; c < C; ++c) sums[r][c] += rows[r][place] * x[c];
    }
  }
}

template <int R, int C>
ALWAYS_INLINE void clear(Vector (&sums)[R][C]) {
  UNROLL for (int r = 0; r < R; ++r) { UNROLL for (int c = 0; c < C; ++c) sums[r][c] = Vector{}; }
}

}  // namespace
