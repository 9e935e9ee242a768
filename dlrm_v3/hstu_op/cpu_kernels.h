// What a build of the CPU kernels offers to cpu_ops.cc, which divides the work among threads.
//
// A kernel works on the calling thread, in memory that it is given. It knows no requests.
#ifndef HSTU_CPU_KERNELS_H
#define HSTU_CPU_KERNELS_H

#include <stdint.h>

#include "hstu.h"

enum {
  HSTU_BLOCK = 64,  // rows of queries, and of keys, that are multiplied at a time
  HSTU_LANES = 16,  // of the widest vector register
};

// One head of one request. A row of the history attends the history up to itself, a target all of
// the history and itself.
typedef struct {
  int32_t type;
  int64_t attention_dim, value_dim;
  float scale;
  const void *queries, *keys, *values;  // of row 0; the next begins `stride` values later
  int64_t stride;
  const void *history_keys, *history_values;
  int64_t history_stride, history;  // its number of rows
  int64_t causal;                   // all of `history` if its rows are the first rows, or 0
} HstuHead;

typedef struct {
  // Rows [begin, end) of a head, at most HSTU_BLOCK: either all of the history or all targets.
  // Writes `scale` times the sums to output, whose rows are `stride` values apart; output points to
  // row 0.
  void (*attend)(const HstuHead* head, int64_t begin, int64_t end, float* scratch, void* output,
                 int64_t stride);

  // The keys [first, last) of a head's history and the rows that attend them, up to `rows`, of
  // which there are some: writes the gradients of keys and values, as far apart as the history's
  // rows, and what they add to the gradients of the queries, still without the factor of the
  // products: [rows - hstu_first_query(head, first), hstu_padded(attention_dim)]. upstream: the
  // gradient of av times the scale; its rows are `stride` values apart.
  void (*attend_gradient)(const HstuHead* head, int64_t rows, int64_t first, int64_t last,
                          const float* upstream, int64_t stride, float* scratch,
                          float* query_gradients, void* key_gradient, void* value_gradient);

  // The sum of `count` parts of a row's query gradient -> query_gradient, and for a target also
  // what comes from attending itself, with the gradients of its key and value.
  void (*finish_gradient)(const HstuHead* head, int64_t row, const float* const* parts,
                          int64_t count, const float* upstream, float* scratch,
                          void* query_gradient, void* key_gradient, void* value_gradient);

  // u' and y from projected's u and the output's av.
  void (*gate)(const HstuAttention* attention, int64_t begin, int64_t end, float* scratch,
               void* output);
  // The gradients of u and, times the scale, av; adds those of gamma and beta to `sums` [2, H V].
  void (*gate_gradient)(const HstuAttention* attention, const HstuAttentionGradient* gradient,
                        int64_t begin, int64_t end, float* scratch, float* av, float* sums);

  void (*norm)(const HstuNorm* norm, int64_t begin, int64_t end, float* scratch, void* output);
  void (*norm_gradient)(const HstuNorm* norm, int64_t begin, int64_t end, const void* upstream,
                        float* scratch, void* x, float* sums);
  void (*dropout)(const HstuDropout* dropout, int64_t begin, int64_t end, void* output);
} HstuKernels;

static inline int64_t hstu_padded(int64_t values) {
  return (values + HSTU_LANES - 1) / HSTU_LANES * HSTU_LANES;
}

// The first row that attends a key of the history.
static inline int64_t hstu_first_query(const HstuHead* head, int64_t key) {
  return head->causal ? key : 0;
}

// Number of floats of scratch memory that each kernel needs.
static inline int64_t hstu_attend_floats(int64_t attention_dim, int64_t value_dim) {
  return HSTU_BLOCK * (2 * hstu_padded(attention_dim) + 2 * hstu_padded(value_dim) + HSTU_BLOCK);
}
static inline int64_t hstu_attend_gradient_floats(int64_t attention_dim, int64_t value_dim) {
  return HSTU_BLOCK *
         (4 * hstu_padded(attention_dim) + 3 * hstu_padded(value_dim) + 2 * HSTU_BLOCK);
}
static inline int64_t hstu_row_floats(int64_t width) { return 4 * hstu_padded(width); }

#endif
