// The CPU kernels of one instruction set. Built once for each level of hstu.h, with that level's
// compiler flags; LEVEL is part of the name of the table that it defines.

#include "cpu_kernels.h"

#include "cpu_attention.h"
#include "cpu_rows.h"

namespace {

// Calls f with a value of the type whose number is given.
template <typename F>
void with_type(int32_t type, const F& f) {
  switch (type) {
    case HSTU_FLOAT16:
      return f(Float16());
    case HSTU_BFLOAT16:
      return f(BFloat16());
    default:
      return f(float());
  }
}

void attend_any(const HstuHead* head, int64_t begin, int64_t end, float* scratch, void* output,
                int64_t stride) {
  with_type(head->type, [&](auto zero) {
    using T = decltype(zero);
    attend(*head, begin, end, scratch, static_cast<T*>(output), stride);
  });
}

void attend_gradient_any(const HstuHead* head, int64_t rows, int64_t first, int64_t last,
                         const float* upstream, int64_t stride, float* scratch,
                         float* query_gradients, void* key_gradient, void* value_gradient) {
  with_type(head->type, [&](auto zero) {
    using T = decltype(zero);
    attend_gradient(*head, rows, first, last, upstream, stride, scratch, query_gradients,
                    static_cast<T*>(key_gradient), static_cast<T*>(value_gradient));
  });
}

void finish_gradient_any(const HstuHead* head, int64_t row, const float* const* parts,
                         int64_t count, const float* upstream, float* scratch, void* query_gradient,
                         void* key_gradient, void* value_gradient) {
  with_type(head->type, [&](auto zero) {
    using T = decltype(zero);
    finish_gradient(*head, row, parts, count, upstream, scratch, static_cast<T*>(query_gradient),
                    static_cast<T*>(key_gradient), static_cast<T*>(value_gradient));
  });
}

void gate_any(const HstuAttention* attention, int64_t begin, int64_t end, float* scratch,
              void* output) {
  with_type(attention->type, [&](auto zero) {
    gate(*attention, begin, end, scratch, static_cast<decltype(zero)*>(output));
  });
}

void gate_gradient_any(const HstuAttention* attention, const HstuAttentionGradient* gradient,
                       int64_t begin, int64_t end, float* scratch, float* av, float* sums) {
  with_type(attention->type, [&](auto zero) {
    gate_gradient<decltype(zero)>(*attention, *gradient, begin, end, scratch, av, sums);
  });
}

void norm_any(const HstuNorm* given, int64_t begin, int64_t end, float* scratch, void* output) {
  with_type(given->type, [&](auto zero) {
    norm(*given, begin, end, scratch, static_cast<decltype(zero)*>(output));
  });
}

void norm_gradient_any(const HstuNorm* given, int64_t begin, int64_t end, const void* upstream,
                       float* scratch, void* x, float* sums) {
  with_type(given->type, [&](auto zero) {
    using T = decltype(zero);
    norm_gradient(*given, begin, end, static_cast<const T*>(upstream), scratch, static_cast<T*>(x),
                  sums);
  });
}

void dropout_any(const HstuDropout* given, int64_t begin, int64_t end, void* output) {
  with_type(given->type,
            [&](auto zero) { dropout(*given, begin, end, static_cast<decltype(zero)*>(output)); });
}

}  // namespace

extern "C" const HstuKernels JOINED(hstu_kernels_, LEVEL);
const HstuKernels JOINED(hstu_kernels_, LEVEL) = {
    attend_any, attend_gradient_any, finish_gradient_any, gate_any, gate_gradient_any,
    norm_any,   norm_gradient_any,   dropout_any,
};
