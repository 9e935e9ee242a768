// Runs every CPU operation for each instruction set and type on arrays that fill their allocations,
// on several threads, so that the sanitizers detect any access outside them.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "hstu.h"

namespace {

size_t size_of(int32_t type) { return type == HSTU_FLOAT32 ? 4 : 2; }

// An array of any type in its own allocation, starting at an odd multiple of the value's size; its
// values are small numbers.
class Values {
 public:
  Values(int64_t count, int32_t type)
      : memory_(static_cast<size_t>(count + 1) * size_of(type)), size_(size_of(type)) {
    for (size_t i = 0; i < memory_.size(); ++i) {
      memory_[i] = static_cast<char>(i % size_ == size_ - 1 ? 0x3c : i * 37 % 61);
    }
  }
  char* begin() { return memory_.data() + size_; }
  float* floats() { return reinterpret_cast<float*>(begin()); }

 private:
  std::vector<char> memory_;
  size_t size_;
};

void run_tasks(void*, int64_t tasks, void (*task)(void*, int64_t), void* argument) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < tasks; ++i) threads.emplace_back(task, argument, i);
  for (std::thread& thread : threads) thread.join();
}

const HstuThreads kThreads = {3, run_tasks, nullptr};

// Requests of these rows, and two rows behind them.
struct Requests {
  std::vector<int32_t> offsets{0}, targets, history_offsets{0}, target_offsets{0};
  int64_t rows = 0;

  void add(int32_t count, int32_t target_count) {
    rows = offsets.back() + count + 2;
    offsets.push_back(offsets.back() + count);
    targets.push_back(target_count);
    history_offsets.push_back(history_offsets.back() + count - target_count);
    target_offsets.push_back(target_offsets.back() + target_count);
  }
};

bool run_attention(int level, int32_t type, const Requests& requests, int64_t heads,
                   int64_t attention_dim, int64_t value_dim, int64_t groups) {
  const int64_t width = heads * value_dim, columns = 2 * heads * (attention_dim + value_dim);
  const int64_t rows = requests.rows;
  Values projected(rows * columns, type), output(rows * 3 * width, type);
  Values gamma(width, HSTU_FLOAT32), beta(width, HSTU_FLOAT32);
  HstuAttention attention = {};
  attention.type = type;
  attention.heads = heads;
  attention.attention_dim = attention_dim;
  attention.value_dim = value_dim;
  attention.groups = groups;
  attention.scale = 0.01f;
  attention.epsilon = 1e-3f;
  attention.rows = rows;
  attention.requests = static_cast<int64_t>(requests.targets.size());
  attention.offsets = requests.offsets.data();
  attention.projected = projected.begin();
  attention.gamma = gamma.floats();
  attention.beta = beta.floats();
  attention.targets = requests.targets.data();
  if (hstu_cpu_attention(level, &kThreads, &attention, output.begin()) != 0) return false;

  Values upstream(rows * 3 * width, type), projected_gradient(rows * columns, type);
  Values gamma_gradient(width, HSTU_FLOAT32), beta_gradient(width, HSTU_FLOAT32);
  const HstuAttentionGradient gradient = {
      output.begin(), upstream.begin(),        projected_gradient.begin(),
      nullptr,        gamma_gradient.floats(), beta_gradient.floats()};
  if (hstu_cpu_attention_gradient(level, &kThreads, &attention, &gradient) != 0) return false;

  const int64_t targets = requests.target_offsets.back() + 1;
  Values history(requests.history_offsets.back() * columns / 2, type);
  Values target_output(targets * 3 * width, type);
  attention.rows = targets;
  attention.offsets = requests.target_offsets.data();
  attention.targets = nullptr;
  attention.history = history.begin();
  attention.history_offsets = requests.history_offsets.data();
  attention.history_rows = requests.history_offsets.back();
  if (hstu_cpu_attention(level, &kThreads, &attention, target_output.begin()) != 0) return false;
  Values target_upstream(targets * 3 * width, type), target_gradient(targets * columns, type);
  Values history_gradient(attention.history_rows * columns / 2, type);
  const HstuAttentionGradient of_targets = {target_output.begin(),   target_upstream.begin(),
                                            target_gradient.begin(), history_gradient.begin(),
                                            gamma_gradient.floats(), beta_gradient.floats()};
  return hstu_cpu_attention_gradient(level, &kThreads, &attention, &of_targets) == 0;
}

bool run_rows(int level, int32_t type, int64_t rows, int64_t width) {
  Values x(rows * width, type), output(rows * width, type), upstream(rows * width, type);
  Values gamma(width, HSTU_FLOAT32), beta(width, HSTU_FLOAT32);
  Values gamma_gradient(width, HSTU_FLOAT32), beta_gradient(width, HSTU_FLOAT32);
  const std::vector<int64_t> keys(static_cast<size_t>(rows), 0x123456789abcdef);
  const HstuDropout dropout = {type, rows, width, 1u << 30, 1.25f, x.begin(), keys.data()};
  bool done = hstu_cpu_dropout(level, &kThreads, &dropout, output.begin()) == 0;
  for (int32_t swish : {0, 1}) {
    const HstuNorm norm = {type,  swish,     rows,           width,
                           1e-3f, x.begin(), gamma.floats(), beta.floats()};
    done = done && hstu_cpu_norm(level, &kThreads, &norm, output.begin()) == 0 &&
           hstu_cpu_norm_gradient(level, &kThreads, &norm, upstream.begin(), output.begin(),
                                  gamma_gradient.floats(), beta_gradient.floats()) == 0;
  }
  return done;
}

}  // namespace

int main() {
  Requests edges, mixed, longer;
  for (int32_t count = 0; count < 20; ++count) mixed.add(count, count * 7 % (count + 1));
  for (int32_t count : {31, 33, 63, 64, 65, 97, 128, 130}) edges.add(count, count % 3 * 30);
  longer.add(340, 70);
  int runs = 0;
  for (int level = 0; level <= hstu_cpu_level(); ++level) {
    for (int32_t type : {HSTU_FLOAT32, HSTU_FLOAT16, HSTU_BFLOAT16}) {
      for (int64_t attention_dim : {1, 7, 33}) {
        for (int64_t value_dim : {1, 16, 17}) {
          for (const Requests* requests : {&mixed, &edges, &longer}) {
            if (!run_attention(level, type, *requests, 2, attention_dim, value_dim, 1 + runs % 2)) {
              return EXIT_FAILURE;
            }
            ++runs;
          }
        }
      }
      for (int64_t width : {1, 2, 7, 8, 15, 16, 17, 31, 33, 100}) {
        for (int64_t rows : {0, 1, 3, 100}) {
          if (!run_rows(level, type, rows, width)) return EXIT_FAILURE;
          ++runs;
        }
      }
    }
  }
  printf("%d runs of the operations on levels 0 to %d\n", runs, hstu_cpu_level());
  return EXIT_SUCCESS;
}
