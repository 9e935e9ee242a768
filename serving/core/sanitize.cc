// Scores on every instruction set with arrays that fill their allocations, so that the sanitizers
// detect any access outside them. It uses the C interface alone and knows no logits: the tests of
// serving.scorer compare them.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "scorer.h"

namespace {

// Values in an allocation of their own, of which they are the end.
template <typename T>
class Values {
 public:
  explicit Values(int64_t count) : memory_(static_cast<size_t>(count + 1)) {
    for (size_t i = 0; i < memory_.size(); ++i) memory_[i] = static_cast<T>(i % 5);
  }
  T* begin() { return memory_.data() + 1; }

 private:
  std::vector<T> memory_;
};

// Whether every id has a row, or known ids alone; and what the others have.
enum Known { kAllIds, kSharedRow, kInitialValues };

struct Shape {
  std::vector<int64_t> vocab_sizes;
  int64_t width, num_dense;
  std::vector<int64_t> bottom, top;
};

// The layers of an MLP and their arrays.
struct Layers {
  Layers(std::vector<int64_t> sizes, bool int8, bool last_relu) {
    for (size_t i = 0; i + 1 < sizes.size(); ++i) {
      const int64_t inputs = sizes[i], outputs = sizes[i + 1];
      floats.emplace_back(int8 ? 0 : inputs * outputs);
      bytes.emplace_back(int8 ? inputs * outputs : 0);
      biases.emplace_back(outputs);
      scales.emplace_back(outputs);
      input_scales.emplace_back(inputs);
      zeros.emplace_back(inputs);
      for (int64_t j = 0; j < inputs; ++j) input_scales.back().begin()[j] = 0.5f;
      const void* const kernel =
          int8 ? static_cast<const void*>(bytes.back().begin()) : floats.back().begin();
      layers.push_back({inputs, outputs, int8, last_relu || i + 2 < sizes.size(), kernel,
                        biases.back().begin(), scales.back().begin(), input_scales.back().begin(),
                        zeros.back().begin()});
    }
  }
  std::vector<Values<float>> floats, biases, scales, input_scales;
  std::vector<Values<int8_t>> bytes;
  std::vector<Values<int32_t>> zeros;
  std::vector<ScorerLayer> layers;
};

bool run(const Shape& shape, int level, int32_t row_type, bool int8, int32_t interaction,
         int32_t cross_count, bool bags, Known known) {
  const int64_t tables = static_cast<int64_t>(shape.vocab_sizes.size());
  const int64_t pairs = tables * (tables + 1) / 2, all = (tables + 1) * shape.width;
  const int64_t columns[] = {(shape.width + pairs + 7) / 8 * 8, all, shape.width};
  std::vector<int64_t> bottom = {shape.num_dense}, top = {columns[interaction]};
  bottom.insert(bottom.end(), shape.bottom.begin(), shape.bottom.end());
  top.insert(top.end(), shape.top.begin(), shape.top.end());
  Layers bottom_layers(bottom, int8, true), top_layers(top, int8, false);
  // Two cross layers, each of two layers without ReLU.
  Layers v(std::vector<int64_t>{all, 5}, false, false),
      w(std::vector<int64_t>{5, all}, false, false);
  const ScorerLayer cross[] = {v.layers[0], w.layers[0], v.layers[0], w.layers[0]};
  // One id, sums and means of up to two and of up to three.
  Values<int32_t> pooling(tables), max_ids(tables);
  std::vector<int64_t> table_of_column;
  for (int64_t table = 0; table < tables; ++table) {
    pooling.begin()[table] = bags ? static_cast<int32_t>(table % 3) : SCORER_ONE_ID;
    max_ids.begin()[table] = pooling.begin()[table] + 1;
    for (int32_t i = 0; i < max_ids.begin()[table]; ++i) table_of_column.push_back(table);
  }
  const int64_t columns_of_ids = static_cast<int64_t>(table_of_column.size());
  const int64_t item_columns = columns_of_ids - 1;
  int64_t keys = 0;
  // Every other id, from the last one of a table down.
  std::vector<int32_t> known_ids;
  std::vector<int64_t> known_counts;
  for (int64_t size : shape.vocab_sizes) {
    known_counts.push_back((size + 1) / 2);
    for (int64_t id = (size - 1) % 2; id < size; id += 2) {
      known_ids.push_back(static_cast<int32_t>(id));
    }
    keys += known == kAllIds ? size : known_counts.back() + 1;
  }
  Values<float> bounds(tables);
  const int64_t row_bytes[] = {shape.width * 4, shape.width * 2, shape.width, shape.width + 8};
  Values<char> rows(keys * row_bytes[row_type] + 3);  // so that they begin at a multiple of 4
  Values<float> scales(tables);
  Values<int32_t> positions(keys);
  for (int64_t key = 0; key < keys; ++key) {
    positions.begin()[key] = static_cast<int32_t>(keys - 1 - key);
  }
  Values<int64_t> moduli(tables), dictionary(tables);
  Values<int32_t> dictionary_ids(tables);
  for (int64_t table = 0; table < tables; ++table) {
    dictionary.begin()[table] = table << 32 | 1;
    dictionary_ids.begin()[table] = 0;
  }
  ScorerModel model = {};
  model.num_dense = shape.num_dense;
  model.tables = tables;
  model.width = shape.width;
  model.vocab_sizes = shape.vocab_sizes.data();
  if (bags) {
    model.pooling = pooling.begin();
    model.max_ids = max_ids.begin();
  }
  model.row_type = row_type;
  model.table_scales = scales.begin();
  model.rows = rows.begin() + 3;
  model.hot_rows = keys / 2;
  model.positions = positions.begin();
  model.position_bytes = 4;
  model.bottom_count = static_cast<int32_t>(shape.bottom.size());
  model.top_count = static_cast<int32_t>(shape.top.size());
  model.bottom = bottom_layers.layers.data();
  model.top = top_layers.layers.data();
  model.interaction = interaction;
  model.cross_count = interaction == SCORER_CONCAT ? cross_count : 0;
  model.cross = cross;
  model.dictionary_count = tables;
  model.dictionary_values = dictionary.begin();
  model.dictionary_ids = dictionary_ids.begin();
  model.moduli = moduli.begin();
  if (known != kAllIds) {
    model.known_counts = known_counts.data();
    model.known_ids = known_ids.data();
  }
  if (known == kInitialValues) model.initial_bounds = bounds.begin();
  Scorer* const scorer = scorer_open(&model, level, 2);
  if (!scorer) return false;
  bool good = true;
  for (int64_t batch : {0, 1, 2, 5, 17, 130}) {
    Values<float> dense(batch * shape.num_dense), logits(batch);
    const int64_t count = batch * columns_of_ids;
    Values<int32_t> ids(count), items(batch * item_columns);
    Values<int64_t> values(count);
    Values<float> factors(count);
    const float* const weights = bags ? factors.begin() : nullptr;
    ScorerFault fault;
    good &= scorer_look_up(scorer, values.begin(), batch, ids.begin(), &fault) == SCORER_OK;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t table = table_of_column[static_cast<size_t>(i % columns_of_ids)];
      const bool none = pooling.begin()[table] != SCORER_ONE_ID && i % 7 < 3;
      const int64_t id = i % shape.vocab_sizes[static_cast<size_t>(table)];
      ids.begin()[i] = none ? -1 : static_cast<int32_t>(id);
    }
    const auto score = [&]() {
      return scorer_score(scorer, dense.begin(), ids.begin(), weights, batch, logits.begin(),
                          &fault);
    };
    good &= score() == SCORER_OK;
    if (batch == 0) continue;
    Values<int32_t> user_tables(1), user_ids(1);
    user_tables.begin()[0] = 0;
    user_ids.begin()[0] = 0;
    for (int64_t i = 0; i < batch * item_columns; ++i) items.begin()[i] = 0;
    Values<float> user_weights(1);
    good &= scorer_candidates(scorer, dense.begin(), user_tables.begin(), 1, user_ids.begin(),
                              bags ? user_weights.begin() : nullptr, items.begin(), weights, batch,
                              logits.begin(), &fault) == SCORER_OK;
    ids.begin()[count - 1] = -2;
    good &= score() == SCORER_BAD_ID && fault.sample == batch - 1 && fault.column == tables - 1 &&
            fault.value == -2;
  }
  scorer_close(scorer);
  return good;
}

}  // namespace

