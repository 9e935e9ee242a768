// A TensorFlow operation on rows of embedding tables: the sums of vectors that belong to one row.

#include <cstring>

#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

REGISTER_OP("SumRows")
    .Input("vectors: float")
    .Input("row_of: int32")
    .Input("rows: int32")
    .Output("sums: float")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle vectors, row_of, rows;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &vectors));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &row_of));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 0, &rows));
      DimensionHandle count;
      TF_RETURN_IF_ERROR(c->Merge(c->Dim(vectors, 0), c->Dim(row_of, 0), &count));
      TF_RETURN_IF_ERROR(c->MakeDimForScalarInput(2, &count));
      c->set_output(0, c->Matrix(count, c->Dim(vectors, 1)));
      return absl::OkStatus();
    });

// Vectors whose sums are brought into the cache ahead of time: their rows lie anywhere.
constexpr int64_t kAhead = 16;

class SumRows : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& vectors = context->input(0);
    const Tensor& row_of = context->input(1);
    OP_REQUIRES(context,
                vectors.dims() == 2 && row_of.dims() == 1 &&
                    vectors.dim_size(0) == row_of.dim_size(0) && context->input(2).dims() == 0,
                absl::InvalidArgumentError(
                    absl::StrCat("expected vectors [n, width], a row for each [n] and their number "
                                 "[], found ",
                                 vectors.shape().DebugString(), ", ", row_of.shape().DebugString(),
                                 " and ", context->input(2).shape().DebugString())));
    const int64_t count = vectors.dim_size(0), width = vectors.dim_size(1);
    const int32_t rows = context->input(2).scalar<int32_t>()();
    OP_REQUIRES(context, rows >= 0,
                absl::InvalidArgumentError(absl::StrCat("expected rows >= 0, found ", rows)));
    Tensor* sums;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({rows, width}), &sums));
    float* const to = sums->flat<float>().data();
    std::memset(to, 0, static_cast<size_t>(rows * width) * sizeof(float));
    const float* from = vectors.flat<float>().data();
    const int32_t* const row = row_of.flat<int32_t>().data();
    for (int64_t i = 0; i < count; ++i, from += width) {
      OP_REQUIRES(context, 0 <= row[i] && row[i] < rows,
                  absl::InvalidArgumentError(
                      absl::StrCat("expected rows of 0 to ", rows - 1, ", found ", row[i])));
      if (i + kAhead < count) __builtin_prefetch(to + row[i + kAhead] * width, 1);
      float* const sum = to + row[i] * width;
      for (int64_t column = 0; column < width; ++column) sum[column] += from[column];
    }
  }
};

REGISTER_KERNEL_BUILDER(Name("SumRows").Device(tensorflow::DEVICE_CPU), SumRows);

}  // namespace
