// Products of matrices that lie in panels: groups of kPanel neighbouring columns, each stored row
// by row, so that whatever a product reads next lies side by side.
//
// Included once by each build of cpu_kernels.cc; everything has internal linkage.
#pragma once

#include "../../interact_op/cpu_tiles.h"

namespace {

constexpr int64_t kPanel = 2 * kLanes;
// Rows of the second factor, or rows of the product, for which the other one's values stay in the
// second-level cache.
constexpr int64_t kChunk = 256;

inline int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }

// The panel that begins at `column` of a matrix with this number of rows.
template <typename T>
inline T* panel_at(T* panels, int64_t rows, int64_t column) {
  return panels + column * rows;
}

// Columns [first, last) of a matrix [rows, columns] -> panels; first is a multiple of kPanel.
// `change(values, row, column)` is applied to the vectors; `stride` lies between rows.
template <typename Change>
void pack_panels(const float* from, int64_t stride, int64_t rows, int64_t columns, int64_t first,
                 int64_t last, const Change& change, float* panels) {
  for (int64_t column = first; column < last; column += kLanes) {
    float* to = panel_at(panels, rows, column / kPanel * kPanel) + column % kPanel;
    const int64_t count = columns - column;
    for (int64_t row = 0; row < rows; ++row, to += kPanel) {
      const float* const x = from + row * stride + column;
      store(to, count > 0 ? change(load(x, count), row, column) : Vector{});
    }
  }
}

// Columns [first, last) of the transpose of a matrix [columns, rows] -> panels.
inline void pack_transposed(const float* from, int64_t rows, int64_t columns, int64_t first,
                            int64_t last, float* panels) {
  for (int64_t column = first; column < last; column += kLanes) {
    float* const to = panel_at(panels, rows, column / kPanel * kPanel) + column % kPanel;
    for (int64_t row = 0; row < rows; row += kLanes) {
      Vector tile[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const bool inside = column + i < columns;
        tile[i] = inside ? load(from + (column + i) * rows + row, rows - row) : Vector{};
      }
      transpose(tile);
      const int64_t count = at_most(rows - row, kLanes);
      for (int i = 0; i < count; ++i) store(to + (row + i) * kPanel, tile[i]);
    }
  }
}

// Where a product's tile goes: a panel, or a part of a row-major matrix.
struct Place {
  float* values;
  int64_t stride;   // between rows
  int64_t columns;  // from here to the end of the row

  template <int R, int C>
  ALWAYS_INLINE void read(Vector (&sums)[R][C]) const {
    UNROLL for (int r = 0; r < R; ++r) {
      UNROLL for (int c = 0; c < C; ++c) {
        const float* const from = values + r * stride + c * kLanes;
        sums[r][c] = c < C - 1 ? load(from) : load(from, columns - c * kLanes);
      }
    }
  }

  template <int R, int C>
  ALWAYS_INLINE void write(const Vector (&sums)[R][C]) const {
    UNROLL for (int r = 0; r < R; ++r) {
      UNROLL for (int c = 0; c < C; ++c) {
        float* const to = values + r * stride + c * kLanes;
        c < C - 1 ? store(to, sums[r][c]) : store(to, sums[r][c], columns - c * kLanes);
      }
    }
  }
};

// finish(x [rows, depth] . y [depth, columns] + bias), all but bias in panels; bias may be NULL.
// `finish(values, row, column)` is applied to vectors; `place(row, column)` says where they go.
template <typename Finish, typename At>
void multiply_panels(const float* x, int64_t rows, int64_t depth, const float* y, int64_t columns,
                     const float* bias, const Finish& finish, const At& place) {
  for (int64_t first = 0; first < depth; first += kChunk) {
    const int64_t steps = at_most(depth - first, kChunk);
    const bool begins = first == 0, ends = first + steps == depth;
    for_panels(columns, [&](auto vectors, int64_t column) {
      constexpr int C = decltype(vectors)::value;
      const float* const panel = panel_at(y, depth, column) + first * kPanel;
      Vector start[1][C] = {};
      if (bias) Place{const_cast<float*>(bias) + column, 0, columns - column}.read(start);
      for_row_tiles(0, rows, [&](auto height, int64_t row) {
        constexpr int R = decltype(height)::value;
        const Place tile = place(row, column);
        Vector sums[R][C];
        if (begins) {
          UNROLL for (int r = 0; r < R; ++r) {
            UNROLL for (int c = 0; c < C; ++c) sums[r][c] = start[0][c];
          }
        } else {
          tile.read(sums);
        }
        for (int64_t step = 0; step < steps; step += kPanel) {
          multiply<kAlongSteps>(panel_at(x, rows, first + step) + row * kPanel, kPanel,
                                panel + step * kPanel, kPanel, at_most(steps - step, kPanel), sums);
        }
        if (ends) {
          UNROLL for (int r = 0; r < R; ++r) {
            UNROLL for (int c = 0; c < C; ++c) {
              sums[r][c] = finish(sums[r][c], row + r, column + c * kLanes);
            }
          }
        }
        tile.write(sums);
      });
    });
  }
}

// to [rows, columns] (+)= the transpose of x [depth, rows] . y [depth, columns], both in panels.
inline void multiply_transposed(const float* x, int64_t rows, int64_t depth, const float* y,
                                int64_t columns, bool add, float* to) {
  for (int64_t first = 0; first < rows; first += kChunk) {
    const int64_t end = at_most(first + kChunk, rows);
    for_panels(columns, [&](auto vectors, int64_t column) {
      constexpr int C = decltype(vectors)::value;
      const float* const panel = panel_at(y, depth, column);
      for (int64_t begin = first; begin < end; begin += kPanel) {
        const float* const values = panel_at(x, depth, begin);
        for_row_tiles(0, at_most(end - begin, kPanel), [&](auto height, int64_t row) {
          constexpr int R = decltype(height)::value;
          const Place tile = {to + (begin + row) * columns + column, columns, columns - column};
          Vector sums[R][C] = {};
          if (add) tile.read(sums);
          UNROLL for (int r = 0; r < R; ++r) __builtin_prefetch(tile.values + (R + r) * columns, 1);
          multiply<kAlongRows>(values + row, kPanel, panel, kPanel, depth, sums);
          tile.write(sums);
        });
      }
    });
  }
}

}  // namespace
