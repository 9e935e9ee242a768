// The TensorFlow operations around the kernels of interact.h: only shapes, types and threads.

#include <atomic>
#include <vector>

#include "absl/strings/str_cat.h"
#include "interact.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

#ifdef INTERACT_CUDA
#include "tensorflow/core/platform/stream_executor.h"
#include "tensorflow/core/platform/tensor_float_32_utils.h"
#endif

namespace {

using tensorflow::DataType;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Bottom and vectors are the inputs [first, num_inputs). Checks that ranks, batch and width
// match. Returns batch and width, and the number of vectors per sample, including bottom.
absl::Status merge_inputs(InferenceContext* c, int first, DimensionHandle* batch,
                          DimensionHandle* features, DimensionHandle* width) {
  ShapeHandle bottom;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(first), 2, &bottom));
  *batch = c->Dim(bottom, 0);
  *width = c->Dim(bottom, 1);
  *features = c->MakeDim(1);
  for (int i = first + 1; i < c->num_inputs(); ++i) {
    ShapeHandle vectors;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(i), 3, &vectors));
    TF_RETURN_IF_ERROR(c->Merge(*batch, c->Dim(vectors, 0), batch));
    TF_RETURN_IF_ERROR(c->Merge(*width, c->Dim(vectors, 2), width));
    TF_RETURN_IF_ERROR(c->Add(*features, c->Dim(vectors, 1), features));
  }
  return absl::OkStatus();
}

DimensionHandle output_width(InferenceContext* c, DimensionHandle features, DimensionHandle width) {
  if (!c->ValueKnown(features) || !c->ValueKnown(width)) return c->UnknownDim();
  return c->MakeDim(interact_output_width(c->Value(features), c->Value(width)));
}

absl::Status infer_forward(InferenceContext* c) {
  DimensionHandle batch, features, width;
  TF_RETURN_IF_ERROR(merge_inputs(c, 0, &batch, &features, &width));
  c->set_output(0, c->Matrix(batch, output_width(c, features, width)));
  return absl::OkStatus();
}

absl::Status infer_backward(InferenceContext* c) {
  DimensionHandle batch, features, width;
  TF_RETURN_IF_ERROR(merge_inputs(c, 1, &batch, &features, &width));
  ShapeHandle upstream;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &upstream));
  TF_RETURN_IF_ERROR(
      c->Merge(upstream, c->Matrix(batch, output_width(c, features, width)), &upstream));
  c->set_output(0, c->Matrix(batch, width));
  for (int i = 2; i < c->num_inputs(); ++i) {
    c->set_output(i - 1, c->MakeShape({batch, c->Dim(c->input(i), 1), width}));
  }
  return absl::OkStatus();
}

REGISTER_OP("DotInteract")
    .Input("bottom: T")
    .Input("vectors: N * T")
    .Output("output: T")
    .Attr("T: {half, bfloat16, float}")
    .Attr("N: int >= 1")
    .SetShapeFn(infer_forward);

REGISTER_OP("DotInteractGrad")
    .Input("upstream: T")
    .Input("bottom: T")
    .Input("vectors: N * T")
    .Output("bottom_gradient: T")
    .Output("vectors_gradient: N * T")
    .Attr("T: {half, bfloat16, float}")
    .Attr("N: int >= 1")
    .SetShapeFn(infer_backward);

void* data_of(const Tensor& tensor) { return const_cast<char*>(tensor.tensor_data().data()); }

int32_t type_of(DataType type) {
  switch (type) {
    case tensorflow::DT_HALF:
      return INTERACT_FLOAT16;
    case tensorflow::DT_BFLOAT16:
      return INTERACT_BFLOAT16;
    default:
      return INTERACT_FLOAT32;
  }
}

// The inputs of both operations; `first` as in merge_inputs.
struct Inputs {
  int64_t batch = 0, features = 1, width = 0;
  std::vector<InteractGroup> groups;

  absl::Status read(OpKernelContext* context, int first) {
    const TensorShape& bottom = context->input(first).shape();
    if (bottom.dims() != 2) {
      return absl::InvalidArgumentError(
          absl::StrCat("expected bottom [batch, width], found ", bottom.DebugString()));
    }
    batch = bottom.dim_size(0);
    width = bottom.dim_size(1);
    groups.push_back({data_of(context->input(first)), nullptr, 1});
    for (int i = first + 1; i < context->num_inputs(); ++i) {
      const TensorShape& vectors = context->input(i).shape();
      if (vectors.dims() != 3 || vectors.dim_size(0) != batch || vectors.dim_size(2) != width) {
        return absl::InvalidArgumentError(
            absl::StrCat("expected vectors [", batch, ", tables, ", width, "] beside bottom ",
                         bottom.DebugString(), ", found ", vectors.DebugString()));
      }
      groups.push_back({data_of(context->input(i)), nullptr, vectors.dim_size(1)});
      features += vectors.dim_size(1);
    }
    return absl::OkStatus();
  }

  InteractBatch described(DataType type) const {
    return {type_of(type), static_cast<int32_t>(groups.size()), groups.data(), width};
  }
};

