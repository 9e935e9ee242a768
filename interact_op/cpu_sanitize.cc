// Runs every CPU kernel for each instruction set and type on arrays that fill their allocations, so
// that the sanitizers detect any access outside them.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "interact.h"

namespace {

// An array of any type in its own allocation, starting at an odd multiple of the value's size.
class Values {
 public:
  Values(int64_t count, size_t size) : memory_(static_cast<size_t>(count + 1) * size), size_(size) {
    for (size_t i = 0; i < memory_.size(); ++i) memory_[i] = static_cast<char>(i * 37 % 61);
  }
  char* begin() { return memory_.data() + size_; }

 private:
  std::vector<char> memory_;
  size_t size_;
};

bool run(int level, int32_t type, int64_t features, int64_t width, int64_t samples) {
  const size_t size = type == INTERACT_FLOAT32 ? 4 : 2;
  const int64_t first = features / 2, columns = interact_output_width(features, width);
  const int64_t rows[] = {1, first, features - 1 - first};
  std::vector<Values> arrays;
  for (int64_t count : rows) {
    arrays.emplace_back(samples * count * width, size);
    arrays.emplace_back(samples * count * width, size);
  }
  Values output(samples * columns, size);
  InteractGroup groups[3];
  for (int g = 0; g < 3; ++g) {
    groups[g] = {arrays[2 * g].begin(), arrays[2 * g + 1].begin(), rows[g]};
  }
  const InteractBatch batch = {type, 3, groups, width};
  return interact_cpu_forward(level, &batch, 0, samples, output.begin()) == 0 &&
         interact_cpu_backward(level, &batch, 0, samples, output.begin()) == 0;
}

}  // namespace

int main() {
  int runs = 0;
  for (int level = 0; level <= interact_cpu_level(); ++level) {
    for (int32_t type : {INTERACT_FLOAT32, INTERACT_FLOAT16, INTERACT_BFLOAT16}) {
      for (int64_t features = 1; features <= 40; ++features) {
        for (int64_t width : {1, 2, 7, 8, 15, 16, 17, 31, 33, 100, 128}) {
          for (int64_t samples : {0, 1, 3}) {
            if (!run(level, type, features, width, samples)) return EXIT_FAILURE;
            ++runs;
          }
        }
      }
    }
  }
  printf("%d runs of forward and backward kernels on levels 0 to %d\n", runs, interact_cpu_level());
  return EXIT_SUCCESS;
}
