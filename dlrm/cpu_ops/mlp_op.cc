// The TensorFlow operations around the kernels of mlp.h: only shapes, threads and memory.

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "mlp.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/work_sharder.h"

namespace {

using tensorflow::OpInputList;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::OpOutputList;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

absl::Status infer_forward(InferenceContext* c) {
  ShapeHandle values;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &values));
  DimensionHandle width = c->Dim(values, 1);
  const int layers = (c->num_inputs() - 1) / 2;
  for (int i = 1; i <= layers; ++i) {
    ShapeHandle kernel, bias;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(i), 2, &kernel));
    TF_RETURN_IF_ERROR(c->Merge(width, c->Dim(kernel, 0), &width));
    TF_RETURN_IF_ERROR(c->WithRank(c->input(layers + i), 1, &bias));
    TF_RETURN_IF_ERROR(c->Merge(c->Dim(kernel, 1), c->Dim(bias, 0), &width));
  }
  c->set_output(0, c->Matrix(c->Dim(values, 0), width));
  c->set_output(1, c->Matrix(c->UnknownDim(), c->UnknownDim()));
  return absl::OkStatus();
}

absl::Status infer_backward(InferenceContext* c) {
  bool input_learns;
  TF_RETURN_IF_ERROR(c->GetAttr("input_learns", &input_learns));
  c->set_output(0, input_learns ? c->input(0) : c->Matrix(0, 0));
  const int layers = (c->num_outputs() - 1) / 2;
  for (int i = 1; i <= layers; ++i) {
    ShapeHandle kernel;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(i), 2, &kernel));
    c->set_output(i, kernel);
    c->set_output(layers + i, c->Vector(c->Dim(kernel, 1)));
  }
  return absl::OkStatus();
}

REGISTER_OP("FusedMlp")
    .Input("input: float")
    .Input("kernels: N * float")
    .Input("biases: N * float")
    .Output("output: float")
    .Output("hidden: float")
    .Attr("N: int >= 1")
    .Attr("last_relu: bool")
    .Attr("input_learns: bool")
    .SetShapeFn(infer_forward);

REGISTER_OP("FusedMlpGrad")
    .Input("input: float")
    .Input("kernels: N * float")
    .Input("hidden: float")
    .Input("output: float")
    .Input("upstream: float")
    .Output("input_gradient: float")
    .Output("kernel_gradients: N * float")
    .Output("bias_gradients: N * float")
    .Attr("N: int >= 1")
    .Attr("last_relu: bool")
    .Attr("input_learns: bool")
    .SetShapeFn(infer_backward);

// The input and the kernels of both operations, and how the batch is divided: into as many parts as
// there are threads, and these into blocks of equal size.
class Layers {
 public:
  absl::Status read(OpKernelContext* context, bool last_relu) {
    const Tensor& input = context->input(0);
    OpInputList kernels;
    TF_RETURN_IF_ERROR(context->input_list("kernels", &kernels));
    if (input.dims() != 2) return wrong("input [batch, width]", input);
    widths_.push_back(input.dim_size(1));
    for (const Tensor& kernel : kernels) {
      if (kernel.dims() != 2 || kernel.dim_size(0) != widths_.back()) {
        return wrong(absl::StrCat("a kernel [", widths_.back(), ", outputs]"), kernel);
      }
      widths_.push_back(kernel.dim_size(1));
      kernels_.push_back(kernel.flat<float>().data());
    }
    shape_ = {static_cast<int32_t>(kernels_.size()), last_relu, widths_.data()};
    samples = input.dim_size(0);
    const auto divided = [](int64_t value, int64_t by) { return (value + by - 1) / by; };
    const int64_t threads = context->device()->tensorflow_cpu_worker_threads()->num_threads;
    parts = std::max<int64_t>(1, std::min(threads, divided(samples, kLeast)));
    blocks = parts * std::max<int64_t>(1, divided(samples, parts * MLP_BLOCK));
    block = divided(samples, blocks);
    return absl::OkStatus();
  }

