// The kernels of one instruction set: layers, quantisation of their inputs, and rows of tables.
// Built once for each level of scorer.h, with that level's compiler flags and LEVEL as its name.
//
// Every output is one sum in the order of the inputs, whatever the number of samples, so that a
// sample's logit does not depend on the batch it comes in; only split floats are summed in another
// order, whose sums are as exact. Nothing is contracted by the compiler:
// float layers ask for fused products where there are any, and all else rounds alike on all levels.

#include "kernels.h"

#include "../../interact_op/cpu_vector.h"
#include "scorer.h"

#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)
#define UNROLL _Pragma("GCC unroll 16")
#define ALWAYS_INLINE __attribute__((always_inline)) inline

namespace {

constexpr int kPanelVectors = 2;
constexpr int kPanel = kPanelVectors * kLanes;
constexpr int kPrefetchRows = 8;    // rows of tables asked for ahead
constexpr int kPrefetchSteps = 16;  // of a sum, whose weights are asked for ahead
constexpr int kLine = 64;

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

#if defined(__AMX_INT8__)
constexpr int kWordMultiple = 16;
#else
constexpr int kWordMultiple = 1;
#endif

#if defined(__AVX512F__)
constexpr int kTileRows = 14;
#else
constexpr int kTileRows = 6;
#endif

typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));

ALWAYS_INLINE Vector multiply_add(Vector a, Vector b, Vector sum) {
#if defined(__AVX512F__)
  return bits_of<Vector>(
      _mm512_fmadd_ps(bits_of<__m512>(a), bits_of<__m512>(b), bits_of<__m512>(sum)));
#elif defined(__AVX2__)
  return bits_of<Vector>(
      _mm256_fmadd_ps(bits_of<__m256>(a), bits_of<__m256>(b), bits_of<__m256>(sum)));
#else
  return a * b + sum;
#endif
}

ALWAYS_INLINE Vector larger(Vector a, Vector b) { return a > b ? a : b; }
ALWAYS_INLINE Vector smaller(Vector a, Vector b) { return a < b ? a : b; }
ALWAYS_INLINE Vector to_floats(Integers values) { return __builtin_convertvector(values, Vector); }

// The nearest integers, halves to even, of values within the range of uint8_t around zero.
ALWAYS_INLINE Vector nearest(Vector values) {
  const Vector magic = Vector{} + 12582912.0f;  // 1.5 * 2^23, whose neighbours are integers
  return (values + magic) - magic;
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

void run_layer(const LayerCall& call) {
  if (call.rows == 0) return;
#if defined(__AMX_INT8__)
  if (call.layer->int8 && call.rows >= kFewestMatrixRows) return multiply_matrices(call);
  if (call.part_stride) return multiply_split_matrices(call);
#endif
  if (call.layer->int8) {
    multiply<Int8Kind>(call, call.layer->int8_kernel);
  } else {
    multiply<FloatKind>(call, call.layer->kernel);
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

extern const Kernels JOINED(scorer_kernels_, LEVEL);
const Kernels JOINED(scorer_kernels_, LEVEL) = {kPanel,   kGroup, kWordMultiple, run_layer,
                                                quantise, gather, kSplit,        kParts};
