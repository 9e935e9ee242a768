// The TensorFlow operations around the kernels of hstu.h: only shapes, types and threads.

#include "absl/strings/str_cat.h"
#include "hstu.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Rows of the first input by three times the values of gamma.
absl::Status infer_attention(InferenceContext* c, int gamma_input) {
  ShapeHandle rows, gamma;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &rows));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(gamma_input), 1, &gamma));
  DimensionHandle width;
  TF_RETURN_IF_ERROR(c->Multiply(c->Dim(gamma, 0), 3, &width));
  c->set_output(0, c->Matrix(c->Dim(rows, 0), width));
  return absl::OkStatus();
}

absl::Status infer_same(InferenceContext* c) {
  ShapeHandle matrix;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &matrix));
  c->set_output(0, matrix);
  return absl::OkStatus();
}

// The gradients of the first inputs have their shapes.
absl::Status infer_gradients(InferenceContext* c) {
  for (int i = 0; i < c->num_outputs(); ++i) c->set_output(i, c->input(i));
  return absl::OkStatus();
}

#define ATTENTION_ATTRIBUTES           \
  Attr("T: {half, bfloat16, float}")   \
      .Attr("heads: int >= 1")         \
      .Attr("attention_dim: int >= 1") \
      .Attr("value_dim: int >= 1")     \
      .Attr("groups: int >= 1")        \
      .Attr("scale: float")            \
      .Attr("epsilon: float")

REGISTER_OP("HstuGatedAttention")
    .Input("projected: T")
    .Input("gamma: float")
    .Input("beta: float")
    .Input("offsets: int32")
    .Input("targets: int32")
    .Output("output: T")
    .ATTENTION_ATTRIBUTES.SetShapeFn([](InferenceContext* c) { return infer_attention(c, 1); });

REGISTER_OP("HstuGatedAttentionGrad")
    .Input("projected: T")
    .Input("gamma: float")
    .Input("beta: float")
    .Input("offsets: int32")
    .Input("targets: int32")
    .Input("output: T")
    .Input("upstream: T")
    .Output("projected_gradient: T")
    .Output("gamma_gradient: float")
    .Output("beta_gradient: float")
    .ATTENTION_ATTRIBUTES.SetShapeFn(infer_gradients);

REGISTER_OP("HstuTargetAttention")
    .Input("projected: T")
    .Input("history: T")
    .Input("gamma: float")
    .Input("beta: float")
    .Input("history_offsets: int32")
    .Input("target_offsets: int32")
    .Output("output: T")
    .ATTENTION_ATTRIBUTES.SetShapeFn([](InferenceContext* c) { return infer_attention(c, 2); });

REGISTER_OP("HstuTargetAttentionGrad")
    .Input("projected: T")
    .Input("history: T")
    .Input("gamma: float")
    .Input("beta: float")
    .Input("history_offsets: int32")
    .Input("target_offsets: int32")
    .Input("output: T")
    .Input("upstream: T")
    .Output("projected_gradient: T")
    .Output("history_gradient: T")
    .Output("gamma_gradient: float")
    .Output("beta_gradient: float")
    .ATTENTION_ATTRIBUTES.SetShapeFn(infer_gradients);

REGISTER_OP("HstuLayerNorm")
    .Input("x: T")
    .Input("gamma: float")
    .Input("beta: float")
    .Output("output: T")
    .Attr("T: {half, bfloat16, float}")
    .Attr("epsilon: float")
    .Attr("swish: bool")
    .SetShapeFn(infer_same);

REGISTER_OP("HstuLayerNormGrad")
    .Input("x: T")
    .Input("gamma: float")
    .Input("beta: float")
    .Input("upstream: T")
    .Output("x_gradient: T")
    .Output("gamma_gradient: float")
    .Output("beta_gradient: float")
    .Attr("T: {half, bfloat16, float}")
    .Attr("epsilon: float")
    .Attr("swish: bool")
    .SetShapeFn(infer_gradients);

REGISTER_OP("HstuDropout")
    .Input("x: T")
    .Input("keys: int64")
    .Output("output: T")
    .Attr("T: {half, bfloat16, float}")
    .Attr("threshold: int")
    .Attr("factor: float")
    .SetShapeFn(infer_same);

void* data_of(const Tensor& tensor) { return const_cast<char*>(tensor.tensor_data().data()); }
const float* floats_of(const Tensor& tensor) { return static_cast<const float*>(data_of(tensor)); }
const int32_t* ints_of(const Tensor& tensor) {
  return static_cast<const int32_t*>(data_of(tensor));
}

