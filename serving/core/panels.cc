// Lays the layers of an MLP out in panels: float, int8, and floats split into parts of bfloat16.
//
// It runs once, when a scorer is opened, and knows of an instruction set only what Kernels says.

#include "panels.h"

#include <string.h>

namespace {

constexpr int64_t kFloatsOfWord = 2;  // of split layers

float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The upper half of the nearest float that has no lower half, even at ties.
uint16_t nearest_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// The arrays of one layer; without memory, only their bytes are counted.
class Builder {
 public:
  Builder(const Kernels& kernels, const ScorerLayer& from, Memory* memory)
      : kernels_(kernels), from_(from), memory_(memory) {
    layer_.inputs = from.inputs;
    layer_.outputs = from.outputs;
    layer_.panels = rounded_up(from.outputs, kernels.panel) / kernels.panel;
    layer_.int8 = from.int8 != 0;
    const int64_t group = layer_.int8 ? kernels.group : kFloatsOfWord;
    layer_.words = rounded_up(rounded_up(from.inputs, group) / group, kernels.word_multiple);
    layer_.relu = from.relu != 0;
  }

  int64_t bytes() const { return bytes_; }
  const PanelLayer& layer() const { return layer_; }

  void build() {
    const int64_t columns = layer_.panels * kernels_.panel;
    if (float* const bias = array<float>(columns, &layer_.bias)) {
      memcpy(bias, from_.bias, static_cast<size_t>(from_.outputs) * sizeof(float));
    }
    if (layer_.int8) {
      build_int8(columns);
    } else if (float* const to = array<float>(columns * from_.inputs, &layer_.kernel)) {
      const float* const kernel = static_cast<const float*>(from_.kernel);
      for_columns([&](int64_t panel, int64_t column, int64_t i, int64_t o) {
        to[(panel * from_.inputs + i) * kernels_.panel + column] = kernel[i * from_.outputs + o];
      });
    }
    // A narrow layer would leave most of a matrix empty.
    if (!layer_.int8 && kernels_.split && from_.outputs >= kernels_.panel) build_split(columns);
  }

 private:
  template <typename T>
  T* array(int64_t count, const T** place) {
    bytes_ += Memory::needed<T>(count);
    if (!memory_) return nullptr;
    T* const taken = memory_->take<T>(count);
    *place = taken;
    return taken;
  }

  // Calls (panel, column in it, input, output) for each weight.
  template <typename Call>
  void for_columns(const Call& call) const {
    for (int64_t i = 0; i < from_.inputs; ++i) {
      for (int64_t o = 0; o < from_.outputs; ++o) {
        call(o / kernels_.panel, o % kernels_.panel, i, o);
      }
    }
  }

  void build_split(int64_t columns) {
    const int64_t part_words = layer_.words * kernels_.panel;
    const int64_t count = kFloatsOfWord * columns * layer_.words * kernels_.parts;
    uint16_t* const to = array<uint16_t>(count, &layer_.split_kernel);
    if (!to) return;
    const float* const kernel = static_cast<const float*>(from_.kernel);
    for_columns([&](int64_t panel, int64_t column, int64_t i, int64_t o) {
      float left = kernel[i * from_.outputs + o];
      int64_t word = panel * kernels_.parts * part_words + i / kFloatsOfWord * kernels_.panel;
      for (int64_t part = 0; part < kernels_.parts; ++part, word += part_words) {
        const uint16_t bits = nearest_bfloat16(left);
        to[(word + column) * kFloatsOfWord + i % kFloatsOfWord] = bits;
        left -= float_of(uint32_t{bits} << 16);
      }
    });
  }

  void build_int8(int64_t columns) {
    const int64_t group = kernels_.group;
    // The layer before writes whole panels, whose values beyond the last input mean nothing.
    const int64_t inputs = rounded_up(from_.inputs, kernels_.panel);
    int8_t* const to = array<int8_t>(columns * layer_.words * group, &layer_.int8_kernel);
    float* const scale = array<float>(columns, &layer_.scale);
    int32_t* const offset = array<int32_t>(columns, &layer_.offset);
    float* const inverse = array<float>(inputs, &layer_.input_inverse);
    float* const zero = array<float>(inputs, &layer_.input_zero);
    if (!to) return;
    memcpy(scale, from_.kernel_scale, static_cast<size_t>(from_.outputs) * sizeof(float));
    for (int64_t i = 0; i < from_.inputs; ++i) {
      inverse[i] = 1.0f / from_.input_scale[i];
      zero[i] = static_cast<float>(from_.input_zero[i]);
    }
    const int8_t* const kernel = static_cast<const int8_t*>(from_.kernel);
    for_columns([&](int64_t panel, int64_t column, int64_t i, int64_t o) {
      const int8_t weight = kernel[i * from_.outputs + o];
      const int64_t word = panel * layer_.words + i / group;
      to[(word * kernels_.panel + column) * group + i % group] = weight;
      offset[o] += from_.input_zero[i] * weight;
    });
  }

  const Kernels& kernels_;
  const ScorerLayer& from_;
  Memory* memory_;
  PanelLayer layer_ = {};
  int64_t bytes_ = 0;
};

}  // namespace

int64_t packed_bytes(const Kernels& kernels, const ScorerLayer* layers, int count) {
  int64_t bytes = 0;
  for (int i = 0; i < count; ++i) {
    Builder builder(kernels, layers[i], nullptr);
    builder.build();
    bytes += builder.bytes();
  }
  return bytes;
}

void pack_mlp(const Kernels& kernels, const ScorerLayer* layers, int count, Memory& memory,
              Mlp* mlp) {
  for (int i = 0; i < count; ++i) {
    Builder builder(kernels, layers[i], &memory);
    builder.build();
    mlp->layers[i] = builder.layer();
  }
  mlp->count = count;
}
