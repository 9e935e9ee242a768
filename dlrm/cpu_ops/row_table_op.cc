// TensorFlow operations on a `RowTable` as a whole, which a resource holds. Those on the keys of a
// batch are in sighted_keys_op.cc, those that read and update its rows in rows_op.cc.

#include "row_table_resource.h"

#include <mutex>

#include "absl/strings/str_cat.h"
#include "parallel.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

constexpr int64_t kAhead = 16;
constexpr auto kUnknown = InferenceContext::kUnknownDim;

const int32_t* ints(const Tensor& tensor) { return tensor.flat<int32_t>().data(); }

REGISTER_OP("RowTable")
    .Output("table: resource")
    .Attr("width: int >= 1")
    .Attr("shared: int >= 0")
    .Attr("admit_after: int >= 0")
    .Attr("evict_after: int >= 0")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape);

class RowTableOp : public OpKernel {
 public:
  explicit RowTableOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("width", &width_));
    OP_REQUIRES_OK(context, context->GetAttr("shared", &shared_));
    OP_REQUIRES_OK(context, context->GetAttr("admit_after", &admit_after_));
    OP_REQUIRES_OK(context, context->GetAttr("evict_after", &evict_after_));
  }

  // The table lives as long as its handle.
  void Compute(OpKernelContext* context) override {
    Tensor* handle;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({}), &handle));
    handle->scalar<tensorflow::ResourceHandle>()() =
        tensorflow::ResourceHandle::MakeRefCountingHandle(
            new RowTableResource(width_, shared_, admit_after_, evict_after_),
            context->device()->name());
  }

 private:
  int32_t width_, shared_, admit_after_, evict_after_;
};

REGISTER_OP("WriteRows")
    .Input("table: resource")
    .Input("rows: int32")
    .Input("stored: float")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle rows, stored;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &rows));
      return c->WithRank(c->input(2), 2, &stored);
    });

class WriteRows : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &rows = context->input(1), &stored = context->input(2);
    tensorflow::core::RefCountPtr<RowTableResource> resource;
    OP_REQUIRES_OK(context, LookupResource(context, HandleFromInput(context, 0), &resource));
    const std::lock_guard<std::shared_mutex> lock(resource->mutex);
    RowTable& table = resource->table;
    const int64_t count = rows.NumElements(), width = table.width();
    OP_REQUIRES(context,
                stored.dims() == 2 && stored.dim_size(0) == count && stored.dim_size(1) == width,
                absl::InvalidArgumentError(absl::StrCat("expected values [", count, ", ", width,
                                                        "] for ", count, " rows, found ",
                                                        stored.shape().DebugString())));
    const int32_t* const row = ints(rows);
    for (int64_t i = 0; i < count; ++i) {
      OP_REQUIRES(context, row[i] >= 0 && row[i] < table.rows(),
                  absl::InvalidArgumentError(absl::StrCat("expected rows of 0 to ",
                                                          table.rows() - 1, ", found ", row[i])));
    }
    const float* const values = stored.flat<float>().data();
    constexpr int64_t kRange = 2048;
    in_pieces(context, (count + kRange - 1) / kRange, [&](int64_t, int64_t piece) {
      const int64_t end = std::min(count, (piece + 1) * kRange);
      for (int64_t i = piece * kRange; i < end; ++i) {
        if (i + kAhead < end) __builtin_prefetch(table.row(row[i + kAhead]), 1);
        std::memcpy(table.row(row[i]), values + i * width,
                    static_cast<size_t>(width) * sizeof(float));
      }
    });
  }
};

REGISTER_OP("ListKeys")
    .Input("table: resource")
    .Output("keys: int64")
    .Output("rows: int32")
    .Output("seen: int32")
    .Output("last: int32")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      for (int i = 0; i < 4; ++i) c->set_output(i, c->Vector(kUnknown));
      return absl::OkStatus();
    });

class ListKeys : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    tensorflow::core::RefCountPtr<RowTableResource> resource;
    OP_REQUIRES_OK(context, LookupResource(context, HandleFromInput(context, 0), &resource));
    const std::shared_lock<std::shared_mutex> lock(resource->mutex);
    const TensorShape shape({resource->table.entries()});
    Tensor *keys, *numbers[3];
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &keys));
    for (int i = 0; i < 3; ++i) {
      OP_REQUIRES_OK(context, context->allocate_output(i + 1, shape, &numbers[i]));
    }
    int64_t* key = keys->flat<int64_t>().data();
    int32_t* row = numbers[0]->flat<int32_t>().data();
    int32_t* seen = numbers[1]->flat<int32_t>().data();
    int32_t* last = numbers[2]->flat<int32_t>().data();
    resource->table.each([&](const RowTable::Entry& entry) {
      *key++ = entry.key;
      *row++ = entry.row;
      *seen++ = entry.seen;
      *last++ = entry.last;
    });
  }
};

REGISTER_OP("PutKeys")
    .Input("table: resource")
    .Input("keys: int64")
    .Input("seen: int32")
    .Input("last: int32")
    .Input("has_row: bool")
    .Output("rows: int32")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle keys;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &keys));
      for (int i = 2; i < 5; ++i) TF_RETURN_IF_ERROR(c->Merge(keys, c->input(i), &keys));
      c->set_output(0, keys);
      return absl::OkStatus();
    });

class PutKeys : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    tensorflow::core::RefCountPtr<RowTableResource> resource;
    OP_REQUIRES_OK(context, LookupResource(context, HandleFromInput(context, 0), &resource));
    const int64_t count = context->input(1).NumElements();
    for (int i = 2; i < 5; ++i) {
      OP_REQUIRES(context, context->input(i).NumElements() == count,
                  absl::InvalidArgumentError(absl::StrCat("expected ", count, " of each, found ",
                                                          context->input(i).NumElements())));
    }
    Tensor* rows;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({count}), &rows));
    const int64_t* const key = context->input(1).flat<int64_t>().data();
    const int32_t *const seen = ints(context->input(2)), *const last = ints(context->input(3));
    const bool* const has_row = context->input(4).flat<bool>().data();
    int32_t* const row = rows->flat<int32_t>().data();
    const std::lock_guard<std::shared_mutex> lock(resource->mutex);
    for (int64_t i = 0; i < count; ++i) {
      row[i] = resource->table.put(key[i], seen[i], last[i], has_row[i]);
    }
  }
};

REGISTER_OP("ClearKeys")
    .Input("table: resource")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::NoOutputs);

class ClearKeys : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    tensorflow::core::RefCountPtr<RowTableResource> resource;
    OP_REQUIRES_OK(context, LookupResource(context, HandleFromInput(context, 0), &resource));
    const std::lock_guard<std::shared_mutex> lock(resource->mutex);
    resource->table.clear();
  }
};

#define REGISTER(kernel) \
  REGISTER_KERNEL_BUILDER(Name(#kernel).Device(tensorflow::DEVICE_CPU), kernel)

REGISTER_KERNEL_BUILDER(Name("RowTable").Device(tensorflow::DEVICE_CPU), RowTableOp);
REGISTER(WriteRows);
REGISTER(ListKeys);
REGISTER(PutKeys);
REGISTER(ClearKeys);

}  // namespace