int32_t type_of(const Tensor& tensor) {
  switch (tensor.dtype()) {
    case tensorflow::DT_HALF:
      return HSTU_FLOAT16;
    case tensorflow::DT_BFLOAT16:
      return HSTU_BFLOAT16;
    default:
      return HSTU_FLOAT32;
  }
}

absl::Status check_shape(const Tensor& tensor, const char* name, const TensorShape& expected) {
  if (tensor.shape() == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("expected ", name, " ", expected.DebugString(),
                                                 ", found ", tensor.shape().DebugString()));
}

absl::Status check_rank(const Tensor& tensor, const char* name, int rank) {
  if (tensor.dims() == rank) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("expected ", name, " of rank ", rank, ", found ", tensor.shape().DebugString()));
}

// Offsets begin at 0, do not fall, and stay within the rows.
absl::Status check_offsets(const Tensor& tensor, const char* name, int64_t rows) {
  TF_RETURN_IF_ERROR(check_rank(tensor, name, 1));
  const int64_t count = tensor.NumElements();
  const int32_t* const offsets = ints_of(tensor);
  if (count == 0 || offsets[0] != 0) {
    return absl::InvalidArgumentError(absl::StrCat("expected ", name,
                                                   " [requests + 1] that begin with 0, found ",
                                                   count ? absl::StrCat(offsets[0]) : "none"));
  }
  for (int64_t i = 1; i < count; ++i) {
    if (offsets[i] < offsets[i - 1] || offsets[i] > rows) {
      return absl::InvalidArgumentError(absl::StrCat("expected ", name, "[", i, "] from ",
                                                     offsets[i - 1], " to ", rows,
                                                     ", the number of rows, found ", offsets[i]));
    }
  }
  return absl::OkStatus();
}

absl::Status check_targets(const Tensor& tensor, const Tensor& offsets) {
  TF_RETURN_IF_ERROR(check_shape(tensor, "targets", {offsets.NumElements() - 1}));
  for (int64_t i = 0; i < tensor.NumElements(); ++i) {
    const int32_t rows = ints_of(offsets)[i + 1] - ints_of(offsets)[i], found = ints_of(tensor)[i];
    if (found < 0 || found > rows) {
      return absl::InvalidArgumentError(absl::StrCat("expected targets[", i, "] from 0 to ", rows,
                                                     ", the request's rows, found ", found));
    }
  }
  return absl::OkStatus();
}

HstuThreads threads_of(OpKernelContext* context) {
  const auto& workers = *context->device()->tensorflow_cpu_worker_threads();
  const auto run = [](void* pool, int64_t tasks, void (*task)(void*, int64_t), void* argument) {
    const auto& own = *static_cast<const tensorflow::DeviceBase::CpuWorkerThreads*>(pool);
    constexpr int64_t kCycles = 1 << 20;  // much, so that each task may have its own thread
    tensorflow::Shard(own.num_threads, own.workers, tasks, kCycles,
                      [&](int64_t begin, int64_t end) {
                        for (int64_t i = begin; i < end; ++i) task(argument, i);
                      });
  };
  return {workers.num_threads, run,
          const_cast<tensorflow::DeviceBase::CpuWorkerThreads*>(&workers)};
}

void check_memory(OpKernelContext* context, int result) {
  OP_REQUIRES(context, result == 0,
              absl::ResourceExhaustedError(absl::StrCat("no memory for the threads of ",
                                                        context->op_kernel().type_string())));
}