// On a CPU: samples are divided among TensorFlow's own threads.
struct Cpu {
  template <typename Samples>
  static void shard(OpKernelContext* context, const Inputs& inputs, const Samples& samples) {
    const auto& workers = *context->device()->tensorflow_cpu_worker_threads();
    const int64_t cycles = inputs.features * inputs.features * inputs.width / 8 + 100;
    std::atomic<bool> failed(false);
    tensorflow::Shard(workers.num_threads, workers.workers, inputs.batch, cycles,
                      [&](int64_t begin, int64_t end) {
                        if (samples(begin, end) != 0) failed = true;
                      });
    OP_REQUIRES(context, !failed,
                absl::ResourceExhaustedError(absl::StrCat("no memory for the dot interaction of ",
                                                          inputs.features, " vectors of ",
                                                          inputs.width, " values")));
  }

  static void forward(OpKernelContext* context, const Inputs& inputs, const InteractBatch& batch,
                      void* output) {
    shard(context, inputs, [&](int64_t begin, int64_t end) {
      return interact_cpu_forward(interact_cpu_level(), &batch, begin, end, output);
    });
  }

  static void backward(OpKernelContext* context, const Inputs& inputs, const InteractBatch& batch,
                       const void* upstream) {
    shard(context, inputs, [&](int64_t begin, int64_t end) {
      return interact_cpu_backward(interact_cpu_level(), &batch, begin, end, upstream);
    });
  }
};

#ifdef INTERACT_CUDA

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

// On a GPU: kernels run on the stream of TensorFlow's operations.
struct Cuda {
  static void* stream(OpKernelContext* context) {
    return cuda_stream(context->op_device_context()->stream(), 0);
  }

  static void check(OpKernelContext* context, const char* error) {
    OP_REQUIRES(context, error == nullptr,
                absl::InternalError(absl::StrCat("the dot interaction on CUDA: ", error)));
  }

  static bool few_enough(OpKernelContext* context, const InteractBatch& batch) {
    if (batch.group_count <= INTERACT_CUDA_MAX_GROUPS) return true;
    context->SetStatus(absl::InvalidArgumentError(absl::StrCat(
        "expected at most ", INTERACT_CUDA_MAX_GROUPS - 1, " tensors of vectors on a GPU, found ",
        batch.group_count - 1, "; join some")));
    return false;
  }

  static void forward(OpKernelContext* context, const Inputs& inputs, const InteractBatch& batch,
                      void* output) {
    if (!few_enough(context, batch)) return;
    check(context, interact_cuda_forward(&batch, inputs.batch,
                                         tensorflow::tensor_float_32_execution_enabled(), output,
                                         stream(context)));
  }

  static void backward(OpKernelContext* context, const Inputs& inputs, const InteractBatch& batch,
                       const void* upstream) {
    if (!few_enough(context, batch)) return;
    check(context, interact_cuda_backward(&batch, inputs.batch,
                                          tensorflow::tensor_float_32_execution_enabled(), upstream,
                                          stream(context)));
  }
};

#endif  // INTERACT_CUDA

template <typename Device>
class Forward : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Inputs inputs;
    OP_REQUIRES_OK(context, inputs.read(context, 0));
    const int64_t columns = interact_output_width(inputs.features, inputs.width);
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, {inputs.batch, columns}, &output));
    const InteractBatch batch = inputs.described(output->dtype());
    Device::forward(context, inputs, batch, data_of(*output));
  }
};

template <typename Device>
class Backward : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Inputs inputs;
    OP_REQUIRES_OK(context, inputs.read(context, 1));
    const Tensor& upstream = context->input(0);
    const TensorShape expected(
        {inputs.batch, interact_output_width(inputs.features, inputs.width)});
    OP_REQUIRES(
        context, upstream.shape() == expected,
        absl::InvalidArgumentError(absl::StrCat("expected upstream ", expected.DebugString(),
                                                ", found ", upstream.shape().DebugString())));
    for (size_t i = 0; i < inputs.groups.size(); ++i) {
      const int index = static_cast<int>(i);
      Tensor* gradient;
      OP_REQUIRES_OK(context,
                     context->allocate_output(index, context->input(index + 1).shape(), &gradient));
      inputs.groups[i].gradient = data_of(*gradient);
    }
    const InteractBatch batch = inputs.described(upstream.dtype());
    Device::backward(context, inputs, batch, data_of(upstream));
  }
};

REGISTER_KERNEL_BUILDER(Name("DotInteract").Device(tensorflow::DEVICE_CPU), Forward<Cpu>);
REGISTER_KERNEL_BUILDER(Name("DotInteractGrad").Device(tensorflow::DEVICE_CPU), Backward<Cpu>);
#ifdef INTERACT_CUDA
REGISTER_KERNEL_BUILDER(Name("DotInteract").Device(tensorflow::DEVICE_GPU), Forward<Cuda>);
REGISTER_KERNEL_BUILDER(Name("DotInteractGrad").Device(tensorflow::DEVICE_GPU), Backward<Cuda>);
#endif

}  // namespace
