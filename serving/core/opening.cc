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

  const int64_t bytes = Memory::needed<int64_t>(tables) * 2 + Memory::needed<int64_t>(tables + 1) +
                        Memory::needed<float>(tables) + Dictionary::bytes(tables) + packed;
  if (!memory.allocate(bytes)) return false;
  int64_t* const sizes = memory.take<int64_t>(tables);
  int64_t* const listed = memory.take<int64_t>(tables);
  int64_t* const keys = memory.take<int64_t>(tables + 1);
  float* const scales = memory.take<float>(tables);
  for (int64_t table = 0; table < tables; ++table) {
    sizes[table] = model.vocab_sizes[table];
    listed[table] = table;
    keys[table + 1] = keys[table] + sizes[table];
    if (model.table_scales) scales[table] = model.table_scales[table];
  }
  vocab_sizes = sizes;
  all_tables = listed;
  first_keys = keys;
  table_scales = scales;
  dictionary.open(model, memory);
  for (const auto& part : parts) {
    pack_mlp(kernels, part.layers, part.count, memory, part.packed);
  }
  return rows.open(model, first_keys, &pool);
}
