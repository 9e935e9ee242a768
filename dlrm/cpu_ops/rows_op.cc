// TensorFlow operations on rows of embedding tables: vectors from rows, the sums of vectors that
// belong to one row, and gradient descent.

#include <algorithm>
#include <cstring>
#include <mutex>
#include <shared_mutex>

#include "absl/strings/str_cat.h"
#include "parallel.h"
#include "row_table_resource.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::Var;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Rows are brought into the cache so many ahead of their use: they lie anywhere.
constexpr int64_t kAhead = 16;

float* floats(Tensor& tensor) { return tensor.flat<float>().data(); }
const float* floats(const Tensor& tensor) { return tensor.flat<float>().data(); }

// In chunks whose size the compiler knows: a row is short.
constexpr int64_t kChunk = 16;

void copy_row(const float* from, int64_t width, float* to) {
  int64_t column = 0;
  for (; column + kChunk <= width; column += kChunk) {
    std::memcpy(to + column, from + column, kChunk * sizeof(float));
  }
  for (; column < width; ++column) to[column] = from[column];
}

void prefetch(const float* row, int64_t width) {
  for (int64_t column = 0; column < width; column += kChunk) __builtin_prefetch(row + column, 1);
}

absl::Status check(bool fits, const char* expected, const Tensor& a, const Tensor& b) {
  if (fits) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("expected ", expected, ", found ",
                                                 a.shape().DebugString(), " and ",
                                                 b.shape().DebugString()));
}

// Whether all of them are in [0, limit).
absl::Status check_rows(const Tensor& rows, int64_t limit) {
  const int32_t* const row = rows.flat<int32_t>().data();
  for (int64_t i = 0; i < rows.NumElements(); ++i) {
    if (row[i] < 0 || row[i] >= limit) {
      return absl::InvalidArgumentError(
          absl::StrCat("expected rows of 0 to ", limit - 1, ", found ", row[i]));
    }
  }
  return absl::OkStatus();
}

// Calls work(first, end) for ranges of [0, count), in parallel.
template <typename Work>
void in_ranges(OpKernelContext* context, int64_t count, const Work& work) {
  constexpr int64_t kRange = 2048;
  in_pieces(context, (count + kRange - 1) / kRange, [&](int64_t, int64_t piece) {
    work(piece * kRange, std::min((piece + 1) * kRange, count));
  });
}

// Adds each vector to the sum of its row, in their order; `row_of` is checked. Each thread sums
// other rows, every second, fourth and so on, as the first ones, of frequent keys, have the most
// vectors.
void sum(OpKernelContext* context, const Tensor& vectors, const Tensor& row_of, Tensor* sums) {
  const int64_t count = vectors.dim_size(0), width = vectors.dim_size(1);
  float* const to = floats(*sums);
  std::memset(to, 0, sums->TotalBytes());
  const float* const from = floats(vectors);
  const int32_t* const row = row_of.flat<int32_t>().data();
  int32_t shares = 1;
  while (2 * shares <= workers(context, count / kAhead)) shares *= 2;
  in_pieces(context, shares, [&](int64_t, int64_t share) {
    for (int64_t i = 0; i < count; ++i) {
      if (i + kAhead < count) __builtin_prefetch(to + row[i + kAhead] * width, 1);
      if ((row[i] & (shares - 1)) != share) continue;
      float* const sum = to + row[i] * width;
      const float* const vector = from + i * width;
      for (int64_t column = 0; column < width; ++column) sum[column] += vector[column];
    }
  });
}

constexpr char kVectors[] = "vectors [n, width] and a row for each [n]";

bool fit(const Tensor& vectors, const Tensor& row_of) {
  return vectors.dims() == 2 && row_of.dims() == 1 && vectors.dim_size(0) == row_of.dim_size(0);
}

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

