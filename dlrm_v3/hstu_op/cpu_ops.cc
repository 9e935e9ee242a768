// The operations of hstu.h on CPUs: chooses the kernels' build at run time and divides the work
// among threads.
//
// Work is cut into items that depend on the shapes alone, and what several items add to is summed
// in their order, so results do not depend on the number of threads.

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

#include "cpu_kernels.h"

extern "C" {
extern const HstuKernels hstu_kernels_portable;
#ifdef __x86_64__
extern const HstuKernels hstu_kernels_avx2, hstu_kernels_avx512;
#endif
}

namespace {

constexpr double kCyclesOfAThread = 20000;  // that make it worth waking one
constexpr int64_t kFewestKeys = 256;        // of an item of the gradient
constexpr int64_t kMostKeyItems = 8;        // of a head, each with its part of the query gradients
constexpr int64_t kFewestRows = 32, kMostRowItems = 128;

const HstuKernels& kernels_of(int level) {
#ifdef __x86_64__
  if (level == HSTU_AVX512) return hstu_kernels_avx512;
  if (level == HSTU_AVX2) return hstu_kernels_avx2;
#endif
  (void)level;
  return hstu_kernels_portable;
}

int64_t size_of(int32_t type) { return type == HSTU_FLOAT32 ? 4 : 2; }

void* moved(const void* array, int64_t values, int32_t type) {
  return const_cast<char*>(static_cast<const char*>(array)) + values * size_of(type);
}

int64_t divided_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

class Floats {
 public:
  explicit Floats(int64_t count)
      : memory_(static_cast<float*>(
            aligned_alloc(64, static_cast<size_t>(divided_up(count + 1, 16) * 64)))) {
    if (!memory_) throw std::bad_alloc();
  }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  ~Floats() { free(memory_); }
  float* begin() const { return memory_; }

 private:
  float* memory_;
};

// Calls task(item, scratch) for all of [0, items), in this order on each thread that is free.
template <typename Task>
void for_items(const HstuThreads& threads, int64_t items, double cycles, int64_t scratch_floats,
               const Task& task) {
  struct State {
    int64_t items, scratch_floats;
    const Task* task;
    std::atomic<int64_t> next;
    std::atomic<bool> failed;
  } state{items, scratch_floats, &task, {0}, {false}};
  const auto work = [](void* argument, int64_t) {
    State& shared = *static_cast<State*>(argument);
    try {
      const Floats scratch(shared.scratch_floats);
      for (int64_t i; (i = shared.next++) < shared.items;) (*shared.task)(i, scratch.begin());
    } catch (const std::bad_alloc&) {
      shared.failed = true;
    }
  };
  const int64_t useful = 1 + static_cast<int64_t>(cycles / kCyclesOfAThread);
  const int64_t workers = std::min({items, threads.count, useful});
  if (workers > 1) {
    threads.run(threads.pool, workers, work, &state);
  } else {
    work(&state, 0);
  }
  if (state.failed) throw std::bad_alloc();
}

// Rows in items; task(begin, end, item, scratch).
struct RowItems {
  int64_t rows, per_item, count;

  explicit RowItems(int64_t rows)
      : rows(rows),
        per_item(std::max(kFewestRows, divided_up(rows, kMostRowItems))),
        count(divided_up(rows, per_item)) {}

  template <typename Task>
  void run(const HstuThreads& threads, int64_t width, const Task& task) const {
    const double cycles = static_cast<double>(rows) * static_cast<double>(width);
    for_items(threads, count, cycles, hstu_row_floats(width), [&](int64_t item, float* scratch) {
      const int64_t begin = item * per_item;
      task(begin, std::min(begin + per_item, rows), item, scratch);
    });
  }
};

// The gradients of gamma and beta: what each item of rows adds, summed in the items' order.
class RowSums {
 public:
  RowSums(int64_t items, int64_t width) : items_(items), width_(width), sums_(2 * items * width) {
    std::fill_n(sums_.begin(), 2 * items * width, 0.0f);
  }
  float* of(int64_t item) const { return sums_.begin() + 2 * item * width_; }
  void write(float* gamma, float* beta) const {
    std::fill_n(gamma, width_, 0.0f);
    std::fill_n(beta, width_, 0.0f);
    for (int64_t item = 0; item < items_; ++item) {
      for (int64_t d = 0; d < width_; ++d) gamma[d] += of(item)[d];
      for (int64_t d = 0; d < width_; ++d) beta[d] += of(item)[width_ + d];
    }
  }

