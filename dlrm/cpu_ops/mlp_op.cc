// The TensorFlow operations around the kernels of mlp.h: only shapes, threads and memory.

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "mlp.h"
#include "parallel.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

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

// The input and the kernels of both operations, and how the batch is divided: into blocks of equal
// size, which depends on nothing but the batch. So the bits of a result do, too.
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
    blocks = (samples + MLP_BLOCK - 1) / MLP_BLOCK;
    block = blocks ? (samples + blocks - 1) / blocks : 0;
    return absl::OkStatus();
  }

  static absl::Status wrong(const std::string& expected, const Tensor& found) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected ", expected, ", found ", found.shape().DebugString()));
  }

  // Calls work(worker, index of a block, its first sample, its number of samples) for blocks
  // [begin, end).
  template <typename Work>
  void for_blocks(OpKernelContext* context, int64_t begin, int64_t end, const Work& work) const {
    in_pieces(context, end - begin, [&](int64_t worker, int64_t piece) {
      const int64_t i = begin + piece, first = std::min(i * block, samples);
      work(worker, i, first, std::min(block, samples - first));
    });
  }

  void pack(OpKernelContext* context, bool transposed, float* packed) const {
    const int64_t parts = workers(context, blocks);
    in_pieces(context, parts, [&](int64_t, int64_t part) {
      mlp_cpu_pack(level, &shape_, transposed, kernels_.data(), part, parts, packed);
    });
  }

  int64_t width(int64_t layer) const { return widths_[static_cast<size_t>(layer)]; }
  int32_t count() const { return shape_.layers; }
  const MlpShape* shape() const { return &shape_; }

  const int level = mlp_cpu_level();
  int64_t samples = 0, blocks = 0, block = 0;

 private:
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
    OP_REQUIRES_OK(context, allocate(context, workers(context, layers.blocks) * scratch_size,
                                     &memory[1], &scratch));
    const float* const input = context->input(0).flat<float>().data();
    float* const to = output->flat<float>().data();
    float* const kept = hidden->flat<float>().data();
    layers.pack(context, false, packed);
    layers.for_blocks(
        context, 0, layers.blocks, [&](int64_t worker, int64_t i, int64_t first, int64_t samples) {
          mlp_cpu_forward(layers.level, layers.shape(), packed, biases.data(), samples,
                          input + first * layers.width(0), kept + i * hidden_size,
                          to + first * outputs, scratch + worker * scratch_size);
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

    // The rows of all kernels, in pieces.
    struct Rows {
      int32_t layer;
      int64_t first, last;
    };
    std::vector<Rows> pieces;
    std::vector<float*> kernels, biases;
    for (int32_t i = 0; i < count; ++i) {
      const int64_t inputs = layers.width(i), outs = layers.width(i + 1);
      Tensor *kernel, *bias;
      OP_REQUIRES_OK(context, context->allocate_output(i + 1, {inputs, outs}, &kernel));
      OP_REQUIRES_OK(context, context->allocate_output(count + i + 1, {outs}, &bias));
      kernels.push_back(kernel->flat<float>().data());
      biases.push_back(bias->flat<float>().data());
      if (layers.blocks == 0) {
        kernel->flat<float>().setZero();
        bias->flat<float>().setZero();
      }
      for (int64_t row = 0; row < inputs; row += MLP_ROWS) {
        pieces.push_back({i, row, std::min(row + MLP_ROWS, inputs)});
      }
    }
    // The long ones first: then all threads end at nearly the same time.
    std::stable_sort(pieces.begin(), pieces.end(), [&](const Rows& a, const Rows& b) {
      return (a.last - a.first) * layers.width(a.layer + 1) >
             (b.last - b.first) * layers.width(b.layer + 1);
    });
    const int64_t errors_size = layers.block * mlp_errors_size(layers.shape());
    const int64_t scratch_size = layers.block * mlp_scratch_size(layers.shape());
    const int64_t count_of_pieces = static_cast<int64_t>(pieces.size());
    Tensor memory[3];
    float *packed, *scratch, *errors;
    OP_REQUIRES_OK(context,
                   allocate(context, mlp_packed_size(layers.shape()), &memory[0], &packed));
    OP_REQUIRES_OK(context, allocate(context, workers(context, count_of_pieces) * scratch_size,
                                     &memory[1], &scratch));
    OP_REQUIRES_OK(context, allocate(context, std::min(layers.blocks, kTurn) * errors_size,
                                     &memory[2], &errors));

    const float* const input = context->input(0).flat<float>().data();
    const float* const kept_values = hidden.flat<float>().data();
    const float* const output_values = output.flat<float>().data();
    const float* const above = upstream.flat<float>().data();
    float* const below = input_learns_ ? input_gradient->flat<float>().data() : nullptr;
    layers.pack(context, true, packed);
    for (int64_t begin = 0; begin < layers.blocks; begin += kTurn) {
      const int64_t end = std::min(begin + kTurn, layers.blocks);
      layers.for_blocks(context, begin, end,
                        [&](int64_t, int64_t i, int64_t first, int64_t samples) {
                          mlp_cpu_errors(layers.level, layers.shape(), packed, samples,
                                         kept_values + i * hidden_size,
                                         output_values + first * outputs, above + first * outputs,
                                         below ? below + first * layers.width(0) : nullptr,
                                         errors + (i - begin) * errors_size);
                        });
      // A piece's sums over all blocks are one thread's, in their order.
      in_pieces(context, count_of_pieces, [&](int64_t worker, int64_t piece) {
        const Rows rows = pieces[static_cast<size_t>(piece)];
        for (int64_t i = begin; i < end; ++i) {
          const int64_t first = std::min(i * layers.block, layers.samples);
          mlp_cpu_gradients(
              layers.level, layers.shape(), rows.layer, rows.first, rows.last,
              std::min(layers.block, layers.samples - first), input + first * layers.width(0),
              kept_values + i * hidden_size, errors + (i - begin) * errors_size, i > 0,
              kernels[static_cast<size_t>(rows.layer)], biases[static_cast<size_t>(rows.layer)],
              scratch + worker * scratch_size);
        }
      });
    }
  }

 private:
  // Blocks whose errors are kept until the gradients are summed: 2,048 samples.
  static constexpr int64_t kTurn = 8;

  bool last_relu_, input_learns_;
};

REGISTER_KERNEL_BUILDER(Name("FusedMlp").Device(tensorflow::DEVICE_CPU), FusedMlp);
REGISTER_KERNEL_BUILDER(Name("FusedMlpGrad").Device(tensorflow::DEVICE_CPU), FusedMlpGrad);

}  // namespace