class AttentionKernel : public OpKernel {
 public:
  explicit AttentionKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("heads", &heads_));
    OP_REQUIRES_OK(context, context->GetAttr("attention_dim", &attention_dim_));
    OP_REQUIRES_OK(context, context->GetAttr("value_dim", &value_dim_));
    OP_REQUIRES_OK(context, context->GetAttr("groups", &groups_));
    OP_REQUIRES_OK(context, context->GetAttr("scale", &scale_));
    OP_REQUIRES_OK(context, context->GetAttr("epsilon", &epsilon_));
    OP_REQUIRES(
        context, heads_ * value_dim_ % groups_ == 0,
        absl::InvalidArgumentError(absl::StrCat("expected groups that divide ", heads_ * value_dim_,
                                                " columns, found ", groups_)));
  }

 protected:
  absl::Status describe(OpKernelContext* context, int gamma_input, const Tensor& offsets,
                        HstuAttention* to) const {
    const Tensor& projected = context->input(0);
    TF_RETURN_IF_ERROR(check_rank(projected, "projected", 2));
    const int64_t rows = projected.dim_size(0), width = heads_ * value_dim_;
    TF_RETURN_IF_ERROR(
        check_shape(projected, "projected", {rows, 2 * heads_ * (value_dim_ + attention_dim_)}));
    const Tensor &gamma = context->input(gamma_input), &beta = context->input(gamma_input + 1);
    TF_RETURN_IF_ERROR(check_shape(gamma, "gamma", {width}));
    TF_RETURN_IF_ERROR(check_shape(beta, "beta", {width}));
    *to = {};
    to->type = type_of(projected);
    to->heads = heads_;
    to->attention_dim = attention_dim_;
    to->value_dim = value_dim_;
    to->groups = groups_;
    to->scale = scale_;
    to->epsilon = epsilon_;
    to->rows = rows;
    to->requests = offsets.NumElements() - 1;
    to->offsets = ints_of(offsets);
    to->projected = data_of(projected);
    to->gamma = floats_of(gamma);
    to->beta = floats_of(beta);
    return absl::OkStatus();
  }

  // The inputs projected, gamma, beta, offsets and targets.
  absl::Status describe_sequences(OpKernelContext* context, HstuAttention* to) const {
    const Tensor &offsets = context->input(3), &targets = context->input(4);
    TF_RETURN_IF_ERROR(describe(context, 1, offsets, to));
    TF_RETURN_IF_ERROR(check_offsets(offsets, "offsets", to->rows));
    TF_RETURN_IF_ERROR(check_targets(targets, offsets));
    to->targets = ints_of(targets);
    return absl::OkStatus();
  }

  // The inputs projected, history, gamma, beta, history_offsets and target_offsets.
  absl::Status describe_targets(OpKernelContext* context, HstuAttention* to) const {
    const Tensor &history = context->input(1), &history_offsets = context->input(4);
    const Tensor& target_offsets = context->input(5);
    TF_RETURN_IF_ERROR(describe(context, 2, target_offsets, to));
    TF_RETURN_IF_ERROR(check_rank(history, "history", 2));
    const int64_t rows = history.dim_size(0);
    TF_RETURN_IF_ERROR(
        check_shape(history, "history", {rows, heads_ * (value_dim_ + attention_dim_)}));
    TF_RETURN_IF_ERROR(check_offsets(target_offsets, "target_offsets", to->rows));
    TF_RETURN_IF_ERROR(check_offsets(history_offsets, "history_offsets", rows));
    TF_RETURN_IF_ERROR(check_shape(history_offsets, "history_offsets", target_offsets.shape()));
    to->history = data_of(history);
    to->history_offsets = ints_of(history_offsets);
    to->history_rows = rows;
    return absl::OkStatus();
  }

  TensorShape output_shape(const HstuAttention& attention) const {
    return {attention.rows, 3 * heads_ * value_dim_};
  }

  int64_t heads_, attention_dim_, value_dim_, groups_;
  float scale_, epsilon_;
};

// Allocates the gradients of the first inputs.
template <size_t N>
absl::Status allocate_gradients(OpKernelContext* context, Tensor* (&gradients)[N]) {
  for (size_t i = 0; i < N; ++i) {
    const int index = static_cast<int>(i);
    TF_RETURN_IF_ERROR(
        context->allocate_output(index, context->input(index).shape(), &gradients[i]));
  }
  return absl::OkStatus();
}

float* mutable_floats_of(const Tensor& tensor) { return static_cast<float*>(data_of(tensor)); }

// Of whole sequences, or of targets whose history is given apart.
template <bool kTargets>
class Attention : public AttentionKernel {
 public:
  using AttentionKernel::AttentionKernel;

  void Compute(OpKernelContext* context) override {
    HstuAttention attention;
    OP_REQUIRES_OK(context, kTargets ? describe_targets(context, &attention)
                                     : describe_sequences(context, &attention));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, output_shape(attention), &output));
    const HstuThreads threads = threads_of(context);
    check_memory(context,
                 hstu_cpu_attention(hstu_cpu_level(), &threads, &attention, data_of(*output)));
  }
};

template <bool kTargets>
class AttentionGrad : public AttentionKernel {
 public:
  using AttentionKernel::AttentionKernel;

  void Compute(OpKernelContext* context) override {
    HstuAttention attention;
    OP_REQUIRES_OK(context, kTargets ? describe_targets(context, &attention)
                                     : describe_sequences(context, &attention));
    const int inputs = context->num_inputs();
    const Tensor &output = context->input(inputs - 2), &upstream = context->input(inputs - 1);
    OP_REQUIRES_OK(context, check_shape(output, "output", output_shape(attention)));
    OP_REQUIRES_OK(context, check_shape(upstream, "upstream", output_shape(attention)));
    Tensor* gradients[kTargets ? 4 : 3];
    OP_REQUIRES_OK(context, allocate_gradients(context, gradients));
    constexpr int kGamma = kTargets ? 2 : 1;
    const HstuAttentionGradient gradient = {data_of(output),
                                            data_of(upstream),
                                            data_of(*gradients[0]),
                                            kTargets ? data_of(*gradients[1]) : nullptr,
                                            mutable_floats_of(*gradients[kGamma]),
                                            mutable_floats_of(*gradients[kGamma + 1])};
    const HstuThreads threads = threads_of(context);
    check_memory(context,
                 hstu_cpu_attention_gradient(hstu_cpu_level(), &threads, &attention, &gradient));
  }
};

