// The TensorFlow operations around the kernels of hstu.h: only shapes, types and threads.

#include "absl/strings/str_cat.h"
#include "hstu.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

#ifdef HSTU_CUDA
#include "tensorflow/core/platform/stream_executor.h"
#include "tensorflow/core/platform/tensor_float_32_utils.h"
#endif

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

// Offsets begin at 0, do not fall, and stay within the rows. Their values are looked at on_host
// only.
absl::Status check_offsets(const Tensor& tensor, const char* name, int64_t rows, bool on_host) {
  TF_RETURN_IF_ERROR(check_rank(tensor, name, 1));
  const int64_t count = tensor.NumElements();
  if (count > 0 && !on_host) return absl::OkStatus();
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

absl::Status check_targets(const Tensor& tensor, const Tensor& offsets, bool on_host) {
  TF_RETURN_IF_ERROR(check_shape(tensor, "targets", {offsets.NumElements() - 1}));
  if (!on_host) return absl::OkStatus();
  for (int64_t i = 0; i < tensor.NumElements(); ++i) {
    const int32_t rows = ints_of(offsets)[i + 1] - ints_of(offsets)[i], found = ints_of(tensor)[i];
    if (found < 0 || found > rows) {
      return absl::InvalidArgumentError(absl::StrCat("expected targets[", i, "] from 0 to ", rows,
                                                     ", the request's rows, found ", found));
    }
  }
  return absl::OkStatus();
}

// On a CPU: work is divided among TensorFlow's own threads.
struct Cpu {
  static constexpr bool kOnHost = true;

  static HstuThreads threads_of(OpKernelContext* context) {
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

  template <typename Function, typename... Arguments>
  static void call(OpKernelContext* context, Function* function, const Arguments&... arguments) {
    const HstuThreads threads = threads_of(context);
    OP_REQUIRES(context, function(hstu_cpu_level(), &threads, arguments...) == 0,
                absl::ResourceExhaustedError(absl::StrCat("no memory for the threads of ",
                                                          context->op_kernel().type_string())));
  }

  static absl::Status check_dims(int64_t, int64_t) { return absl::OkStatus(); }
  static void attention(OpKernelContext* context, const HstuAttention& given, void* output) {
    call(context, hstu_cpu_attention, &given, output);
  }
  static void attention_gradient(OpKernelContext* context, const HstuAttention& given,
                                 const HstuAttentionGradient& gradient) {
    call(context, hstu_cpu_attention_gradient, &given, &gradient);
  }
  static void norm(OpKernelContext* context, const HstuNorm& given, void* output) {
    call(context, hstu_cpu_norm, &given, output);
  }
  static void norm_gradient(OpKernelContext* context, const HstuNorm& given, const void* upstream,
                            void* x, float* gamma, float* beta) {
    call(context, hstu_cpu_norm_gradient, &given, upstream, x, gamma, beta);
  }
  static void dropout(OpKernelContext* context, const HstuDropout& given, void* output) {
    call(context, hstu_cpu_dropout, &given, output);
  }
};

#ifdef HSTU_CUDA

// The CUDA stream behind TensorFlow's. The first overload compiles with newer TensorFlow only, and
// is then preferred; TensorFlow 2.14 uses the second.
template <typename Stream>
auto cuda_stream(Stream* stream, int) -> decltype(stream->platform_specific_handle().stream) {
  return stream->platform_specific_handle().stream;
}

template <typename Stream>
auto cuda_stream(Stream* stream, long) -> decltype(stream->implementation()->GpuStreamHack()) {
  return stream->implementation()->GpuStreamHack();
}

// On a GPU: kernels run on the stream of TensorFlow's operations. Offsets lie there, too, so they
// cannot be checked; the kernels bring wrong ones within bounds.
struct Cuda {
  static constexpr bool kOnHost = false;

  static void* stream(OpKernelContext* context) {
    return cuda_stream(context->op_device_context()->stream(), 0);
  }
  static int tf32() { return tensorflow::tensor_float_32_execution_enabled(); }

  static void check(OpKernelContext* context, const char* error) {
    OP_REQUIRES(
        context, error == nullptr,
        absl::InternalError(absl::StrCat(context->op_kernel().type_string(), " on CUDA: ", error)));
  }
  static absl::Status check_dims(int64_t attention_dim, int64_t value_dim) {
    if (attention_dim <= HSTU_CUDA_MOST_DIM && value_dim <= HSTU_CUDA_MOST_DIM) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        absl::StrCat("expected at most ", static_cast<int>(HSTU_CUDA_MOST_DIM),
                     " values of a head on a GPU, found ", attention_dim, " of keys and ",
                     value_dim, " of values; leave the fused operations out"));
  }
  static void attention(OpKernelContext* context, const HstuAttention& given, void* output) {
    check(context, hstu_cuda_attention(&given, tf32(), output, stream(context)));
  }
  static float* scratch(OpKernelContext* context, int64_t floats, Tensor* memory) {
    const absl::Status status =
        context->allocate_temp(tensorflow::DT_FLOAT, TensorShape({floats}), memory);
    context->SetStatus(status);
    return status.ok() ? static_cast<float*>(data_of(*memory)) : nullptr;
  }
  static void attention_gradient(OpKernelContext* context, const HstuAttention& given,
                                 const HstuAttentionGradient& gradient) {
    Tensor memory;
    float* const floats = scratch(context, hstu_cuda_attention_scratch(&given), &memory);
    if (!floats) return;
    check(context,
          hstu_cuda_attention_gradient(&given, &gradient, tf32(), floats, stream(context)));
  }
  static void norm(OpKernelContext* context, const HstuNorm& given, void* output) {
    check(context, hstu_cuda_norm(&given, output, stream(context)));
  }
  static void norm_gradient(OpKernelContext* context, const HstuNorm& given, const void* upstream,
                            void* x, float* gamma, float* beta) {
    Tensor memory;
    float* const floats = scratch(context, hstu_cuda_norm_scratch(given.width), &memory);
    if (!floats) return;
    check(context,
          hstu_cuda_norm_gradient(&given, upstream, x, gamma, beta, floats, stream(context)));
  }
  static void dropout(OpKernelContext* context, const HstuDropout& given, void* output) {
    check(context, hstu_cuda_dropout(&given, output, stream(context)));
  }
};

#endif  // HSTU_CUDA

template <typename Device>
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
    OP_REQUIRES_OK(context, Device::check_dims(attention_dim_, value_dim_));
  }

 protected:
  // The inputs of whole sequences, or of targets whose history is given apart.
  absl::Status describe_inputs(OpKernelContext* context, bool targets, HstuAttention* to) const {
    return targets ? describe_targets(context, to) : describe_sequences(context, to);
  }

  TensorShape output_shape(const HstuAttention& attention) const {
    return {attention.rows, 3 * heads_ * value_dim_};
  }

 private:
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
    TF_RETURN_IF_ERROR(check_offsets(offsets, "offsets", to->rows, Device::kOnHost));
    TF_RETURN_IF_ERROR(check_targets(targets, offsets, Device::kOnHost));
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
    TF_RETURN_IF_ERROR(check_offsets(target_offsets, "target_offsets", to->rows, Device::kOnHost));
    TF_RETURN_IF_ERROR(check_offsets(history_offsets, "history_offsets", rows, Device::kOnHost));
    TF_RETURN_IF_ERROR(check_shape(history_offsets, "history_offsets", target_offsets.shape()));
    to->history = data_of(history);
    to->history_offsets = ints_of(history_offsets);
    to->history_rows = rows;
    return absl::OkStatus();
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