  static absl::Status wrong(const std::string& expected, const Tensor& found) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected ", expected, ", found ", found.shape().DebugString()));
  }

  // Calls work(part) for each part, on a thread of its own.
  template <typename Work>
  void in_parallel(OpKernelContext* context, const Work& work) const {
    const auto& workers = *context->device()->tensorflow_cpu_worker_threads();
    tensorflow::Shard(workers.num_threads, workers.workers, parts, int64_t{1} << 30,
                      [&](int64_t begin, int64_t end) {
                        for (int64_t part = begin; part < end; ++part) work(part);
                      });
  }

  // Calls work(part, index of a block, its first sample, its number of samples) for all blocks.
  template <typename Work>
  void for_blocks(OpKernelContext* context, const Work& work) const {
    in_parallel(context, [&](int64_t part) {
      for (int64_t i = blocks * part / parts; i < blocks * (part + 1) / parts; ++i) {
        const int64_t first = std::min(i * block, samples);
        work(part, i, first, std::min(block, samples - first));
      }
    });
  }

  void pack(OpKernelContext* context, bool transposed, float* packed) const {
    in_parallel(context, [&](int64_t part) {
      mlp_cpu_pack(level, &shape_, transposed, kernels_.data(), part, parts, packed);
    });
  }

  int64_t width(int64_t layer) const { return widths_[static_cast<size_t>(layer)]; }
  int32_t count() const { return shape_.layers; }
  const MlpShape* shape() const { return &shape_; }

  const int level = mlp_cpu_level();
  int64_t samples = 0, parts = 0, blocks = 0, block = 0;

 private:
  static constexpr int64_t kLeast = 32;  // samples of a part: with fewer, more threads do not pay

  std::vector<int64_t> widths_;
  std::vector<const float*> kernels_;
  MlpShape shape_ = {};
};

// Memory of one call.
absl::Status allocate(OpKernelContext* context, int64_t size, Tensor* memory, float** values) {
  TF_RETURN_IF_ERROR(context->allocate_temp(tensorflow::DT_FLOAT, TensorShape({size}), memory));
  *values = memory->flat<float>().data();
  return absl::OkStatus();
}

class FusedMlp : public OpKernel {
 public:
  explicit FusedMlp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("last_relu", &last_relu_));
  }

  void Compute(OpKernelContext* context) override {
    Layers layers;
    OP_REQUIRES_OK(context, layers.read(context, last_relu_));
    OpInputList inputs;
    OP_REQUIRES_OK(context, context->input_list("biases", &inputs));
    std::vector<const float*> biases;
    for (int i = 0; i < layers.count(); ++i) {
      const TensorShape expected({layers.width(i + 1)});
      OP_REQUIRES(context, inputs[i].shape() == expected,
                  Layers::wrong(absl::StrCat("a bias ", expected.DebugString()), inputs[i]));
      biases.push_back(inputs[i].flat<float>().data());
    }
    const int64_t outputs = layers.width(layers.count());
    const int64_t hidden_size = layers.block * mlp_hidden_size(layers.shape());
    const int64_t scratch_size = layers.block * mlp_scratch_size(layers.shape());
    Tensor *output, *hidden, memory[2];
    float *packed, *scratch;
    OP_REQUIRES_OK(context, context->allocate_output(0, {layers.samples, outputs}, &output));
    OP_REQUIRES_OK(context, context->allocate_output(1, {layers.blocks, hidden_size}, &hidden));
    OP_REQUIRES_OK(context,
                   allocate(context, mlp_packed_size(layers.shape()), &memory[0], &packed));
    OP_REQUIRES_OK(context, allocate(context, layers.parts * scratch_size, &memory[1], &scratch));
    const float* const input = context->input(0).flat<float>().data();
    float* const to = output->flat<float>().data();
    float* const kept = hidden->flat<float>().data();
    layers.pack(context, false, packed);
    layers.for_blocks(context, [&](int64_t part, int64_t i, int64_t first, int64_t samples) {
      mlp_cpu_forward(layers.level, layers.shape(), packed, biases.data(), samples,
                      input + first * layers.width(0), kept + i * hidden_size, to + first * outputs,
                      scratch + part * scratch_size);
    });
  }

 private:
  bool last_relu_;
};