 private:
  int64_t items_, width_;
  Floats sums_;
};

// Where the parts of attention's rows lie.
struct Layout {
  const HstuAttention& attention;
  int64_t heads, attention_dim, value_dim, value_width, columns, history_columns;
  std::vector<int64_t> longest_first;  // requests

  explicit Layout(const HstuAttention& given)
      : attention(given),
        heads(given.heads),
        attention_dim(given.attention_dim),
        value_dim(given.value_dim),
        value_width(heads * value_dim),
        columns(2 * heads * (attention_dim + value_dim)),
        history_columns(heads * (attention_dim + value_dim)),
        longest_first(static_cast<size_t>(given.requests)) {
    for (size_t i = 0; i < longest_first.size(); ++i) longest_first[i] = static_cast<int64_t>(i);
    std::stable_sort(longest_first.begin(), longest_first.end(), [&](int64_t a, int64_t b) {
      return rows(a) + history(a) > rows(b) + history(b);
    });
  }

  int64_t rows(int64_t request) const {
    return attention.offsets[request + 1] - attention.offsets[request];
  }
  int64_t history(int64_t request) const {
    if (!attention.history_offsets) return rows(request) - attention.targets[request];
    return attention.history_offsets[request + 1] - attention.history_offsets[request];
  }
  // Rows that are targets follow `causal` ones.
  int64_t causal(int64_t request) const { return attention.history_offsets ? 0 : history(request); }

  int64_t value_place(int64_t head) const { return value_width + head * value_dim; }
  int64_t query_place(int64_t head) const { return 2 * value_width + head * attention_dim; }
  int64_t key_place(int64_t head) const { return query_place(heads) + head * attention_dim; }
  int64_t history_value_place(int64_t head) const {
    return attention.history_offsets ? head * value_dim : value_place(head);
  }
  int64_t history_key_place(int64_t head) const {
    return attention.history_offsets ? value_width + head * attention_dim : key_place(head);
  }

