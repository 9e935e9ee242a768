// TensorFlow operations on the keys of embedding tables: ids -> keys, distinct keys, and keys in
// the order of their owners.

#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace {

using tensorflow::DT_INT32;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

const int32_t* ints(const Tensor& tensor) { return tensor.flat<int32_t>().data(); }

int32_t* new_ints(OpKernelContext* context, int output, int64_t count) {
  Tensor* tensor = nullptr;
  const absl::Status status = context->allocate_output(output, TensorShape({count}), &tensor);
  if (!status.ok()) context->SetStatus(status);
  return status.ok() ? tensor->flat<int32_t>().data() : nullptr;
}

REGISTER_OP("KeysOfIds")
    .Input("ids: int32")
    .Input("offsets: int32")
    .Input("sizes: int32")
    .Output("keys: int32")
    .Output("outside: int32")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle ids, offsets, sizes;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &ids));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &offsets));
      TF_RETURN_IF_ERROR(c->Merge(offsets, c->input(2), &sizes));
      DimensionHandle tables, keys;
      TF_RETURN_IF_ERROR(c->Merge(c->Dim(ids, 1), c->Dim(sizes, 0), &tables));
      TF_RETURN_IF_ERROR(c->Multiply(c->Dim(ids, 0), tables, &keys));
      c->set_output(0, c->Vector(keys));
      c->set_output(1, c->Scalar());
      return absl::OkStatus();
    });

class KeysOfIds : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &ids = context->input(0), &offsets = context->input(1), &sizes = context->input(2);
    const int64_t tables = sizes.NumElements();
    OP_REQUIRES(context,
                ids.dims() == 2 && ids.dim_size(1) == tables && offsets.NumElements() == tables,
                absl::InvalidArgumentError(absl::StrCat(
                    "expected ids [batch, tables] and an offset and a size of each table, found ",
                    ids.shape().DebugString(), ", ", offsets.shape().DebugString(), " and ",
                    sizes.shape().DebugString())));
    int32_t* keys = new_ints(context, 0, ids.NumElements());
    Tensor* outside;
    OP_REQUIRES_OK(context, context->status());
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({}), &outside));
    const int32_t *id = ints(ids), *offset = ints(offsets), *size = ints(sizes);
    int32_t count = 0;
    for (int64_t sample = 0; sample < ids.dim_size(0); ++sample, id += tables, keys += tables) {
      for (int64_t table = 0; table < tables; ++table) {
        const int32_t last = size[table] - 1, low = id[table] < 0 ? 0 : id[table];
        const int32_t safe = low > last ? last : low;
        count += safe != id[table];
        keys[table] = offset[table] + safe;
      }
    }
    outside->scalar<int32_t>()() = count;
  }
};

REGISTER_OP("DistinctKeys")
    .Input("keys: int32")
    .Output("distinct: int32")
    .Output("index: int32")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle keys;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 1, &keys));
      c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
      c->set_output(1, keys);
      return absl::OkStatus();
    });

// A hash table of the positions in `distinct`, with linear probing and at least half of it empty.
class DistinctKeys : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const int64_t count = context->input(0).NumElements();
    const int32_t* const keys = ints(context->input(0));
    int bits = 4;
    while ((int64_t{1} << bits) < 2 * count) ++bits;
    const int shift = 32 - bits;
    OP_REQUIRES(context, shift >= 0 && context->input(0).dims() == 1,
                absl::InvalidArgumentError(absl::StrCat("expected fewer than 2^31 keys [n], found ",
                                                        context->input(0).shape().DebugString())));
    Tensor slots_memory, distinct_memory;
    OP_REQUIRES_OK(context, context->allocate_temp(DT_INT32, TensorShape({int64_t{1} << bits}),
                                                   &slots_memory));
    OP_REQUIRES_OK(context,
                   context->allocate_temp(DT_INT32, TensorShape({count}), &distinct_memory));
    int32_t* const index = new_ints(context, 1, count);
    OP_REQUIRES_OK(context, context->status());
    int32_t* const slots = slots_memory.flat<int32_t>().data();
    int32_t* const distinct = distinct_memory.flat<int32_t>().data();
    std::memset(slots, 0xff, sizeof(int32_t) << bits);  // -1: empty
    const uint32_t mask = (uint32_t{1} << bits) - 1;
    const auto slot_of = [&](int32_t key) {
      return (static_cast<uint32_t>(key) * 2654435769u) >> shift;  // 2^32 over the golden ratio
    };
    int32_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
      if (i + kAhead < count) __builtin_prefetch(slots + slot_of(keys[i + kAhead]), 1);
      uint32_t slot = slot_of(keys[i]);
      while (slots[slot] >= 0 && distinct[slots[slot]] != keys[i]) slot = (slot + 1) & mask;
      if (slots[slot] < 0) {
        distinct[found] = keys[i];
        slots[slot] = found++;
      }
      index[i] = slots[slot];
    }
    context->set_output(0, distinct_memory.Slice(0, found));
  }

 private:
  static constexpr int64_t kAhead = 16;
};

REGISTER_OP("KeysByOwner")
    .Input("keys: int32")
    .Output("by_owner: int32")
    .Output("order: int32")
    .Output("position: int32")
    .Output("sent: int32")
    .Attr("owners: int >= 1")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle keys;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 1, &keys));
      int32_t owners;
      TF_RETURN_IF_ERROR(c->GetAttr("owners", &owners));
      for (int i = 0; i < 3; ++i) c->set_output(i, keys);
      c->set_output(3, c->Vector(owners));
      return absl::OkStatus();
    });

// A counting sort, which keeps the order within an owner.
class KeysByOwner : public OpKernel {
 public:
  explicit KeysByOwner(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("owners", &owners_));
  }

  void Compute(OpKernelContext* context) override {
    OP_REQUIRES(context, context->input(0).dims() == 1,
                absl::InvalidArgumentError(absl::StrCat("expected keys [n], found ",
                                                        context->input(0).shape().DebugString())));
    const int64_t count = context->input(0).NumElements();
    const int32_t* const keys = ints(context->input(0));
    int32_t* const by_owner = new_ints(context, 0, count);
    int32_t* const order = new_ints(context, 1, count);
    int32_t* const position = new_ints(context, 2, count);
    int32_t* const sent = new_ints(context, 3, owners_);
    OP_REQUIRES_OK(context, context->status());
    const auto owner_of = [&](int32_t key) {
      return static_cast<uint32_t>(key) % static_cast<uint32_t>(owners_);
    };
    std::memset(sent, 0, sizeof(int32_t) * static_cast<size_t>(owners_));
    for (int64_t i = 0; i < count; ++i) ++sent[owner_of(keys[i])];
    std::vector<int32_t> next(static_cast<size_t>(owners_), 0);
    for (size_t owner = 1; owner < next.size(); ++owner) {
      next[owner] = next[owner - 1] + sent[owner - 1];
    }
    for (int64_t i = 0; i < count; ++i) {
      const int32_t place = next[owner_of(keys[i])]++;
      by_owner[place] = keys[i];
      order[place] = static_cast<int32_t>(i);
      position[i] = place;
    }
  }

 private:
  int32_t owners_;
};

REGISTER_KERNEL_BUILDER(Name("KeysOfIds").Device(tensorflow::DEVICE_CPU), KeysOfIds);
REGISTER_KERNEL_BUILDER(Name("DistinctKeys").Device(tensorflow::DEVICE_CPU), DistinctKeys);
REGISTER_KERNEL_BUILDER(Name("KeysByOwner").Device(tensorflow::DEVICE_CPU), KeysByOwner);

}  // namespace