class SumRows : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &vectors = context->input(0), &row_of = context->input(1);
    OP_REQUIRES_OK(context, check(fit(vectors, row_of), kVectors, vectors, row_of));
    const int32_t rows = context->input(2).scalar<int32_t>()();
    OP_REQUIRES(context, rows >= 0,
                absl::InvalidArgumentError(absl::StrCat("expected rows >= 0, found ", rows)));
    OP_REQUIRES_OK(context, check_rows(row_of, rows));
    Tensor* sums;
    OP_REQUIRES_OK(context,
                   context->allocate_output(0, TensorShape({rows, vectors.dim_size(1)}), &sums));
    sum(context, vectors, row_of, sums);
  }
};

// The rows behind a resource, a variable or a `RowTable`; kept from being freed, and once locked
// from being written by others.
class Table {
 public:
  absl::Status open(OpKernelContext* context) {
    const tensorflow::ResourceHandle& handle = HandleFromInput(context, 0);
    if (RowTableResource::is_in(handle)) return LookupResource(context, handle, &by_key_);
    TF_RETURN_IF_ERROR(LookupResource(context, handle, &variable_));
    const Tensor& values = *variable_->tensor();
    // Then every other reader copies, and nobody sees a table in the middle of a change.
    if (!variable_->copy_on_read_mode.load() || values.dims() != 2) {
      return absl::FailedPreconditionError(absl::StrCat(
          "expected a table [rows, width] whose rows were gathered or scattered before, found ",
          values.shape().DebugString()));
    }
    return absl::OkStatus();
  }

  void lock_shared() {
    by_key_ ? by_key_->mutex.lock_shared() : variable_->mu()->lock_shared();
    look();
  }
  void unlock_shared() {
    by_key_ ? by_key_->mutex.unlock_shared() : variable_->mu()->unlock_shared();
  }
  void lock() {
    by_key_ ? by_key_->mutex.lock() : variable_->mu()->lock();
    look();
  }
  void unlock() { by_key_ ? by_key_->mutex.unlock() : variable_->mu()->unlock(); }

  float* row(int32_t row) const {
    return chunks_[row >> shift_] + (row & ((int64_t{1} << shift_) - 1)) * width;
  }

  // Once locked:
  int64_t rows = 0, width = 0;

 private:
  void look() {
    if (by_key_) {
      rows = by_key_->table.rows();
      width = by_key_->table.width();
      chunks_ = by_key_->table.chunks();
      shift_ = by_key_->table.shift();
    } else {
      rows = variable_->tensor()->dim_size(0);
      width = variable_->tensor()->dim_size(1);
      values_ = floats(*variable_->tensor());
      chunks_ = &values_;
    }
  }

  tensorflow::core::RefCountPtr<Var> variable_;
  tensorflow::core::RefCountPtr<RowTableResource> by_key_;
  int shift_ = 31;  // a variable is one chunk
  float* values_ = nullptr;
  float* const* chunks_ = nullptr;
};

REGISTER_OP("ReadRows")
    .Input("table: resource")
    .Input("rows: int32")
    .Input("row_of: int32")
    .Output("vectors: float")
    .Output("stored: float")
    .Attr("width: int >= 1")
    .Attr("keep: bool")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle rows, row_of;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &rows));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 1, &row_of));
      int32_t width;
      TF_RETURN_IF_ERROR(c->GetAttr("width", &width));
      c->set_output(0, c->Matrix(c->Dim(row_of, 0), width));
      c->set_output(1, c->Matrix(InferenceContext::kUnknownDim, InferenceContext::kUnknownDim));
      return absl::OkStatus();
    });

