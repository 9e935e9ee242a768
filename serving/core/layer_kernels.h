// Layers of an MLP in vector registers, float and int8, and the quantisation of their inputs.
//
// It knows neither the matrix unit nor tables. Every output is one sum in the order of the inputs,
// whatever the number of samples, so that a sample's outputs do not depend on the batch.
#pragma once

#include "kernels.h"
#include "vectors.h"

namespace {

constexpr int kPanelVectors = 2;
constexpr int kPanel = kPanelVectors * kLanes;
constexpr int kPrefetchSteps = 16;  // of a sum, whose weights are asked for ahead

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr int kGroup = 4;
typedef uint8_t Quantised;
#elif defined(__AVX2__)
constexpr int kGroup = 2;
typedef uint16_t Quantised;
#else
constexpr int kGroup = 1;
typedef int32_t Quantised;
#endif

#if defined(__AVX512F__)
constexpr int kTileRows = 14;
#else
constexpr int kTileRows = 6;
#endif

// Types of layers: their words of input, sums, and one step of them.
struct FloatKind {
  typedef float Word;
  typedef float Weight;
  typedef Vector Sum;
  static constexpr int kWeights = 1;  // of a column in a step
  static ALWAYS_INLINE Vector weights(const float* from) { return load(from); }
  // To add zero would be an addition, as it changes -0; to subtract it is none.
  static ALWAYS_INLINE Vector broadcast(const float* from) { return *from - Vector{}; }
  static ALWAYS_INLINE Vector step(Vector x, Vector w, Vector sum) {
    return multiply_add(x, w, sum);
  }
};

struct Int8Kind {
  typedef uint32_t Word;
  typedef int8_t Weight;
  typedef Integers Sum;
  static constexpr int kWeights = kGroup;
  static ALWAYS_INLINE Integers broadcast(const uint32_t* from) {
    return Integers{} + static_cast<int32_t>(*from);
  }
#if defined(__AVX512VNNI__)
  static ALWAYS_INLINE Integers weights(const int8_t* from) { return read<Integers>(from); }
  static ALWAYS_INLINE Integers step(Integers x, Integers w, Integers sum) {
    return bits_of<Integers>(
        _mm512_dpbusd_epi32(bits_of<__m512i>(sum), bits_of<__m512i>(x), bits_of<__m512i>(w)));
  }
#elif defined(__AVXVNNI__)
  static ALWAYS_INLINE Integers weights(const int8_t* from) { return read<Integers>(from); }
  static ALWAYS_INLINE Integers step(Integers x, Integers w, Integers sum) {
    return bits_of<Integers>(
        _mm256_dpbusd_avx_epi32(bits_of<__m256i>(sum), bits_of<__m256i>(x), bits_of<__m256i>(w)));
  }
#elif defined(__AVX512F__)
  static ALWAYS_INLINE Integers weights(const int8_t* from) {
    return bits_of<Integers>(_mm512_cvtepi8_epi16(read<__m256i>(from)));
  }
  static ALWAYS_INLINE Integers step(Integers x, Integers w, Integers sum) {
    return sum + bits_of<Integers>(_mm512_madd_epi16(bits_of<__m512i>(x), bits_of<__m512i>(w)));
  }
#elif defined(__AVX2__)
  static ALWAYS_INLINE Integers weights(const int8_t* from) {
    return bits_of<Integers>(_mm256_cvtepi8_epi16(read<__m128i>(from)));
  }
  static ALWAYS_INLINE Integers step(Integers x, Integers w, Integers sum) {
    return sum + bits_of<Integers>(_mm256_madd_epi16(bits_of<__m256i>(x), bits_of<__m256i>(w)));
  }
#else
  static ALWAYS_INLINE Integers weights(const int8_t* from) {
    Integers values;
    for (int i = 0; i < kLanes; ++i) values[i] = from[i];
    return values;
  }
  static ALWAYS_INLINE Integers step(Integers x, Integers w, Integers sum) { return sum + x * w; }
#endif
};

// Sums of R samples for P neighbouring panels.
template <typename Kind, int R, int P>
ALWAYS_INLINE void sum_tile(const typename Kind::Word* input, int64_t stride, int64_t steps,
                            const typename Kind::Weight* kernel,
                            typename Kind::Sum (&sums)[R][kPanelVectors * P]) {
  constexpr int kStep = kPanel * Kind::kWeights;
  const int64_t panel = steps * kStep;
  UNROLL for (int r = 0; r < R; ++r) {
    UNROLL for (int c = 0; c < kPanelVectors * P; ++c) sums[r][c] = typename Kind::Sum{};
  }
  for (int64_t k = 0; k < steps; ++k, kernel += kStep) {
    typename Kind::Sum w[kPanelVectors * P];
    UNROLL for (int p = 0; p < P; ++p) {
      UNROLL for (int v = 0; v < kPanelVectors; ++v) {
        __builtin_prefetch(kernel + p * panel + kPrefetchSteps * kStep +
                           v * kLanes * Kind::kWeights);
        w[p * kPanelVectors + v] = Kind::weights(kernel + p * panel + v * kLanes * Kind::kWeights);
      }
    }
    UNROLL for (int r = 0; r < R; ++r) {
      const typename Kind::Sum x = Kind::broadcast(input + r * stride + k);
      UNROLL for (int c = 0; c < kPanelVectors * P; ++c) {
        sums[r][c] = Kind::step(x, w[c], sums[r][c]);
      }
    }
  }
}

// Stores kLanes values as q = clip(rint(value * inverse) + zero, 0, 255).
ALWAYS_INLINE void store_quantised(Quantised* to, Vector values, Vector inverse, Vector zero) {
  const Vector low = -zero, high = 255.0f - zero;
  const Vector q = nearest(smaller(larger(values * inverse, low), high)) + zero;
  const Integers integers = __builtin_convertvector(q, Integers);
#if defined(__AVX512F__)
  if (kGroup == 4) write(to, _mm512_cvtepi32_epi8(bits_of<__m512i>(integers)));
  if (kGroup == 2) write(to, _mm512_cvtepi32_epi16(bits_of<__m512i>(integers)));
#else
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<Quantised>(integers[i]);
#endif
}

ALWAYS_INLINE Vector finished(const PanelLayer&, int64_t, Vector sum, Vector bias) {
  return sum + bias;
}

ALWAYS_INLINE Vector finished(const PanelLayer& layer, int64_t column, Integers sum, Vector bias) {
  const Integers offset = read<Integers>(layer.offset + column);
  return to_floats(sum - offset) * load(layer.scale + column) + bias;
}

// Bias, ReLU, and what the next layer wants.
template <int R, int C, typename Sum>
ALWAYS_INLINE void store_tile(const LayerCall& call, int64_t row, int64_t column,
                              const Sum (&sums)[R][C]) {
  const PanelLayer& layer = *call.layer;
  UNROLL for (int c = 0; c < C; ++c) {
    const int64_t at = column + c * kLanes;
    const Vector bias = load(layer.bias + at);
    UNROLL for (int r = 0; r < R; ++r) {
      Vector values = finished(layer, at, sums[r][c], bias);
      if (layer.relu) values = larger(values, Vector{});
      if (call.next) {
        auto* const to = reinterpret_cast<Quantised*>(static_cast<uint32_t*>(call.output) +
                                                      (row + r) * call.output_stride);
        store_quantised(to + at, values, load(call.next->input_inverse + at),
                        load(call.next->input_zero + at));
      } else if (at < layer.outputs) {
        float* const to = static_cast<float*>(call.output) + (row + r) * call.output_stride;
        store(to + at, values, layer.outputs - at);
      }
    }
  }
}

template <typename Kind, int R, int P>
void multiply_tile(const LayerCall& call, const typename Kind::Weight* kernel, int64_t row,
                   int64_t panel) {
  const int64_t steps = call.layer->int8 ? call.layer->words : call.layer->inputs;
  typename Kind::Sum sums[R][kPanelVectors * P];
  sum_tile<Kind, R, P>(
      static_cast<const typename Kind::Word*>(call.input) + row * call.input_stride,
      call.input_stride, steps, kernel + panel * steps * kPanel * Kind::kWeights, sums);
  store_tile(call, row, panel * kPanel, sums);
}

// Few samples take several panels at once, so that there are enough sums to hide the latency.
constexpr int panels_at_once(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

template <typename Kind, int R>
void multiply_rows(const LayerCall& call, const typename Kind::Weight* kernel, int64_t row,
                   int64_t& panel) {
  constexpr int kPanels = panels_at_once(R);
  if (panel + kPanels <= call.last) {
    multiply_tile<Kind, R, kPanels>(call, kernel, row, panel);
  } else {
    for (int64_t i = panel; i < call.last; ++i) multiply_tile<Kind, R, 1>(call, kernel, row, i);
  }
  panel += kPanels;
}

template <typename Kind, size_t... I>
void multiply_rows(const LayerCall& call, const typename Kind::Weight* kernel, int64_t row,
                   int64_t count, int64_t& panel, std::index_sequence<I...>) {
  (void)((count == static_cast<int64_t>(I) + 1 &&
          (multiply_rows<Kind, I + 1>(call, kernel, row, panel), true)) ||
         ...);
}

template <typename Kind>
void multiply(const LayerCall& call, const typename Kind::Weight* kernel) {
  // Tiles of nearly equal height; a panel stays in cache for all of them.
  const int64_t tiles = (call.rows + kTileRows - 1) / kTileRows;
  for (int64_t panel = call.first; panel < call.last;) {
    int64_t next = panel;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t row = call.rows * i / tiles;
      const int64_t count = call.rows * (i + 1) / tiles - row;
      next = panel;
      multiply_rows<Kind>(call, kernel, row, count, next, std::make_index_sequence<kTileRows>());
    }
    panel = next;
  }
}

void quantise(const PanelLayer& layer, const float* input, int64_t stride, int64_t rows,
              uint32_t* words, int64_t word_stride) {
  for (int64_t row = 0; row < rows; ++row) {
    auto* const to = reinterpret_cast<Quantised*>(words + row * word_stride);
    for (int64_t i = 0; i < layer.inputs; i += kLanes) {
      store_quantised(to + i, load(input + row * stride + i, layer.inputs - i),
                      load(layer.input_inverse + i), load(layer.input_zero + i));
    }
  }
}

}  // namespace
