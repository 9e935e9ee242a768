// Layers in the matrix unit (AMX) of a CPU that has one: int8 layers as they are, and float layers
// whose inputs and weights are split into parts of bfloat16. kSplit is NULL elsewhere.
//
// It does not know which requests are split. Sums of int8 layers are exact; those of split floats
// are as exact as the float layers', but in another order, so their last bits differ.
#pragma once

#include "layer_kernels.h"

namespace {

#if defined(__AMX_INT8__)

// The matrix unit multiplies 16 samples and 64 inputs by 64 inputs and 16 columns at once.
constexpr int kMatrixRows = 16;
constexpr int64_t kSmallPanel = 16 << 10;
constexpr int kFewestMatrixRows = 4;  // below, vectors are as fast

struct alignas(kLine) MatrixShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {kLine, kLine, kLine, kLine, kLine, kLine, kLine, kLine};
  uint8_t rows[16] = {kMatrixRows, kMatrixRows, kMatrixRows, kMatrixRows,
                      kMatrixRows, kMatrixRows, kMatrixRows, kMatrixRows};
};

// Sums of 16 samples, or 32 if there are `two` times as many, for one panel: [32, panel]. Samples
// beyond the last one are read from the buffer of the block and mean nothing.
ALWAYS_INLINE void sum_matrices(const uint32_t* input, int64_t stride, int64_t words,
                                const int8_t* kernel, bool two, int32_t* sums) {
  constexpr int kPanelBytes = kPanel * kGroup;
  // A small panel stays in the first cache from one tile to the next.
  const int64_t read_ahead = words * kPanelBytes > kSmallPanel ? kMatrixRows * kPanelBytes : 0;
  const int64_t input_bytes = stride * 4;
  const uint32_t* const lower = input + kMatrixRows * stride;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < words; k += kMatrixRows, kernel += kMatrixRows * kPanelBytes) {
    for (int64_t ahead = 0; ahead < read_ahead; ahead += kLine) {
      __builtin_prefetch(kernel + kMatrixRows * kPanelBytes + ahead);
    }
    _tile_loadd(6, kernel, kPanelBytes);
    _tile_loadd(7, kernel + kLine, kPanelBytes);
    _tile_loadd(4, input + k, input_bytes);
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    if (two) {
      _tile_loadd(5, lower + k, input_bytes);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  }
  _tile_stored(0, sums, kPanel * 4);
  _tile_stored(1, sums + kLanes, kPanel * 4);
  if (two) {
    _tile_stored(2, sums + kMatrixRows * kPanel, kPanel * 4);
    _tile_stored(3, sums + kMatrixRows * kPanel + kLanes, kPanel * 4);
  }
}

// The parts of three bfloat16 that add up to a float: 24 bits of it.
constexpr int kParts = 3;

// The same sums for floats in parts: x = x0 + x1 + x2 and w = w0 + w1 + w2. Of the nine products of
// parts, those left out are below 2^-24 of |x w|, as are the errors of the parts; the others are
// exact, and their sums are rounded to float as those of floats would be. (The method: Henry, Tang
// and Heinecke, Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision
// Computations, 2019.)
ALWAYS_INLINE void sum_split_matrices(const uint32_t* input, int64_t stride, int64_t part_stride,
                                      int64_t words, const uint16_t* kernel, bool two,
                                      float* sums) {
  constexpr int kPanelBytes = kPanel * sizeof(uint32_t);
  const int64_t input_bytes = stride * 4, kernel_part = words * kPanel * 2;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  // Tiles 4 and 5 hold a part of the inputs, tiles 6 and 7 one of the weights.
  const auto load_inputs = [&](int part, int64_t k) {
    const uint32_t* const from = input + part * part_stride + k;
    _tile_loadd(4, from, input_bytes);
    if (two) _tile_loadd(5, from + kMatrixRows * stride, input_bytes);
  };
  const auto load_weights = [&](int part) {
    _tile_loadd(6, kernel + part * kernel_part, kPanelBytes);
    _tile_loadd(7, kernel + part * kernel_part + kLine / 2, kPanelBytes);
  };
  const auto multiply = [&] {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (two) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  };
  for (int64_t k = 0; k < words; k += kMatrixRows, kernel += kMatrixRows * kPanel * 2) {
    load_weights(2);
    load_inputs(0, k);
    multiply();
    load_weights(1);
    multiply();
    load_inputs(1, k);
    multiply();
    load_weights(0);
    multiply();
    load_inputs(2, k);
    multiply();
    load_inputs(0, k);
    multiply();
  }
  _tile_stored(0, sums, kPanelBytes);
  _tile_stored(1, sums + kLanes, kPanelBytes);
  if (two) {
    _tile_stored(2, sums + kMatrixRows * kPanel, kPanelBytes);
    _tile_stored(3, sums + kMatrixRows * kPanel + kLanes, kPanelBytes);
  }
}

