// Runs every kernel for each instruction set on arrays that fill their allocations, and a table of
// rows while it grows and shrinks, so that the sanitizers detect any access outside of them.

#include <stdio.h>
#include <stdlib.h>

#include <map>
#include <vector>

#include "mlp.h"
#include "row_table.h"

namespace {

typedef std::vector<float> Floats;

Floats values(int64_t count) {
  Floats all(static_cast<size_t>(count));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<float>(i * 37 % 61) / 61 - 0.4f;
  return all;
}

template <typename T>
std::vector<T*> pointers(std::vector<Floats>& arrays) {
  std::vector<T*> all;
  for (Floats& array : arrays) all.push_back(array.data());
  return all;
}

void run(int level, const std::vector<int64_t>& widths, int last_relu, int64_t samples,
         bool input_learns) {
  const MlpShape shape = {static_cast<int32_t>(widths.size()) - 1, last_relu, widths.data()};
  std::vector<Floats> kernels, biases, kernel_gradients, bias_gradients;
  for (size_t i = 0; i + 1 < widths.size(); ++i) {
    kernels.push_back(values(widths[i] * widths[i + 1]));
    kernel_gradients.push_back(kernels.back());
    biases.push_back(values(widths[i + 1]));
    bias_gradients.push_back(biases.back());
  }
  Floats input = values(samples * widths.front()), input_gradient = input;
  Floats output = values(samples * widths.back()), upstream = output;
  Floats hidden = values(samples * mlp_hidden_size(&shape));
  Floats errors = values(samples * mlp_errors_size(&shape));
  Floats scratch = values(samples * mlp_scratch_size(&shape));
  Floats packed[2] = {values(mlp_packed_size(&shape)), values(mlp_packed_size(&shape))};
  for (int transposed = 0; transposed < 2; ++transposed) {
    for (int64_t part = 0; part < 3; ++part) {
      mlp_cpu_pack(level, &shape, transposed, pointers<const float>(kernels).data(), part, 3,
                   packed[transposed].data());
    }
  }
  mlp_cpu_forward(level, &shape, packed[0].data(), pointers<const float>(biases).data(), samples,
                  input.data(), hidden.data(), output.data(), scratch.data());
  mlp_cpu_errors(level, &shape, packed[1].data(), samples, hidden.data(), output.data(),
                 upstream.data(), input_learns ? input_gradient.data() : nullptr, errors.data());
  for (int32_t i = 0; i < shape.layers; ++i) {
    const size_t layer = static_cast<size_t>(i);
    for (int64_t row = 0; row < widths[layer]; row += MLP_ROWS) {
      const int64_t end = row + MLP_ROWS < widths[layer] ? row + MLP_ROWS : widths[layer];
      for (int add : {0, 1}) {
        mlp_cpu_gradients(level, &shape, i, row, end, samples, input.data(), hidden.data(),
                          errors.data(), add, kernel_gradients[layer].data(),
                          bias_gradients[layer].data(), scratch.data());
      }
    }
  }
}

// Keys come, stay for some steps and go; every row must keep what was written into it.
void run_table(int64_t width, int32_t shared, int32_t admit_after, int32_t evict_after) {
  RowTable table(width, shared, admit_after, evict_after);
  std::map<int64_t, float> written;
  uint64_t random = 1;
  for (int32_t step = 1; step < 200; ++step) {
    for (int i = 0; i < 300; ++i) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      const int64_t key = static_cast<int64_t>(random >> 33) % 3000 + step * 20;
      bool fresh;
      const int32_t row = table.sight(key, step, &fresh);
      if (row == RowTable::kNone) continue;
      float* const values = table.row(row);
      if (!fresh && values[width - 1] != written[key]) {
        fprintf(stderr, "key %lld has the row of another\n", static_cast<long long>(key));
        exit(EXIT_FAILURE);
      }
      written[key] = static_cast<float>(random >> 40);
      std::fill(values, values + width, written[key]);
    }
    table.sweep(step);
  }
  int64_t keys = 0;
  table.each(
      [&](const RowTable::Entry& entry) { keys += table.find(entry.key, 199) == entry.row; });
  printf("table: %lld keys, %lld rows\n", static_cast<long long>(keys),
         static_cast<long long>(table.rows()));
}

}  // namespace

int main() {
  for (int32_t evict_after : {0, 1, 7}) {
    for (int32_t admit_after : {0, 2}) run_table(33, 3 * admit_after, admit_after, evict_after);
  }
  int runs = 0;
  for (int level = 0; level <= mlp_cpu_level(); ++level) {
    for (int64_t inputs : {1, 7, 16, 33, 300}) {
      for (int64_t middle : {1, 15, 17, 32, 270}) {
        for (int64_t outputs : {1, 8, 31}) {
          for (int64_t samples : {0, 1, 5, 13}) {
            run(level, {inputs, outputs}, 0, samples, true);
            run(level, {inputs, middle, outputs}, runs % 4 < 2, samples, runs % 8 < 4);
            runs += 2;
          }
        }
      }
    }
  }
  printf("%d runs of forward and backward on levels 0 to %d\n", runs, mlp_cpu_level());
  return EXIT_SUCCESS;
}