class FusedMlpGrad : public OpKernel {
 public:
  explicit FusedMlpGrad(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("last_relu", &last_relu_));
    OP_REQUIRES_OK(context, context->GetAttr("input_learns", &input_learns_));
  }

  void Compute(OpKernelContext* context) override {
    Layers layers;
    OP_REQUIRES_OK(context, layers.read(context, last_relu_));
    const int count = layers.count();
    const int64_t outputs = layers.width(count);
    const int64_t hidden_size = layers.block * mlp_hidden_size(layers.shape());
    const Tensor& hidden = context->input(count + 1);
    const Tensor& output = context->input(count + 2);
    const Tensor& upstream = context->input(count + 3);
    const TensorShape expected({layers.samples, outputs}), kept({layers.blocks, hidden_size});
    OP_REQUIRES(context, hidden.shape() == kept,
                Layers::wrong(absl::StrCat("hidden ", kept.DebugString()), hidden));
    for (const Tensor* each : {&output, &upstream}) {
      OP_REQUIRES(context, each->shape() == expected,
                  Layers::wrong(absl::StrCat("an output ", expected.DebugString()), *each));
    }
    Tensor* input_gradient;
    OP_REQUIRES_OK(context, context->allocate_output(
                                0, input_learns_ ? context->input(0).shape() : TensorShape({0, 0}),
                                &input_gradient));

    // The first part sums in the outputs themselves, each other one in an array of its own.
    std::vector<float*> sums;
    int64_t size = 0;
    for (int i = 0; i < 2 * count; ++i) {
      const int64_t inputs = layers.width(i % count), outs = layers.width(i % count + 1);
      const TensorShape shape = i < count ? TensorShape({inputs, outs}) : TensorShape({outs});
      Tensor* gradient;
      OP_REQUIRES_OK(context, context->allocate_output(i + 1, shape, &gradient));
      sums.push_back(gradient->flat<float>().data());
      size += shape.num_elements();
    }
    const int64_t scratch_size = layers.block * mlp_scratch_size(layers.shape());
    Tensor memory[3];
    float *packed, *scratch, *others;
    OP_REQUIRES_OK(context,
                   allocate(context, mlp_packed_size(layers.shape()), &memory[0], &packed));
    OP_REQUIRES_OK(context, allocate(context, layers.parts * scratch_size, &memory[1], &scratch));
    OP_REQUIRES_OK(context, allocate(context, (layers.parts - 1) * size, &memory[2], &others));
    const auto sums_of = [&](int64_t part) {
      if (part == 0) return sums;
      std::vector<float*> places;
      float* place = others + (part - 1) * size;
      for (int i = 0; i < 2 * count; ++i) {
        places.push_back(place);
        place += values_of(layers, i);
      }
      return places;
    };

    const float* const input = context->input(0).flat<float>().data();
    const float* const kept_values = hidden.flat<float>().data();
    const float* const output_values = output.flat<float>().data();
    const float* const above = upstream.flat<float>().data();
    float* const below = input_learns_ ? input_gradient->flat<float>().data() : nullptr;
    layers.pack(context, true, packed);
    layers.for_blocks(context, [&](int64_t part, int64_t i, int64_t first, int64_t samples) {
      const std::vector<float*> places = sums_of(part);
      const bool add = i > layers.blocks * part / layers.parts;
      const MlpGradients gradients = {places.data(), places.data() + count, add};
      mlp_cpu_backward(layers.level, layers.shape(), packed, samples,
                       input + first * layers.width(0), kept_values + i * hidden_size,
                       output_values + first * outputs, above + first * outputs,
                       below ? below + first * layers.width(0) : nullptr, &gradients,
                       scratch + part * scratch_size);
    });
    layers.in_parallel(context, [&](int64_t share) {
      for (int64_t part = 1; part < layers.parts; ++part) {
        const std::vector<float*> places = sums_of(part);
        for (int i = 0; i < 2 * count; ++i) {
          const int64_t values = values_of(layers, i);
          float* const to = sums[static_cast<size_t>(i)];
          const float* const from = places[static_cast<size_t>(i)];
          const int64_t end = values * (share + 1) / layers.parts;
          for (int64_t j = values * share / layers.parts; j < end; ++j) to[j] += from[j];
        }
      }
    });
  }

 private:
  // Number of values of the i-th sum: the kernels' come before the biases'.
  static int64_t values_of(const Layers& layers, int i) {
    const int64_t outputs = layers.width(i % layers.count() + 1);
    return i < layers.count() ? layers.width(i) * outputs : outputs;
  }

  bool last_relu_, input_learns_;
};

REGISTER_KERNEL_BUILDER(Name("FusedMlp").Device(tensorflow::DEVICE_CPU), FusedMlp);
REGISTER_KERNEL_BUILDER(Name("FusedMlpGrad").Device(tensorflow::DEVICE_CPU), FusedMlpGrad);

}  // namespace
