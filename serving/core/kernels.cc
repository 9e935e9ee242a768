// The kernels of one instruction set, as kernels.h offers them. Built once for each level of
// scorer.h, with that level's compiler flags and LEVEL as its name; it knows no other level.
//
// A sample's float32 logit has the same bits in every batch, except on CPUs with a matrix unit:
// there, requests of 16 samples or more use split floats, whose sums differ in the last bits. The
// logits are within 1e-5 of the others; measured up to 4e-6 on those of a trained model.

#include "kernels.h"

#include "layer_kernels.h"
#include "matrix_kernels.h"
#include "row_kernels.h"

#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)

namespace {

#if defined(__AMX_INT8__)
constexpr int kWordMultiple = 16;
#else
constexpr int kWordMultiple = 1;
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

}  // namespace

extern const Kernels JOINED(scorer_kernels_, LEVEL);
const Kernels JOINED(scorer_kernels_, LEVEL) = {kPanel,   kGroup, kWordMultiple, run_layer,
                                                quantise, gather, kSplit,        kParts};
