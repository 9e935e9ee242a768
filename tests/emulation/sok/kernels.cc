// Kernels for CPUs of the operations of SparseOperationKit that embedding/sok.py uses: SOK itself
// has them for GPUs only. What they compute is SOK's, as its sources say, so that the Python code
// around them can be trained with on a CPU; nothing of their speed or of a table's limits is
// modelled. Keys of one owner come in reverse, since SOK leaves them in no order.

#include <cmath>
#include <string>
#include <unordered_map>
#include <vector>

#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"

namespace {

using namespace tensorflow;  // NOLINT: the macros of its kernels expect it

template <typename Key>
class DistSelect : public OpKernel {
 public:
  explicit DistSelect(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("num_splits", &owners_));
  }

  void Compute(OpKernelContext* context) override {
    const auto keys = context->input(0).flat<Key>();
    Tensor *output, *order, *splits;
    OP_REQUIRES_OK(context, context->allocate_output(0, {keys.size()}, &output));
    OP_REQUIRES_OK(context, context->allocate_output(1, {keys.size()}, &order));
    OP_REQUIRES_OK(context, context->allocate_output(2, {owners_}, &splits));
    int64_t place = 0;
    for (int owner = 0; owner < owners_; ++owner) {
      const int64_t begin = place;
      for (int64_t i = keys.size() - 1; i >= 0; --i) {
        if (keys(i) % owners_ != owner) continue;
        output->flat<Key>()(place) = keys(i);
        order->flat<int32_t>()(place++) = static_cast<int32_t>(i);
      }
      splits->flat<int32_t>()(owner) = static_cast<int32_t>(place - begin);
    }
  }

 private:
  int owners_;
};

// A hash table of rows; a row that is read and not there is made, of the initial value.
struct Table : public ResourceBase {
  int64_t width = 0;
  float initial = 0;
  std::unordered_map<int64_t, std::vector<float>> rows;
  mutex guard;
  std::string DebugString() const override { return "an emulated dynamic table"; }
};

class Handle : public OpKernel {
 public:
  explicit Handle(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("container", &container_));
    OP_REQUIRES_OK(context, context->GetAttr("shared_name", &name_));
    OP_REQUIRES_OK(context, context->GetAttr("shape", &shape_));
  }

  void Compute(OpKernelContext* context) override {
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, {}, &output));
    output->scalar<ResourceHandle>()() =
        MakeResourceHandle<Table>(context, container_, name_, {{DT_FLOAT, shape_}});
  }

 private:
  std::string container_, name_;
  PartialTensorShape shape_;
};

class Initialize : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const ResourceHandle& handle = HandleFromInput(context, 0);
    Table* table = new Table;
    table->width = handle.dtypes_and_shapes()[0].shape.dim_size(1);
    table->initial = std::stof(context->input(1).scalar<tstring>()());
    OP_REQUIRES_OK(context, CreateResource(context, handle, table));
  }
};

// An operation on a table, whose other inputs are keys and, it may be, their rows.
class OnTable : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    core::RefCountPtr<Table> table;
    OP_REQUIRES_OK(context, LookupResource(context, HandleFromInput(context, 0), &table));
    mutex_lock lock(table->guard);
    compute(context, table.get());
  }

  virtual void compute(OpKernelContext* context, Table* table) = 0;
};

class SparseRead : public OnTable {
 public:
  using OnTable::OnTable;

  void compute(OpKernelContext* context, Table* table) override {
    const auto keys = context->input(1).flat<int64_t>();
    // On a GPU this would start no block of threads at all.
    OP_REQUIRES(context, keys.size() > 0, errors::Internal("a read of no keys"));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, {keys.size(), table->width}, &output));
    for (int64_t i = 0; i < keys.size(); ++i) {
      auto& row = table->rows[keys(i)];
      if (row.empty()) row.assign(table->width, table->initial);
      for (int64_t d = 0; d < table->width; ++d) output->matrix<float>()(i, d) = row[d];
    }
  }
};

template <bool kMakesRows>
class Write : public OnTable {
 public:
  using OnTable::OnTable;

  void compute(OpKernelContext* context, Table* table) override {
    const auto keys = context->input(1).flat<int64_t>();
    const auto values = context->input(2).matrix<float>();
    for (int64_t i = 0; i < keys.size(); ++i) {
      if (!kMakesRows && !table->rows.count(keys(i))) continue;
      auto& row = table->rows[keys(i)];
      row.resize(table->width);
      for (int64_t d = 0; d < table->width; ++d) row[d] = values(i, d);
    }
  }
};

class Export : public OnTable {
 public:
  using OnTable::OnTable;

  void compute(OpKernelContext* context, Table* table) override {
    const int64_t count = static_cast<int64_t>(table->rows.size());
    Tensor *keys, *values;
    OP_REQUIRES_OK(context, context->allocate_output(0, {count}, &keys));
    OP_REQUIRES_OK(context, context->allocate_output(1, {count, table->width}, &values));
    int64_t i = 0;
    for (const auto& [key, row] : table->rows) {
      keys->flat<int64_t>()(i) = key;
      for (int64_t d = 0; d < table->width; ++d) values->matrix<float>()(i, d) = row[d];
      ++i;
    }
  }
};

REGISTER_KERNEL_BUILDER(Name("DistSelect").Device(DEVICE_CPU).TypeConstraint<int32_t>("Tindices"),
                        DistSelect<int32_t>);
REGISTER_KERNEL_BUILDER(Name("DistSelect").Device(DEVICE_CPU).TypeConstraint<int64_t>("Tindices"),
                        DistSelect<int64_t>);
REGISTER_KERNEL_BUILDER(Name("DummyVarHandle").Device(DEVICE_CPU), Handle);
REGISTER_KERNEL_BUILDER(Name("DummyVarInitialize").Device(DEVICE_CPU), Initialize);
REGISTER_KERNEL_BUILDER(Name("DummyVarSparseRead").Device(DEVICE_CPU), SparseRead);
REGISTER_KERNEL_BUILDER(Name("DummyVarScatterUpdate").Device(DEVICE_CPU), Write<false>);
REGISTER_KERNEL_BUILDER(Name("DummyVarAssign").Device(DEVICE_CPU), Write<true>);
REGISTER_KERNEL_BUILDER(Name("DummyVarExport").Device(DEVICE_CPU), Export);

}  // namespace
