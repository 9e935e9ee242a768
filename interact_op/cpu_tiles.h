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

}  // namespace
