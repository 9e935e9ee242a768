// What is done row by row: attention's gate, the layer norm, dropout. A row stays in the
// first-level cache, so each array is read and written once.
#pragma once

#include <math.h>

#include "cpu_kernels.h"
#include "cpu_products.h"

namespace {

// x -> (x - mean) / sqrt(variance + epsilon), in place; x is followed by zeros up to a whole
// vector, and so is the result. Returns 1 / sqrt(variance + epsilon).
inline float normalise(float* x, int64_t width, float epsilon) {
  const float share = 1.0f / static_cast<float>(width);
  Vector sum = {}, squares = {};
  for (int64_t d = 0; d < width; d += kLanes) sum += load(x + d);
  const float mean = sum_of_lanes(sum) * share;
  for (int64_t d = 0; d < width; d += kLanes) {
    store(x + d, load(x + d) - mean, width - d);
    squares += load(x + d) * load(x + d);
  }
  const float inverse = 1.0f / sqrtf(sum_of_lanes(squares) * share + epsilon);
  for (int64_t d = 0; d < width; d += kLanes) store(x + d, load(x + d) * inverse);
  return inverse;
}

inline void add_to(float* sums, Vector values, int64_t count) {
  store(sums, load(sums, count) + values, count);
}

// The gradient of x from that of its normalised values, given the sums over the row of the latter
// and of their products with the normalised values.
struct NormGradient {
  float inverse, mean, mean_product;

  NormGradient(float inverse, int64_t width, Vector sum, Vector products)
      : inverse(inverse),
        mean(sum_of_lanes(sum) / static_cast<float>(width)),
        mean_product(sum_of_lanes(products) / static_cast<float>(width)) {}

