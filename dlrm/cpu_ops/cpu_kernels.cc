// The CPU kernels of one instruction set. Built once for each level of mlp.h, with that level's
// compiler flags; LEVEL is part of the names of the functions that it defines.

#include "cpu_products.h"
#include "mlp.h"

namespace {

constexpr auto as_it_is = [](Vector values, int64_t, int64_t) { return values; };

// A NaN stays one.
constexpr auto relu = [](Vector values, int64_t, int64_t) {
  return values < 0 ? Vector{} : values;
};

// Floats of a row in panels.
int64_t padded(int64_t width) { return rounded_up(width, kPanel); }

int64_t packed_kernel(const MlpShape& shape, int32_t layer, bool transposed) {
  const int64_t inputs = shape.widths[layer], outputs = shape.widths[layer + 1];
  return transposed ? outputs * padded(inputs) : inputs * padded(outputs);
}

// Floats of a sample in what forward and errors keep, before those of the values after `layer`
// layers.
int64_t kept_before(const MlpShape& shape, int32_t layer) {
  int64_t size = 0;
  for (int32_t i = 1; i < layer; ++i) size += padded(shape.widths[i]);
  return size;
}

// The sum of the rows of panels -> sums [columns], or what they were is added.
void sum_rows(const float* panels, int64_t rows, int64_t columns, bool add, float* sums) {
  for (int64_t column = 0; column < columns; column += kLanes) {
    const float* from = panel_at(panels, rows, column / kPanel * kPanel) + column % kPanel;
    Vector sum = add ? load(sums + column, columns - column) : Vector{};
    for (int64_t row = 0; row < rows; ++row, from += kPanel) sum += load(from);
    store(sums + column, sum, columns - column);
  }
}

}  // namespace

#define NAME(function) JOINED(JOINED(mlp_, function), JOINED(_, LEVEL))

extern "C" {

void NAME(pack)(const MlpShape* shape, int transposed, const float* const* kernels, int64_t part,
                int64_t parts, float* packed) {
  for (int32_t i = 0; i < shape->layers; ++i) {
    const int64_t inputs = shape->widths[i], outputs = shape->widths[i + 1];
    const int64_t panels = padded(transposed ? inputs : outputs) / kPanel;
    const int64_t first = panels * part / parts * kPanel;
    const int64_t last = panels * (part + 1) / parts * kPanel;
    if (transposed) {
      pack_transposed(kernels[i], outputs, inputs, first, last, packed);
    } else {
      pack_panels(kernels[i], outputs, inputs, outputs, first, last, as_it_is, packed);
    }
    packed += packed_kernel(*shape, i, transposed);
  }
}

void NAME(forward)(const MlpShape* shape, const float* packed, const float* const* biases,
                   int64_t samples, const float* input, float* hidden, float* output,
                   float* scratch) {
  const int64_t width = shape->widths[0];
  pack_panels(input, width, samples, width, 0, padded(width), as_it_is, scratch);
  const float* x = scratch;
  for (int32_t i = 0; i < shape->layers; ++i) {
    const int64_t inputs = shape->widths[i], outputs = shape->widths[i + 1];
    const auto multiply = [&](const auto& finish, const auto& place) {
      multiply_panels(x, samples, inputs, packed, outputs, biases[i], finish, place);
    };
    if (i < shape->layers - 1) {
      multiply(relu, [&](int64_t row, int64_t column) {
        return Place{panel_at(hidden, samples, column) + row * kPanel, kPanel, kPanel};
      });
    } else {
      const auto place = [&](int64_t row, int64_t column) {
        return Place{output + row * outputs + column, outputs, outputs - column};
      };
      shape->last_relu ? multiply(relu, place) : multiply(as_it_is, place);
    }
    packed += packed_kernel(*shape, i, false);
    x = hidden;
    hidden += samples * padded(outputs);
  }
}

void NAME(errors)(const MlpShape* shape, const float* packed, int64_t samples, const float* hidden,
                  const float* output, const float* upstream, float* input_gradient,
                  float* errors) {
  for (int32_t i = 0; i < shape->layers; ++i) packed += packed_kernel(*shape, i, true);
  const int64_t width = shape->widths[shape->layers];
  float* error = errors + samples * kept_before(*shape, shape->layers);
  pack_panels(
      upstream, width, samples, width, 0, padded(width),
      [&](Vector values, int64_t row, int64_t column) {
        if (!shape->last_relu) return values;
        return load(output + row * width + column, width - column) > 0 ? values : Vector{};
      },
      error);
  for (int32_t i = shape->layers - 1; i >= (input_gradient ? 0 : 1); --i) {
    const int64_t inputs = shape->widths[i], outputs = shape->widths[i + 1];
    packed -= packed_kernel(*shape, i, true);
    const auto multiply = [&](const auto& finish, const auto& place) {
      multiply_panels(error, samples, outputs, packed, inputs, nullptr, finish, place);
    };
    if (i == 0) {
      multiply(as_it_is, [&](int64_t row, int64_t column) {
        return Place{input_gradient + row * inputs + column, inputs, inputs - column};
      });
      return;
    }
    const float* const x = hidden + samples * kept_before(*shape, i);
    float* const next = errors + samples * kept_before(*shape, i);
    multiply(
        [&](Vector values, int64_t row, int64_t column) {
          const int64_t panel = column / kPanel * kPanel;
          const float* const place = panel_at(x, samples, panel) + row * kPanel + column - panel;
          return load(place) > 0 ? values : Vector{};
        },
        [&](int64_t row, int64_t column) {
          return Place{panel_at(next, samples, column) + row * kPanel, kPanel, kPanel};
        });
    error = next;
  }
}

void NAME(gradients)(const MlpShape* shape, int32_t layer, int64_t first, int64_t last,
                     int64_t samples, const float* input, const float* hidden, const float* errors,
                     int add, float* kernel, float* bias, float* scratch) {
  const int64_t inputs = shape->widths[layer], outputs = shape->widths[layer + 1];
  const float* const error = errors + samples * kept_before(*shape, layer + 1);
  const float* x = panel_at(hidden, samples, first) + samples * kept_before(*shape, layer);
  if (layer == 0) {
    pack_panels(input + first, inputs, samples, last - first, 0, padded(last - first), as_it_is,
                scratch);
    x = scratch;
  }
  multiply_transposed(x, last - first, samples, error, outputs, add, kernel + first * outputs);
  if (first == 0) sum_rows(error, samples, outputs, add, bias);
}

}  // extern "C"
