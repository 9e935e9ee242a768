// What the kernels of one instruction set offer to the scorer, which is compiled once.
//
// It knows nothing of instruction sets but the numbers that layouts depend on.
#pragma once

#include <stddef.h>
#include <stdint.h>

// A layer whose kernel is laid out in panels of neighbouring columns, row after row; what lies
// beyond the last column is zero. An int8 kernel keeps `group` rows together, so that one
// instruction multiplies a word of `group` inputs.
struct PanelLayer {
  int64_t inputs, outputs, panels, words;
  bool int8, relu;
  const float* kernel;           // [panels, inputs, panel]
  const int8_t* int8_kernel;     // [panels, words, panel, group]
  const uint16_t* split_kernel;  // NULL, or bfloat16 [panels, parts, words, panel, 2]
  const float* bias;             // [panels * panel]
  const float* scale;            // of the sums, [panels * panel]
  const int32_t* offset;         // to be subtracted from the sums, [panels * panel]
  const float* input_inverse;    // 1 / scale of the inputs, padded
  const float* input_zero;       // padded
};

// Panels [first, last) of a layer for `rows` samples; strides are in values or words. Words lie in
// a buffer of whole blocks, which may be read beyond the last sample.
struct LayerCall {
  const PanelLayer* layer;
  int64_t first, last, rows;
  const void* input;  // floats, or words of quantised values
  int64_t input_stride;
  int64_t part_stride;  // words between the parts of split inputs; 0 if they are not split
  void* output;         // floats, or words quantised for `next`
  int64_t output_stride;
  const PanelLayer* next;  // NULL, or the int8 layer that takes the output
};

// The rows of `samples` samples: pointers [samples, tables] -> floats. Each goes to the place of
// its table among the `stride` values of its sample. With `starts`, bag i has the rows starts[i] to
// starts[i + 1] - 1, whose sum or mean goes there; weights are factors on them.
struct GatherCall {
  int32_t row_type;
  int64_t samples, tables, width, stride;
  const char* const* rows;
  const int64_t* tables_listed;  // [tables]
  const float* scales;           // of every table
  float* output;
  const int64_t* starts;   // NULL, or [samples * tables + 1]
  const float* weights;    // NULL, or one for each row
  const int32_t* pooling;  // of every table
};

struct Kernels {
  int64_t panel;          // columns
  int64_t group;          // int8 inputs in a word
  int64_t word_multiple;  // that the words of a layer's inputs are padded to
  void (*layer)(const LayerCall&);
  void (*quantise)(const PanelLayer& layer, const float* input, int64_t stride, int64_t rows,
                   uint32_t* words, int64_t word_stride);
  void (*gather)(const GatherCall&);
  // NULL, or what splits the floats of a layer's inputs into `parts` bfloat16, a pair in a word.
  void (*split)(const PanelLayer& layer, const float* input, int64_t stride, int64_t rows,
                uint32_t* words, int64_t word_stride, int64_t part_stride);
  int64_t parts;
};

// Each build of the kernels has its own: a linker would merge them.
static inline int64_t rounded_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// The kernels of a level of scorer.h.
const Kernels& kernels_of(int level);