  Vector operator()(Vector gradient, Vector normalised) const {
    return inverse * (gradient - mean - normalised * mean_product);
  }
};

template <typename T>
void gate(const HstuAttention& attention, int64_t begin, int64_t end, float* scratch, T* output) {
  const int64_t width = attention.heads * attention.value_dim, part = width / attention.groups;
  const int64_t columns = 2 * attention.heads * (attention.value_dim + attention.attention_dim);
  const int64_t used = attention.offsets[attention.requests];
  for (int64_t row = begin; row < end; ++row) {
    T* const to = output + row * 3 * width;
    if (row >= used) {
      memset(to, 0, static_cast<size_t>(3 * width) * sizeof(T));
      continue;
    }
    const T* const u = static_cast<const T*>(attention.projected) + row * columns;
    for (int64_t first = 0; first < width; first += part) {
      copy_rows(to + width + first, 0, 1, part, 1.0f, scratch, rounded_up(part, kLanes));
      normalise(scratch, part, attention.epsilon);
      for (int64_t d = 0; d < part; d += kLanes) {
        const int64_t place = first + d, count = part - d;
        const Vector x = load(u + place, count), gated = x * sigmoid(x);
        const Vector normalised = load(scratch + d) * load(attention.gamma + place, count) +
                                  load(attention.beta + place, count);
        store(to + place, gated, count);
        store(to + 2 * width + place, gated * normalised, count);
      }
    }
  }
}

template <typename T>
void gate_gradient(const HstuAttention& attention, const HstuAttentionGradient& gradient,
                   int64_t begin, int64_t end, float* scratch, float* av, float* sums) {
  const int64_t width = attention.heads * attention.value_dim, part = width / attention.groups;
  const int64_t columns = 2 * attention.heads * (attention.value_dim + attention.attention_dim);
  const int64_t used = attention.offsets[attention.requests];
  float* const normalised = scratch;
  float* const gradients = scratch + rounded_up(part, kLanes);  // of the normalised values
  for (int64_t row = begin; row < end; ++row) {
    T* const u_gradient = static_cast<T*>(gradient.projected) + row * columns;
    if (row >= used) {
      memset(u_gradient, 0, static_cast<size_t>(columns) * sizeof(T));
      continue;
    }
    const T* const u = static_cast<const T*>(attention.projected) + row * columns;
    const T* const output = static_cast<const T*>(gradient.output) + row * 3 * width;
    const T* const upstream = static_cast<const T*>(gradient.upstream) + row * 3 * width;
    for (int64_t first = 0; first < width; first += part) {
      copy_rows(output + width + first, 0, 1, part, 1.0f, normalised, rounded_up(part, kLanes));
      const float inverse = normalise(normalised, part, attention.epsilon);
      Vector sum = {}, products = {};
      for (int64_t d = 0; d < part; d += kLanes) {
        const int64_t place = first + d, count = part - d;
        const Vector x = load(u + place, count), share = sigmoid(x), gated = x * share;
        const Vector gamma = load(attention.gamma + place, count), own = load(normalised + d);
        const Vector of_y = load(upstream + 2 * width + place, count);
        const Vector factor = own * gamma + load(attention.beta + place, count);
        const Vector of_gated = load(upstream + place, count) + of_y * factor;
        store(u_gradient + place, of_gated * (share + gated * (1.0f - share)), count);
        const Vector of_factor = of_y * gated, of_own = of_factor * gamma;
        add_to(sums + place, of_factor * own, count);
        add_to(sums + width + place, of_factor, count);
        store(gradients + d, of_own);
        sum += of_own;
        products += of_own * own;
      }
      const NormGradient through_norm(inverse, part, sum, products);
      for (int64_t d = 0; d < part; d += kLanes) {
        const int64_t place = first + d, count = part - d;
        const Vector direct = load(upstream + width + place, count);
        const Vector through = through_norm(load(gradients + d), load(normalised + d));
        store(av + row * width + place, (direct + through) * attention.scale, count);
      }
    }
  }
}

template <typename T>
void norm(const HstuNorm& norm, int64_t begin, int64_t end, float* scratch, T* output) {
  const int64_t width = norm.width;
  for (int64_t row = begin; row < end; ++row) {
    const T* const from = static_cast<const T*>(norm.x) + row * width;
    T* const to = output + row * width;
    copy_rows(from, 0, 1, width, 1.0f, scratch, rounded_up(width, kLanes));
    normalise(scratch, width, norm.epsilon);
    for (int64_t d = 0; d < width; d += kLanes) {
      const int64_t count = width - d;
      const Vector n = load(scratch + d) * load(norm.gamma + d, count) + load(norm.beta + d, count);
      store(to + d, norm.swish ? load(from + d, count) * sigmoid(n) : n, count);
    }
  }
}

template <typename T>
void norm_gradient(const HstuNorm& norm, int64_t begin, int64_t end, const T* upstream,
                   float* scratch, T* x_gradient, float* sums) {
  const int64_t width = norm.width;
  float* const normalised = scratch;
  float* const gradients = normalised + rounded_up(width, kLanes);  // of the normalised values
  float* const direct = gradients + rounded_up(width, kLanes);      // of x, beside the norm's
  for (int64_t row = begin; row < end; ++row) {
    const T* const from = static_cast<const T*>(norm.x) + row * width;
    const T* const above = upstream + row * width;
    copy_rows(from, 0, 1, width, 1.0f, normalised, rounded_up(width, kLanes));
    const float inverse = normalise(normalised, width, norm.epsilon);
    Vector sum = {}, products = {};
    for (int64_t d = 0; d < width; d += kLanes) {
      const int64_t count = width - d;
      const Vector gamma = load(norm.gamma + d, count), own = load(normalised + d);
      Vector of_n = load(above + d, count);
      if (norm.swish) {
        const Vector share = sigmoid(own * gamma + load(norm.beta + d, count));
        store(direct + d, of_n * share);
        of_n *= load(from + d, count) * share * (1.0f - share);
      }
      add_to(sums + d, of_n * own, count);
      add_to(sums + width + d, of_n, count);
      const Vector of_own = of_n * gamma;
      store(gradients + d, of_own);
      sum += of_own;
      products += of_own * own;
    }
    const NormGradient through_norm(inverse, width, sum, products);
    for (int64_t d = 0; d < width; d += kLanes) {
      Vector gradient = through_norm(load(gradients + d), load(normalised + d));
      if (norm.swish) gradient += load(direct + d);
      store(x_gradient + row * width + d, gradient, width - d);
    }
  }
}

template <typename Value>  // uint32_t or a vector of them
ALWAYS_INLINE Value mixed(Value x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

template <typename T>
void dropout(const HstuDropout& dropout, int64_t begin, int64_t end, T* output) {
  const Words steps = bits_of<Words>(lane_numbers()) * 0x9e3779b9u;
  for (int64_t row = begin; row < end; ++row) {
    const uint64_t key = static_cast<uint64_t>(dropout.keys[row]);
    const uint32_t start =
        mixed(static_cast<uint32_t>(key) ^ mixed(static_cast<uint32_t>(key >> 32)));
    const T* const from = static_cast<const T*>(dropout.x) + row * dropout.width;
    T* const to = output + row * dropout.width;
    for (int64_t d = 0; d < dropout.width; d += kLanes) {
      const int64_t count = dropout.width - d;
      const Words hash = mixed(steps + (start + static_cast<uint32_t>(d) * 0x9e3779b9u));
      const Vector kept = load(from + d, count) * dropout.factor;
      store(to + d, hash >= dropout.threshold ? kept : Vector{}, count);
    }
  }
}

}  // namespace
