// TensorFlow operations on a `RowTable`, which a resource holds: its keys, and rows into it and out
// of it. What reads and updates the rows of a step is in rows_op.cc.

#include "row_table_resource.h"

#include <limits>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "parallel.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace {

using tensorflow::DT_INT32;
using tensorflow::DT_INT64;
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

// What the operations on keys have in common: [n] keys of int32 or int64, the first key [T] of each
// table behind its own, and the step.
template <typename Key>
struct Keys {
  absl::Status open(OpKernelContext* context) {
    TF_RETURN_IF_ERROR(LookupResource(context, HandleFromInput(context, 0), &resource));
    const Tensor &given = context->input(1), &last = context->input(2), &at = context->input(3);
    if (given.dims() != 1 || last.dims() != 1 || at.dims() != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "expected keys [n], ends [tables] and a step [], found ", given.shape().DebugString(),
          ", ", last.shape().DebugString(), " and ", at.shape().DebugString()));
    }
    keys = given.flat<Key>().data();
    count = given.NumElements();
    ends = last.flat<int64_t>().data();
    tables = last.NumElements();
    step = at.scalar<int32_t>()();
    for (int64_t i = 0; i < count; ++i) {
      if (keys[i] < 0 || tables == 0 || keys[i] >= ends[tables - 1]) {
        return absl::InvalidArgumentError(absl::StrCat(
            "expected keys below ", tables ? ends[tables - 1] : 0, ", found ", keys[i]));
      }
    }
    return absl::OkStatus();
  }

  // The row that a key shares with others of its table.
  int32_t shared_by(int64_t key) const {
    return static_cast<int32_t>(std::upper_bound(ends, ends + tables, key) - ends);
  }

  tensorflow::core::RefCountPtr<RowTableResource> resource;
  const Key* keys = nullptr;
  const int64_t* ends = nullptr;
  int64_t count = 0, tables = 0;
  int32_t step = 0;
};

absl::Status keys_shape(InferenceContext* c) {
  ShapeHandle keys, ends, step;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &keys));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 1, &ends));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 0, &step));
  c->set_output(0, keys);
  for (int i = 1; i < c->num_outputs(); ++i) c->set_output(i, c->Vector(kUnknown));
  return absl::OkStatus();
}

REGISTER_OP("SightKeys")
    .Input("table: resource")
    .Input("keys: Key")
    .Input("ends: int64")
    .Input("step: int32")
    .Output("rows: int32")
    .Output("fresh: int32")
    .Output("fresh_keys: int64")
    .Attr("Key: {int32, int64}")
    .SetIsStateful()
    .SetShapeFn(keys_shape);

template <typename Key>
class SightKeys : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Keys<Key> keys;
    OP_REQUIRES_OK(context, keys.open(context));
    Tensor* rows;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({keys.count}), &rows));
    int32_t* const row = rows->flat<int32_t>().data();
    std::vector<int32_t> fresh;
    std::vector<int64_t> fresh_keys;
    {
      const std::lock_guard<std::shared_mutex> lock(keys.resource->mutex);
      RowTable& table = keys.resource->table;
      OP_REQUIRES(context,
                  table.rows() + keys.count < std::numeric_limits<int32_t>::max() &&
                      keys.step < std::numeric_limits<int32_t>::max(),
                  absl::ResourceExhaustedError("expected fewer than 2^31 rows on a rank"));
      for (int64_t i = 0; i < keys.count; ++i) {
        if (i + kAhead < keys.count) table.prefetch(keys.keys[i + kAhead]);
        bool is_fresh;
        row[i] = table.sight(keys.keys[i], keys.step, &is_fresh);
        if (is_fresh) {
          fresh.push_back(row[i]);
          fresh_keys.push_back(keys.keys[i]);
        }
        if (row[i] == RowTable::kNone) row[i] = keys.shared_by(keys.keys[i]);
      }
      table.sweep(keys.step);
    }
    const TensorShape found({static_cast<int64_t>(fresh.size())});
    Tensor *rows_output, *keys_output;
    OP_REQUIRES_OK(context, context->allocate_output(1, found, &rows_output));
    OP_REQUIRES_OK(context, context->allocate_output(2, found, &keys_output));
    std::copy(fresh.begin(), fresh.end(), rows_output->flat<int32_t>().data());
    std::copy(fresh_keys.begin(), fresh_keys.end(), keys_output->flat<int64_t>().data());
  }
};

REGISTER_OP("FindKeys")
    .Input("table: resource")
    .Input("keys: Key")
    .Input("ends: int64")
    .Input("step: int32")
    .Output("rows: int32")
    .Attr("Key: {int32, int64}")
    .SetIsStateful()
    .SetShapeFn(keys_shape);

template <typename Key>
class FindKeys : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Keys<Key> keys;
    OP_REQUIRES_OK(context, keys.open(context));
    Tensor* rows;
    OP_REQUIRES_OK(context, context->allocate_output(0, TensorShape({keys.count}), &rows));
    int32_t* const row = rows->flat<int32_t>().data();
    const std::shared_lock<std::shared_mutex> lock(keys.resource->mutex);
    const RowTable& table = keys.resource->table;
    const bool shares = keys.resource->shared > 0;
    for (int64_t i = 0; i < keys.count; ++i) {
      if (i + kAhead < keys.count) table.prefetch(keys.keys[i + kAhead]);
      row[i] = table.find(keys.keys[i], keys.step);
      if (row[i] == RowTable::kNone && shares) row[i] = keys.shared_by(keys.keys[i]);
    }
  }
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
#define REGISTER_KEYS(kernel, Integer)                                             \
  REGISTER_KERNEL_BUILDER(                                                         \
      Name(#kernel).Device(tensorflow::DEVICE_CPU).TypeConstraint<Integer>("Key"), \
      kernel<Integer>)

REGISTER_KERNEL_BUILDER(Name("RowTable").Device(tensorflow::DEVICE_CPU), RowTableOp);
REGISTER(WriteRows);
REGISTER(ListKeys);
REGISTER(PutKeys);
REGISTER(ClearKeys);
REGISTER_KEYS(SightKeys, int32_t);
REGISTER_KEYS(SightKeys, int64_t);
REGISTER_KEYS(FindKeys, int32_t);
REGISTER_KEYS(FindKeys, int64_t);

}  // namespace