class ReadRows : public OpKernel {
 public:
  explicit ReadRows(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("width", &width_));
    OP_REQUIRES_OK(context, context->GetAttr("keep", &keep_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &rows = context->input(1), &row_of = context->input(2);
    const int64_t distinct = rows.NumElements(), count = row_of.NumElements();
    Table table;
    OP_REQUIRES_OK(context, table.open(context));
    const std::shared_lock<Table> lock(table);
    OP_REQUIRES(context, table.width >= width_,
                absl::InvalidArgumentError(absl::StrCat("expected a table of width ", width_,
                                                        " or more, found ", table.width)));
    OP_REQUIRES_OK(context, check_rows(rows, table.rows));
    OP_REQUIRES_OK(context, check_rows(row_of, distinct));
    const TensorShape kept({keep_ ? distinct : 0, table.width});
    Tensor *vectors, *stored;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({count, width_}), &vectors));
    OP_REQUIRES_OK(context, context->allocate_output(1, kept, &stored));
    const int32_t* const row = rows.flat<int32_t>().data();
    const int32_t* const index = row_of.flat<int32_t>().data();
    float *const kept_values = floats(*stored), *const to = floats(*vectors);
    if (keep_) {
      in_ranges(context, distinct, [&](int64_t first, int64_t end) {
        for (int64_t i = first; i < end; ++i) {
          if (i + kAhead < end) prefetch(table.row(row[i + kAhead]), table.width);
          copy_row(table.row(row[i]), table.width, kept_values + i * table.width);
        }
      });
    }
    const auto source = [&](int64_t i) -> const float* {
      return keep_ ? kept_values + index[i] * table.width : table.row(row[index[i]]);
    };
    in_ranges(context, count, [&](int64_t first, int64_t end) {
      for (int64_t i = first; i < end; ++i) {
        if (i + kAhead < end) prefetch(source(i + kAhead), width_);
        copy_row(source(i), width_, to + i * width_);
      }
    });
  }

 private:
  int32_t width_;
  bool keep_;
};

REGISTER_OP("DescendRows")
    .Input("table: resource")
    .Input("rows: int32")
    .Input("row_of: int32")
    .Input("gradients: float")
    .Input("step_size: float")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle rows, row_of, gradients, step_size;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &rows));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 1, &row_of));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 2, &gradients));
      return c->WithRank(c->input(4), 0, &step_size);
    });

class DescendRows : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &rows = context->input(1), &row_of = context->input(2);
    const Tensor& gradients = context->input(3);
    const int64_t distinct = rows.NumElements();
    OP_REQUIRES_OK(context, check(fit(gradients, row_of), kVectors, gradients, row_of));
    OP_REQUIRES_OK(context, check_rows(row_of, distinct));
    const float step_size = context->input(4).scalar<float>()();
    const int64_t width = gradients.dim_size(1);
    Tensor sums;
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_FLOAT,
                                                   TensorShape({distinct, width}), &sums));
    sum(context, gradients, row_of, &sums);
    Table table;
    OP_REQUIRES_OK(context, table.open(context));
    const std::lock_guard<Table> lock(table);
    OP_REQUIRES(context, table.width == width,
                absl::InvalidArgumentError(
                    absl::StrCat("expected a table of width ", width, ", found ", table.width)));
    OP_REQUIRES_OK(context, check_rows(rows, table.rows));
    const int32_t* const row = rows.flat<int32_t>().data();
    const float* const gradients_by_row = floats(sums);
    in_ranges(context, distinct, [&](int64_t first, int64_t end) {
      for (int64_t i = first; i < end; ++i) {
        if (i + kAhead < end) prefetch(table.row(row[i + kAhead]), width);
        float* const to = table.row(row[i]);
        const float* const from = gradients_by_row + i * width;
        for (int64_t column = 0; column < width; ++column) to[column] -= step_size * from[column];
      }
    });
  }
};

REGISTER_KERNEL_BUILDER(Name("SumRows").Device(tensorflow::DEVICE_CPU), SumRows);
REGISTER_KERNEL_BUILDER(Name("ReadRows").Device(tensorflow::DEVICE_CPU), ReadRows);
REGISTER_KERNEL_BUILDER(Name("DescendRows").Device(tensorflow::DEVICE_CPU), DescendRows);

}  // namespace