class NormKernel : public OpKernel {
 public:
  explicit NormKernel(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("epsilon", &epsilon_));
    OP_REQUIRES_OK(context, context->GetAttr("swish", &swish_));
  }

 protected:
  absl::Status describe(OpKernelContext* context, HstuNorm* to) const {
    const Tensor &x = context->input(0), &gamma = context->input(1), &beta = context->input(2);
    TF_RETURN_IF_ERROR(check_rank(x, "x", 2));
    const int64_t width = x.dim_size(1);
    TF_RETURN_IF_ERROR(check_shape(gamma, "gamma", {width}));
    TF_RETURN_IF_ERROR(check_shape(beta, "beta", {width}));
    *to = {type_of(x), swish_,     x.dim_size(0),    width,
           epsilon_,   data_of(x), floats_of(gamma), floats_of(beta)};
    return absl::OkStatus();
  }

 private:
  float epsilon_;
  bool swish_;
};

class LayerNorm : public NormKernel {
 public:
  using NormKernel::NormKernel;

  void Compute(OpKernelContext* context) override {
    HstuNorm norm;
    OP_REQUIRES_OK(context, describe(context, &norm));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, context->input(0).shape(), &output));
    const HstuThreads threads = threads_of(context);
    check_memory(context, hstu_cpu_norm(hstu_cpu_level(), &threads, &norm, data_of(*output)));
  }
};

class LayerNormGrad : public NormKernel {
 public:
  using NormKernel::NormKernel;

  void Compute(OpKernelContext* context) override {
    HstuNorm norm;
    OP_REQUIRES_OK(context, describe(context, &norm));
    const Tensor& upstream = context->input(3);
    OP_REQUIRES_OK(context, check_shape(upstream, "upstream", context->input(0).shape()));
    Tensor* gradients[3];
    OP_REQUIRES_OK(context, allocate_gradients(context, gradients));
    const HstuThreads threads = threads_of(context);
    check_memory(context,
                 hstu_cpu_norm_gradient(hstu_cpu_level(), &threads, &norm, data_of(upstream),
                                        data_of(*gradients[0]), mutable_floats_of(*gradients[1]),
                                        mutable_floats_of(*gradients[2])));
  }
};

class Dropout : public OpKernel {
 public:
  explicit Dropout(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("threshold", &threshold_));
    OP_REQUIRES_OK(context, context->GetAttr("factor", &factor_));
    OP_REQUIRES(context, threshold_ >= 0 && threshold_ >> 32 == 0,
                absl::InvalidArgumentError(absl::StrCat(
                    "expected a threshold of at least 0 and below 2^32, found ", threshold_)));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &x = context->input(0), &keys = context->input(1);
    OP_REQUIRES_OK(context, check_rank(x, "x", 2));
    OP_REQUIRES_OK(context, check_shape(keys, "keys", {x.dim_size(0)}));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, x.shape(), &output));
    const HstuDropout dropout = {type_of(x),
                                 x.dim_size(0),
                                 x.dim_size(1),
                                 static_cast<uint32_t>(threshold_),
                                 factor_,
                                 data_of(x),
                                 static_cast<const int64_t*>(data_of(keys))};
    const HstuThreads threads = threads_of(context);
    check_memory(context, hstu_cpu_dropout(hstu_cpu_level(), &threads, &dropout, data_of(*output)));
  }

 private:
  int64_t threshold_;
  float factor_;
};

#define REGISTER_CPU(name, kernel) \
  REGISTER_KERNEL_BUILDER(Name(name).Device(tensorflow::DEVICE_CPU), kernel)
REGISTER_CPU("HstuGatedAttention", Attention<false>);
REGISTER_CPU("HstuGatedAttentionGrad", AttentionGrad<false>);
REGISTER_CPU("HstuTargetAttention", Attention<true>);
REGISTER_CPU("HstuTargetAttentionGrad", AttentionGrad<true>);
REGISTER_CPU("HstuLayerNorm", LayerNorm);
REGISTER_CPU("HstuLayerNormGrad", LayerNormGrad);
REGISTER_CPU("HstuDropout", Dropout);

}  // namespace