  HstuHead head(int64_t request, int64_t head) const {
    const int32_t type = attention.type;
    const void* const own = moved(attention.projected, attention.offsets[request] * columns, type);
    HstuHead found = {};
    found.type = type;
    found.attention_dim = attention_dim;
    found.value_dim = value_dim;
    found.scale = attention.scale;
    found.queries = moved(own, query_place(head), type);
    found.keys = moved(own, key_place(head), type);
    found.values = moved(own, value_place(head), type);
    found.stride = columns;
    found.history = history(request);
    found.causal = causal(request);
    const void* const first =
        attention.history_offsets
            ? moved(attention.history, attention.history_offsets[request] * history_columns, type)
            : own;
    found.history_keys = moved(first, history_key_place(head), type);
    found.history_values = moved(first, history_value_place(head), type);
    found.history_stride = attention.history_offsets ? history_columns : columns;
    return found;
  }
};

double product_cycles(double pairs, int64_t widths) {
  return pairs * static_cast<double>(widths) / 8;
}

void forward(const HstuKernels& kernels, const HstuThreads& threads, const HstuAttention& attention,
             void* output) {
  struct Item {
    int64_t request, head, begin, end;
  };
  const Layout layout(attention);
  std::vector<Item> items;
  double pairs = 0;
  for (int64_t request : layout.longest_first) {
    const int64_t rows = layout.rows(request), causal = layout.causal(request);
    pairs += static_cast<double>(rows) * static_cast<double>(layout.history(request));
    for (int64_t head = 0; head < layout.heads; ++head) {
      for (int64_t end = rows; end > 0;) {  // the longest first
        const int64_t first = end > causal ? causal : 0;
        const int64_t begin = first + (end - first - 1) / HSTU_BLOCK * HSTU_BLOCK;
        items.push_back({request, head, begin, end});
        end = begin;
      }
    }
  }
  const int64_t widths = layout.attention_dim + layout.value_dim;
  for_items(
      threads, static_cast<int64_t>(items.size()), product_cycles(pairs, layout.heads * widths),
      hstu_attend_floats(layout.attention_dim, layout.value_dim), [&](int64_t i, float* scratch) {
        const Item& item = items[static_cast<size_t>(i)];
        const HstuHead head = layout.head(item.request, item.head);
        const int64_t columns = 3 * layout.value_width;
        void* const av =
            moved(output, attention.offsets[item.request] * columns + layout.value_place(item.head),
                  attention.type);
        kernels.attend(&head, item.begin, item.end, scratch, av, columns);
      });
  RowItems(attention.rows)
      .run(threads, layout.value_width, [&](int64_t begin, int64_t end, int64_t, float* scratch) {
        kernels.gate(&attention, begin, end, scratch, output);
      });
}

// Keys [first, last) of a head. Its rows from first_query on attend them; `part` is where the
// query gradients begin that come from these keys.
struct KeyItem {
  int64_t request, head, first, last, first_query, part;
};

int64_t keys_of_an_item(int64_t history) {
  const int64_t share = divided_up(history, kMostKeyItems);
  return std::max(kFewestKeys, divided_up(share, HSTU_BLOCK) * HSTU_BLOCK);
}

void backward(const HstuKernels& kernels, const HstuThreads& threads,
              const HstuAttention& attention, const HstuAttentionGradient& gradient) {
  const Layout layout(attention);
  const int64_t width = layout.value_width, padded = hstu_padded(layout.attention_dim);
  const int32_t type = attention.type;

  const Floats av(attention.rows * width);
  const RowItems row_items(attention.rows);
  const RowSums sums(row_items.count, width);
  row_items.run(threads, 2 * width, [&](int64_t begin, int64_t end, int64_t item, float* scratch) {
    kernels.gate_gradient(&attention, &gradient, begin, end, scratch, av.begin(), sums.of(item));
  });
  sums.write(gradient.gamma, gradient.beta);

  std::vector<KeyItem> items;
  std::vector<size_t> first_item(static_cast<size_t>(attention.requests));  // of head 0
  int64_t part = 0;
  double pairs = 0;
  for (int64_t request : layout.longest_first) {
    const int64_t rows = layout.rows(request), history = layout.history(request);
    const int64_t keys = keys_of_an_item(history);
    pairs += static_cast<double>(rows) * static_cast<double>(history);
    first_item[static_cast<size_t>(request)] = items.size();
    for (int64_t head = 0; head < layout.heads; ++head) {
      const HstuHead described = layout.head(request, head);
      for (int64_t first = 0; first < history && rows > 0; first += keys) {
        const int64_t query = hstu_first_query(&described, first);
        items.push_back({request, head, first, std::min(first + keys, history), query, part});
        part += (rows - query) * padded;
      }
    }
  }
  const Floats parts(part);
  const auto place = [&](int64_t request, int64_t row, int64_t column) {
    return moved(gradient.projected, (attention.offsets[request] + row) * layout.columns + column,
                 type);
  };
  if (attention.history_offsets) {  // of rows that no target attends
    memset(gradient.history, 0,
           static_cast<size_t>(attention.history_rows * layout.history_columns * size_of(type)));
  }
  // The gradients of the history's keys and values.
  const auto history_place = [&](const KeyItem& item, int64_t column) {
    if (!attention.history_offsets) return place(item.request, 0, column);
    const int64_t first = attention.history_offsets[item.request];
    return moved(gradient.history, first * layout.history_columns + column, type);
  };
  const auto upstream = [&](int64_t request, int64_t row, int64_t head) {
    return av.begin() + (attention.offsets[request] + row) * width + head * layout.value_dim;
  };
  const int64_t widths = 3 * layout.attention_dim + 2 * layout.value_dim;
  const int64_t scratch_floats =
      hstu_attend_gradient_floats(layout.attention_dim, layout.value_dim);
  for_items(threads, static_cast<int64_t>(items.size()),
            product_cycles(pairs, layout.heads * widths), scratch_floats,
            [&](int64_t i, float* scratch) {
              const KeyItem& item = items[static_cast<size_t>(i)];
              const HstuHead head = layout.head(item.request, item.head);
              kernels.attend_gradient(&head, layout.rows(item.request), item.first, item.last,
                                      upstream(item.request, 0, item.head), width, scratch,
                                      parts.begin() + item.part,
                                      history_place(item, layout.history_key_place(item.head)),
                                      history_place(item, layout.history_value_place(item.head)));
            });

  for_items(threads, attention.requests * layout.heads,
            static_cast<double>(attention.rows) * static_cast<double>(layout.columns),
            scratch_floats, [&](int64_t item, float* scratch) {
              const int64_t request = item / layout.heads, head = item % layout.heads;
              const int64_t history = layout.history(request);
              const int64_t keys = keys_of_an_item(history), key_items = divided_up(history, keys);
              const HstuHead described = layout.head(request, head);
              const KeyItem* const own =
                  items.data() + first_item[static_cast<size_t>(request)] + head * key_items;
              for (int64_t row = 0; row < layout.rows(request); ++row) {
                const float* rows[kMostKeyItems];
                int64_t count = 0;
                for (; count < key_items && own[count].first_query <= row; ++count) {
                  rows[count] =
                      parts.begin() + own[count].part + (row - own[count].first_query) * padded;
                }
                kernels.finish_gradient(&described, row, rows, count, upstream(request, row, head),
                                        scratch, place(request, row, layout.query_place(head)),
                                        place(request, row, layout.key_place(head)),
                                        place(request, row, layout.value_place(head)));
              }
            });
}

template <typename Work>
int guarded(const Work& work) {
  try {
    work();
    return 0;
  } catch (const std::bad_alloc&) {
    return -1;
  }
}

}  // namespace