int main() {
  const Shape shapes[] = {
      {{1}, 1, 1, {1}, {1}},
      {{3, 1, 2}, 7, 13, {5, 7}, {33, 1}},
      {{9, 4, 5, 1}, 16, 2, {65, 16}, {31, 32, 1}},
      {{2, 2, 2, 2, 2}, 33, 17, {33}, {130, 9, 1}},
  };
  int runs = 0;
  for (int level = 0; level < SCORER_LEVELS; ++level) {
    if (!scorer_supports(level)) continue;
    for (const Shape& shape : shapes) {
      for (int32_t type : {SCORER_FLOAT32, SCORER_FLOAT16, SCORER_INT8, SCORER_INT8_ROWS}) {
        for (bool int8 : {false, true}) {
          // All interactions with rows of one type: what follows the rows does not know it.
          const int others = type == SCORER_FLOAT32 ? SCORER_SUM : SCORER_DOT;
          for (int32_t kind = SCORER_DOT; kind <= others; ++kind) {
            for (int32_t crossed = 0; crossed <= (kind == SCORER_CONCAT ? 2 : 0); crossed += 2) {
              for (bool bags : {false, true}) {
                for (Known known : {kAllIds, kSharedRow, kInitialValues}) {
                  // Layers do not know it either.
                  if (known != kAllIds && (int8 || kind != SCORER_DOT)) continue;
                  if (!run(shape, level, type, int8, kind, crossed, bags, known)) {
                    printf("level %d, rows of type %d, interaction %d: failed\n", level, type,
                           kind);
                    return EXIT_FAILURE;
                  }
                  ++runs;
                }
              }
            }
          }
        }
      }
    }
  }
  printf("%d runs of scorers on levels up to %d\n", runs, scorer_cpu_level());
  return EXIT_SUCCESS;
}
