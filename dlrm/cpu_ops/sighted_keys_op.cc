// TensorFlow operations on the keys of a batch in a `RowTable`: who has a row, and who gets one.

#include <algorithm>
#include <limits>
#include <mutex>
#include <vector>

#include "absl/strings/str_cat.h"
#include "row_table_resource.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Entries are brought into the cache so many ahead of their use: they lie anywhere.
constexpr int64_t kAhead = 16;

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
  for (int i = 1; i < c->num_outputs(); ++i)
    c->set_output(i, c->Vector(InferenceContext::kUnknownDim));
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

#define REGISTER_KEYS(kernel, Integer)                                             \
  REGISTER_KERNEL_BUILDER(                                                         \
      Name(#kernel).Device(tensorflow::DEVICE_CPU).TypeConstraint<Integer>("Key"), \
      kernel<Integer>)

REGISTER_KEYS(SightKeys, int32_t);
REGISTER_KEYS(SightKeys, int64_t);
REGISTER_KEYS(FindKeys, int32_t);
REGISTER_KEYS(FindKeys, int64_t);

}  // namespace