extern "C" {

int hstu_cpu_level(void) {
#ifdef __x86_64__
  // This also checks that the operating system saves these registers.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return __builtin_cpu_supports("avx512f") ? HSTU_AVX512 : HSTU_AVX2;
  }
#endif
  return HSTU_PORTABLE;
}

int hstu_cpu_attention(int level, const HstuThreads* threads, const HstuAttention* attention,
                       void* output) {
  return guarded([&] { forward(kernels_of(level), *threads, *attention, output); });
}

int hstu_cpu_attention_gradient(int level, const HstuThreads* threads,
                                const HstuAttention* attention,
                                const HstuAttentionGradient* gradient) {
  return guarded([&] { backward(kernels_of(level), *threads, *attention, *gradient); });
}

int hstu_cpu_norm(int level, const HstuThreads* threads, const HstuNorm* norm, void* output) {
  return guarded([&] {
    RowItems(norm->rows)
        .run(*threads, norm->width, [&](int64_t begin, int64_t end, int64_t, float* scratch) {
          kernels_of(level).norm(norm, begin, end, scratch, output);
        });
  });
}

int hstu_cpu_norm_gradient(int level, const HstuThreads* threads, const HstuNorm* norm,
                           const void* upstream, void* x, float* gamma, float* beta) {
  return guarded([&] {
    const RowItems items(norm->rows);
    const RowSums sums(items.count, norm->width);
    items.run(
        *threads, 2 * norm->width, [&](int64_t begin, int64_t end, int64_t item, float* scratch) {
          kernels_of(level).norm_gradient(norm, begin, end, upstream, scratch, x, sums.of(item));
        });
    sums.write(gamma, beta);
  });
}

int hstu_cpu_dropout(int level, const HstuThreads* threads, const HstuDropout* dropout,
                     void* output) {
  return guarded([&] {
    RowItems(dropout->rows)
        .run(*threads, dropout->width, [&](int64_t begin, int64_t end, int64_t, float*) {
          kernels_of(level).dropout(dropout, begin, end, output);
        });
  });
}

}  // extern "C"