// Splits the inputs of a layer into parts: pairs of bfloat16, zero beyond the last input.
void split(const PanelLayer& layer, const float* input, int64_t stride, int64_t rows,
           uint32_t* words, int64_t word_stride, int64_t part_stride) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t word = 0; word < layer.words; word += kLanes) {
      const int64_t at = 2 * word;
      Vector halves[2];
      for (int half = 0; half < 2; ++half) {
        const int64_t left = layer.inputs - at - half * kLanes;
        halves[half] = left > 0 ? load(input + row * stride + at + half * kLanes, left) : Vector{};
      }
      uint32_t* to = words + row * word_stride + word;
      for (int part = 0; part < kParts; ++part, to += part_stride) {
        const __m512i both = bits_of<__m512i>(
            _mm512_cvtne2ps_pbh(bits_of<__m512>(halves[1]), bits_of<__m512>(halves[0])));
        write(to, both);
        const __m256i packed[2] = {_mm512_castsi512_si256(both),
                                   _mm512_extracti64x4_epi64(both, 1)};
        for (int half = 0; half < 2; ++half) {
          halves[half] -=
              bits_of<Vector>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(packed[half]), 16));
        }
      }
    }
  }
}

template <int R, typename Sum>
ALWAYS_INLINE void store_matrix_rows(const LayerCall& call, int64_t row, int64_t column,
                                     const int32_t* from) {
  Sum sums[R][kPanelVectors];
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int v = 0; v < kPanelVectors; ++v) {
      sums[r][v] = read<Sum>(from + r * kPanel + v * kLanes);
    }
  }
  store_tile(call, row, column, sums);
}

// Calls sum(panel, first row, whether there are rows for two matrices, sums [32, panel]).
template <typename Sum, typename Call>
ALWAYS_INLINE void for_matrices(const LayerCall& call, const Call& sum) {
  const MatrixShapes shapes;
  alignas(kLine) int32_t sums[2 * kMatrixRows * kPanel];
  _tile_loadconfig(&shapes);
  for (int64_t panel = call.first; panel < call.last; ++panel) {
    for (int64_t first = 0; first < call.rows; first += 2 * kMatrixRows) {
      const int64_t left = call.rows - first;
      sum(panel, first, left > kMatrixRows, sums);
      const int64_t rows = left < 2 * kMatrixRows ? left : 2 * kMatrixRows;
      constexpr int kTogether = 4;
      int64_t row = 0;
      for (; row + kTogether <= rows; row += kTogether) {
        store_matrix_rows<kTogether, Sum>(call, first + row, panel * kPanel, sums + row * kPanel);
      }
      for (; row < rows; ++row) {
        store_matrix_rows<1, Sum>(call, first + row, panel * kPanel, sums + row * kPanel);
      }
    }
  }
  _tile_release();
}

void multiply_matrices(const LayerCall& call) {
  const int64_t words = call.layer->words, stride = call.input_stride;
  const auto* const input = static_cast<const uint32_t*>(call.input);
  const auto sum = [&](int64_t panel, int64_t first, bool two, int32_t* sums) {
    sum_matrices(input + first * stride, stride, words,
                 call.layer->int8_kernel + panel * words * kPanel * kGroup, two, sums);
  };
  for_matrices<Integers>(call, sum);
}

void multiply_split_matrices(const LayerCall& call) {
  const int64_t words = call.layer->words, stride = call.input_stride;
  const auto* const input = static_cast<const uint32_t*>(call.input);
  const auto sum = [&](int64_t panel, int64_t first, bool two, int32_t* sums) {
    sum_split_matrices(input + first * stride, stride, call.part_stride, words,
                       call.layer->split_kernel + panel * kParts * words * kPanel * 2, two,
                       reinterpret_cast<float*>(sums));
  };
  for_matrices<Vector>(call, sum);
}

constexpr auto kSplit = split;

#else

constexpr decltype(Kernels::split) kSplit = nullptr;
constexpr int kParts = 0;

#endif

}  // namespace
