// TensorFlow operations on the keys of embedding tables: ids -> keys, distinct keys, and keys in
// the order of their owners.

#include <cstring>
#include <type_traits>
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

template <typename Integer>
const Integer* integers(const Tensor& tensor) {
  return tensor.flat<Integer>().data();
}

template <typename Integer>
Integer* new_integers(OpKernelContext* context, int output, int64_t count) {
  Tensor* tensor = nullptr;
  const absl::Status status = context->allocate_output(output, TensorShape({count}), &tensor);
  if (!status.ok()) context->SetStatus(status);
  return status.ok() ? tensor->flat<Integer>().data() : nullptr;
}

REGISTER_OP("KeysOfIds")
    .Input("ids: Key")
    .Input("offsets: Key")
    .Input("sizes: Key")
    .Output("keys: Key")
    .Output("outside: int32")
    .Attr("Key: {int32, int64}")
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

template <typename Key>
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
    Key* keys = new_integers<Key>(context, 0, ids.NumElements());
    Tensor* outside;
    OP_REQUIRES_OK(context, context->status());
    OP_REQUIRES_OK(context, context->allocate_output(1, TensorShape({}), &outside));
    const Key* id = integers<Key>(ids);
    const Key *const offset = integers<Key>(offsets), *const size = integers<Key>(sizes);
    int32_t count = 0;
    for (int64_t sample = 0; sample < ids.dim_size(0); ++sample, id += tables, keys += tables) {
      for (int64_t table = 0; table < tables; ++table) {
        const Key last = size[table] - 1, low = id[table] < 0 ? 0 : id[table];
        const Key safe = low > last ? last : low;
        count += safe != id[table];
        keys[table] = offset[table] + safe;
      }
    }
    outside->scalar<int32_t>()() = count;
  }
};

REGISTER_OP("DistinctKeys")
    .Input("keys: Key")
    .Output("distinct: Key")
    .Output("index: int32")
    .Attr("Key: {int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle keys;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 1, &keys));
      c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
      c->set_output(1, keys);
      return absl::OkStatus();
    });

// A hash table of the positions in `distinct`, with linear probing and at least half of it empty.
template <typename Key>
class DistinctKeys : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const int64_t count = context->input(0).NumElements();
    const Key* const keys = integers<Key>(context->input(0));
    int bits = 4;
    while ((int64_t{1} << bits) < 2 * count) ++bits;
    const int shift = kBits - bits;
    OP_REQUIRES(context, bits < 32 && context->input(0).dims() == 1,
                absl::InvalidArgumentError(absl::StrCat("expected fewer than 2^31 keys [n], found ",
                                                        context->input(0).shape().DebugString())));
    Tensor slots_memory, distinct_memory;
    OP_REQUIRES_OK(context, context->allocate_temp(DT_INT32, TensorShape({int64_t{1} << bits}),
                                                   &slots_memory));
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DataTypeToEnum<Key>::value,
                                                   TensorShape({count}), &distinct_memory));
    int32_t* const index = new_integers<int32_t>(context, 1, count);
    OP_REQUIRES_OK(context, context->status());
    int32_t* const slots = slots_memory.flat<int32_t>().data();
    Key* const distinct = distinct_memory.flat<Key>().data();
    std::memset(slots, 0xff, sizeof(int32_t) << bits);  // -1: empty
    const uint32_t mask = (uint32_t{1} << bits) - 1;
    const auto slot_of = [&](Key key) {
      return static_cast<uint32_t>((static_cast<Unsigned>(key) * kGolden) >> shift);
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
  using Unsigned = std::make_unsigned_t<Key>;
  static constexpr int kBits = 8 * sizeof(Key);
  // 2^64 over the golden ratio, or 2^32.
  static constexpr auto kGolden = static_cast<Unsigned>(0x9e3779b97f4a7c15u >> (64 - kBits));
  static constexpr int64_t kAhead = 16;
};

REGISTER_OP("KeysByOwner")
    .Input("keys: Key")
    .Output("by_owner: Key")
    .Output("order: int32")
    .Output("position: int32")
    .Output("sent: int32")
    .Attr("owners: int >= 1")
    .Attr("Key: {int32, int64}")
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
template <typename Key>
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
    const Key* const keys = integers<Key>(context->input(0));
    Key* const by_owner = new_integers<Key>(context, 0, count);
    int32_t* const order = new_integers<int32_t>(context, 1, count);
    int32_t* const position = new_integers<int32_t>(context, 2, count);
    int32_t* const sent = new_integers<int32_t>(context, 3, owners_);
    OP_REQUIRES_OK(context, context->status());
    using Unsigned = std::make_unsigned_t<Key>;
    const auto owner_of = [&](Key key) {
      return static_cast<size_t>(static_cast<Unsigned>(key) % static_cast<Unsigned>(owners_));
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

#define REGISTER_KEYS(kernel, Integer)                                             \
  REGISTER_KERNEL_BUILDER(                                                         \
      Name(#kernel).Device(tensorflow::DEVICE_CPU).TypeConstraint<Integer>("Key"), \
      kernel<Integer>)

REGISTER_KEYS(KeysOfIds, int32_t);
REGISTER_KEYS(KeysOfIds, int64_t);
REGISTER_KEYS(DistinctKeys, int32_t);
REGISTER_KEYS(DistinctKeys, int64_t);
REGISTER_KEYS(KeysByOwner, int32_t);
REGISTER_KEYS(KeysByOwner, int64_t);

}  // namespace
