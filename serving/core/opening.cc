// Lays a model out for the kernels: arrays by table, the dictionary, panels of layers, hot rows.
//
// It knows neither requests nor how they are scored, only how far apart activations will lie.

#include "../../interact_op/interact.h"
#include "scorer_state.h"

bool Scorer::open(const ScorerModel& model) {
  interaction_width = interaction == SCORER_DOT   ? interact_output_width(tables + 1, width)
                      : interaction == SCORER_SUM ? width
                                                  : (tables + 1) * width;
  const struct {
    const ScorerLayer* layers;
    int count;
    Mlp* packed;
  } parts[] = {{model.bottom, model.bottom_count, &bottom},
               {model.top, model.top_count, &top},
               {model.cross, 2 * model.cross_count, &cross}};
  int64_t widest = 0, packed = 0;
  for (const auto& part : parts) {
    for (int i = 0; i < part.count; ++i) {
      if (part.layers[i].inputs > widest) widest = part.layers[i].inputs;
      if (part.layers[i].outputs > widest) widest = part.layers[i].outputs;
    }
    packed += packed_bytes(kernels, part.layers, part.count);
  }
  // One line more than whole panels: rows a power of two apart would share few sets of the cache.
  const int64_t line = kAlignment / static_cast<int64_t>(sizeof(float));
  // Words of the portable level hold one value, so they need no more than the floats.
  stride = rounded_up(rounded_up(widest, kernels.panel), line) + line;
  word_stride = rounded_up(rounded_up(widest, kernels.panel) / kernels.group, line) + line;
  split_stride = rounded_up(rounded_up(widest, kernels.panel) / 2, line) + line;

  has_bags = model.pooling;
  int64_t id_columns = 0;
  for (int64_t i = 0; i < tables; ++i) id_columns += has_bags ? model.max_ids[i] : 1;
  const int64_t bytes = Memory::needed<int64_t>(tables) * 3 + Memory::needed<int64_t>(tables + 1) +
                        Memory::needed<int64_t>(id_columns) + Memory::needed<int32_t>(tables) +
                        Memory::needed<float>(tables) + Dictionary::bytes(tables) + packed;
  if (!memory.allocate(bytes)) return false;
  int64_t* const sizes = memory.take<int64_t>(tables);
  int64_t* const listed = memory.take<int64_t>(tables);
  int64_t* const of_ids = memory.take<int64_t>(tables);
  int32_t* const pooled = memory.take<int32_t>(tables);
  int64_t* const table_of_column = memory.take<int64_t>(id_columns);
  int64_t* const keys = memory.take<int64_t>(tables + 1);
  float* const scales = memory.take<float>(tables);
  for (int64_t table = 0; table < tables; ++table) {
    sizes[table] = model.vocab_sizes[table];
    listed[table] = table;
    of_ids[table] = has_bags ? model.max_ids[table] : 1;
    pooled[table] = has_bags ? model.pooling[table] : SCORER_ONE_ID;
    // Of known ids, as of all, a key is the place of a row among all rows in order of id.
    keys[table + 1] =
        keys[table] + (model.known_counts ? model.known_counts[table] + 1 : sizes[table]);
    if (model.table_scales) scales[table] = model.table_scales[table];
  }
  for (int64_t table = 0, column = 0; table < tables; ++table) {
    for (int64_t i = 0; i < of_ids[table]; ++i) table_of_column[column++] = table;
  }
  vocab_sizes = sizes;
  columns = of_ids;
  pooling = pooled;
  all_tables = {listed, tables, id_columns};
  first_keys = keys;
  table_scales = scales;
  dictionary.open(model, table_of_column, id_columns, memory);
  for (const auto& part : parts) {
    pack_mlp(kernels, part.layers, part.count, memory, part.packed);
  }
  return known.open(model, &pool) && rows.open(model, first_keys, &pool);
}