template <typename Device, bool kTargets>
class Attention : public AttentionKernel<Device> {
 public:
  using AttentionKernel<Device>::AttentionKernel;

  void Compute(OpKernelContext* context) override {
    HstuAttention attention;
    OP_REQUIRES_OK(context, this->describe_inputs(context, kTargets, &attention));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, this->output_shape(attention), &output));
    Device::attention(context, attention, data_of(*output));
  }
};

template <typename Device, bool kTargets>
class AttentionGrad : public AttentionKernel<Device> {
 public:
  using AttentionKernel<Device>::AttentionKernel;

  void Compute(OpKernelContext* context) override {
    HstuAttention attention;
    OP_REQUIRES_OK(context, this->describe_inputs(context, kTargets, &attention));
    const int inputs = context->num_inputs();
    const Tensor &output = context->input(inputs - 2), &upstream = context->input(inputs - 1);
    OP_REQUIRES_OK(context, check_shape(output, "output", this->output_shape(attention)));
    OP_REQUIRES_OK(context, check_shape(upstream, "upstream", this->output_shape(attention)));
    Tensor* gradients[kTargets ? 4 : 3];
    OP_REQUIRES_OK(context, allocate_gradients(context, gradients));
    constexpr int kGamma = kTargets ? 2 : 1;
    const HstuAttentionGradient gradient = {data_of(output),
                                            data_of(upstream),
                                            data_of(*gradients[0]),
                                            kTargets ? data_of(*gradients[1]) : nullptr,
                                            mutable_floats_of(*gradients[kGamma]),
                                            mutable_floats_of(*gradients[kGamma + 1])};
    Device::attention_gradient(context, attention, gradient);
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

template <typename Device>
class LayerNorm : public NormKernel {
 public:
  using NormKernel::NormKernel;

  void Compute(OpKernelContext* context) override {
    HstuNorm norm;
    OP_REQUIRES_OK(context, describe(context, &norm));
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, context->input(0).shape(), &output));
    Device::norm(context, norm, data_of(*output));
  }
};

template <typename Device>
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
    Device::norm_gradient(context, norm, data_of(upstream), data_of(*gradients[0]),
                          mutable_floats_of(*gradients[1]), mutable_floats_of(*gradients[2]));
  }
};

template <typename Device>
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
    Device::dropout(context, dropout, data_of(*output));
  }

 private:
  int64_t threshold_;
  float factor_;
};

#define REGISTER(name, device, ...) \
  REGISTER_KERNEL_BUILDER(Name(name).Device(tensorflow::device), __VA_ARGS__)
#define REGISTER_ALL(device, Device)                                        \
  REGISTER("HstuGatedAttention", device, Attention<Device, false>);         \
  REGISTER("HstuGatedAttentionGrad", device, AttentionGrad<Device, false>); \
  REGISTER("HstuTargetAttention", device, Attention<Device, true>);         \
  REGISTER("HstuTargetAttentionGrad", device, AttentionGrad<Device, true>); \
  REGISTER("HstuLayerNorm", device, LayerNorm<Device>);                     \
  REGISTER("HstuLayerNormGrad", device, LayerNormGrad<Device>);             \
  REGISTER("HstuDropout", device, Dropout<Device>)

REGISTER_ALL(DEVICE_CPU, Cpu);
#ifdef HSTU_CUDA
REGISTER_ALL(DEVICE_GPU, Cuda);
#endif

}  // namespace
