// Scores a batch in blocks whose activations stay in cache: bottom MLP, rows, interaction, top MLP.
//
// Large batches give every thread blocks of its own. A small one is a single block, whose layers
// are shared by the threads where their weights are worth it.

#include "scorer.h"

#include <string.h>

#include <new>

#include "../../interact_op/interact.h"
#include "panels.h"
#include "rows.h"
#include "scratch.h"
#include "threads.h"

namespace {

constexpr int64_t kBlock = 128;       // samples; their widest activations fill half of a cache
constexpr int64_t kGathered = 16;     // samples whose vectors are in cache at a time
constexpr int64_t kSharedBatch = 64;  // up to which threads share layers instead of samples
constexpr int64_t kSharedBytes = 256 << 10;  // of weights, from which a layer is shared
constexpr int64_t kSplitBatch = 16;          // samples of a request from which floats are split
constexpr int64_t kPanelsOfPart = 4;         // at least; one sample takes so many at once

// A job for the threads of a scorer: work(part) for each part.
template <typename Work>
void run_parts(ThreadPool* pool, int64_t count, const Work& work) {
  if (!pool || count <= 1) {
    for (int64_t part = 0; part < count; ++part) work(part);
    return;
  }
  const auto call = [](const void* context, int64_t part) {
    (*static_cast<const Work*>(context))(part);
  };
  pool->run(count, call, &work);
}

// What stays the same for all candidates of a user.
struct User {
  const float* bottom;   // [width]
  const float* vectors;  // [tables, width], of which only the user's are used
  int64_t count;
  const int64_t* tables;  // [count]
};

struct Request {
  const float* dense;     // [batch, num_dense]; unused with a user
  const int32_t* ids;     // [batch, count]
  const int64_t* tables;  // [count]: the tables that every sample looks up
  int64_t count, batch;
  float* logits;
  const User* user;
};

}  // namespace

struct Scorer {
  Scorer(const ScorerModel& model, int cpu_level, int threads)
      : num_dense(model.num_dense),
        tables(model.tables),
        width(model.width),
        row_type(model.row_type),
        dictionary_values(model.dictionary_values),
        dictionary_ids(model.dictionary_ids),
        missing_is_value(model.missing_is_value != 0),
        level(cpu_level),
        kernels(kernels_of(cpu_level)),
        pool(threads) {}

  bool open(const ScorerModel& model);
  int score(const Request& request);
  int check_dense(const float* dense, int64_t batch, ScorerFault* fault) const;
  int check_ids(const int32_t* ids, const int64_t* listed, int64_t count, int64_t batch,
                ScorerFault* fault) const;
  Scratch* take_scratch();
  void run_mlp(const Mlp& mlp, const float* input, int64_t stride, int64_t rows, float* output,
               int64_t output_stride, Scratch* scratch, ThreadPool* helpers, bool split) const;

  int64_t num_dense, tables, width;
  int32_t row_type;
  const int64_t* vocab_sizes = nullptr;
  const int64_t* first_keys = nullptr;
  const int64_t* all_tables = nullptr;
  const float* table_scales = nullptr;
  const int64_t* dictionary_values;
  const int32_t* dictionary_ids;
  const int64_t* dictionary_starts = nullptr;  // [tables + 1]
  const int64_t* moduli = nullptr;
  bool missing_is_value;
  int level;
  const Kernels& kernels;
  ThreadPool pool;
  Memory memory;
  Mlp bottom, top;
  Rows rows;
  ScratchList scratches;
  int64_t interaction_width = 0;
  int64_t stride = 0;        // of activations
  int64_t word_stride = 0;   // of quantised activations
  int64_t split_stride = 0;  // of split activations

 private:
  bool score_block(const Request& request, int64_t first, int64_t count, ThreadPool* helpers);
  bool interact(const Request& request, int64_t first, int64_t count, const Scratch& block,
                Scratch* own) const;
  int interact_level() const;
};

namespace {

// The first place in [begin, end) of ascending values that is not below `value`, or `end`.
int64_t lower_bound(const int64_t* values, int64_t begin, int64_t end, int64_t value) {
  int64_t count = end - begin;
  if (count == 0) return end;
  while (count > 1) {
    // Without a branch, as nobody can foresee which half it is.
    const int64_t half = count / 2;
    begin += values[begin + half - 1] < value ? half : 0;
    count -= half;
  }
  return begin + (values[begin] < value);
}

int64_t bytes_of(const PanelLayer& layer) {
  return layer.inputs * layer.outputs * (layer.int8 ? 1 : static_cast<int64_t>(sizeof(float)));
}

}  // namespace

bool Scorer::open(const ScorerModel& model) {
  interaction_width = interact_output_width(tables + 1, width);
  int64_t widest = 0;
  for (int mlp = 0; mlp < 2; ++mlp) {
    const ScorerLayer* const layers = mlp ? model.top : model.bottom;
    for (int i = 0; i < (mlp ? model.top_count : model.bottom_count); ++i) {
      if (layers[i].inputs > widest) widest = layers[i].inputs;
      if (layers[i].outputs > widest) widest = layers[i].outputs;
    }
  }
  // One line more than whole panels: rows a power of two apart would share few sets of the cache.
  const int64_t line = kAlignment / static_cast<int64_t>(sizeof(float));
  // Words of the portable level hold one value, so they need no more than the floats.
  stride = rounded_up(rounded_up(widest, kernels.panel), line) + line;
  word_stride = rounded_up(rounded_up(widest, kernels.panel) / kernels.group, line) + line;
  split_stride = rounded_up(rounded_up(widest, kernels.panel) / 2, line) + line;

  const int64_t bytes = Memory::needed<int64_t>(tables) * 3 +
                        Memory::needed<int64_t>(tables + 1) * 2 + Memory::needed<float>(tables) +
                        packed_bytes(kernels, model.bottom, model.bottom_count) +
                        packed_bytes(kernels, model.top, model.top_count);
  if (!memory.allocate(bytes)) return false;
  int64_t* const sizes = memory.take<int64_t>(tables);
  int64_t* const listed = memory.take<int64_t>(tables);
  int64_t* const mods = memory.take<int64_t>(tables);
  int64_t* const keys = memory.take<int64_t>(tables + 1);
  int64_t* const starts = memory.take<int64_t>(tables + 1);
  float* const scales = memory.take<float>(tables);
  for (int64_t table = 0; table < tables; ++table) {
    sizes[table] = model.vocab_sizes[table];
    listed[table] = table;
    mods[table] = model.moduli ? model.moduli[table] : 0;
    keys[table + 1] = keys[table] + sizes[table];
    if (model.table_scales) scales[table] = model.table_scales[table];
  }
  for (int64_t table = 0; dictionary_values && table <= tables; ++table) {
    starts[table] = lower_bound(dictionary_values, 0, model.dictionary_count, table << 32);
  }
  vocab_sizes = sizes;
  all_tables = listed;
  moduli = mods;
  first_keys = keys;
  dictionary_starts = starts;
  table_scales = scales;
  pack_mlp(kernels, model.bottom, model.bottom_count, memory, &bottom);
  pack_mlp(kernels, model.top, model.top_count, memory, &top);
  return rows.open(model, first_keys, &pool);
}

int Scorer::interact_level() const {
  switch (level) {
    case SCORER_PORTABLE:
      return INTERACT_PORTABLE;
    case SCORER_AVX2:
    case SCORER_AVX2_VNNI:
      return INTERACT_AVX2;
    default:
      return INTERACT_AVX512;
  }
}

Scratch* Scorer::take_scratch() {
  if (Scratch* const kept = scratches.take()) return kept;
  Scratch* const scratch = new (std::nothrow) Scratch();
  const int64_t bytes = Memory::needed<float>(kBlock * stride) * 2 +
                        Memory::needed<float>(kBlock * width) +
                        Memory::needed<float>(kGathered * tables * width) +
                        Memory::needed<float>(kBlock * interaction_width) +
                        Memory::needed<const char*>(kBlock * tables) +
                        Memory::needed<uint32_t>(kernels.parts * kBlock * split_stride);
  if (!scratch || !scratch->memory.allocate(bytes)) {
    delete scratch;
    return nullptr;
  }
  for (float*& values : scratch->values) values = scratch->memory.take<float>(kBlock * stride);
  scratch->bottom = scratch->memory.take<float>(kBlock * width);
  scratch->vectors = scratch->memory.take<float>(kGathered * tables * width);
  scratch->interaction = scratch->memory.take<float>(kBlock * interaction_width);
  scratch->rows = scratch->memory.take<const char*>(kBlock * tables);
  scratch->split = scratch->memory.take<uint32_t>(kernels.parts * kBlock * split_stride);
  return scratch;
}

// Samples [count, inputs] -> [count, outputs], at most a block of them. Both may lie in `scratch`,
// but not in its values.
void Scorer::run_mlp(const Mlp& mlp, const float* input, int64_t input_stride, int64_t count,
                     float* output, int64_t output_stride, Scratch* scratch, ThreadPool* helpers,
                     bool split) const {
  LayerCall call = {};
  call.rows = count;
  call.input = input;
  call.input_stride = input_stride;
  int free = 0;
  if (mlp.layers[0].int8) {
    auto* const words = reinterpret_cast<uint32_t*>(scratch->values[0]);
    kernels.quantise(mlp.layers[0], input, input_stride, count, words, word_stride);
    call.input = words;
    call.input_stride = word_stride;
    free = 1;
  }
  for (int i = 0; i < mlp.count; ++i) {
    call.layer = &mlp.layers[i];
    const bool last = i + 1 == mlp.count;
    call.next = !last && mlp.layers[i + 1].int8 ? &mlp.layers[i + 1] : nullptr;
    call.output = last ? output : scratch->values[free];
    call.output_stride = last ? output_stride : call.next ? word_stride : stride;
    call.part_stride = 0;
    if (split && call.layer->split_kernel) {
      call.part_stride = kBlock * split_stride;
      kernels.split(*call.layer, static_cast<const float*>(call.input), call.input_stride, count,
                    scratch->split, split_stride, call.part_stride);
      call.input = scratch->split;
      call.input_stride = split_stride;
    }
    const int64_t panels = call.layer->panels;
    const bool shared = helpers && bytes_of(*call.layer) >= kSharedBytes;
    const int64_t most = shared ? helpers->threads() * 2 : 1;
    const int64_t wanted = (panels + kPanelsOfPart - 1) / kPanelsOfPart;
    const int64_t parts = wanted < most ? wanted : most;
    const auto work = [&](int64_t part) {
      LayerCall mine = call;
      mine.first = (wanted * part / parts) * kPanelsOfPart;
      const int64_t end = (wanted * (part + 1) / parts) * kPanelsOfPart;
      mine.last = end < panels ? end : panels;
      kernels.layer(mine);
    };
    run_parts(helpers, parts, work);
    call.input = call.output;
    call.input_stride = call.output_stride;
    free ^= 1;
  }
}

// Rows and interaction of samples [first, first + count) of a block, with vectors in `own` memory.
bool Scorer::interact(const Request& request, int64_t first, int64_t count, const Scratch& block,
                      Scratch* own) const {
  const User* const user = request.user;
  if (user) {
    for (int64_t i = 0; i < user->count; ++i) {
      for (int64_t sample = 0; sample < count && sample < kGathered; ++sample) {
        memcpy(own->vectors + (sample * tables + user->tables[i]) * width,
               user->vectors + user->tables[i] * width, static_cast<size_t>(width) * sizeof(float));
      }
    }
  }
  for (const int64_t end = first + count; first < end; first += kGathered) {
    const int64_t samples = end - first < kGathered ? end - first : kGathered;
    GatherCall gather = {};
    gather.row_type = row_type;
    gather.samples = samples;
    gather.tables = request.count;
    gather.width = width;
    gather.stride = tables * width;
    gather.rows = block.rows + first * request.count;
    gather.tables_listed = request.tables;
    gather.scales = table_scales;
    gather.output = own->vectors;
    kernels.gather(gather);
    const InteractGroup groups[] = {{block.bottom + first * width, nullptr, 1},
                                    {own->vectors, nullptr, tables}};
    const InteractBatch batch = {INTERACT_FLOAT32, 2, groups, width};
    if (interact_cpu_forward(interact_level(), &batch, 0, samples,
                             block.interaction + first * interaction_width) != 0) {
      return false;
    }
  }
  return true;
}

bool Scorer::score_block(const Request& request, int64_t first, int64_t count,
                         ThreadPool* helpers) {
  Scratch* const scratch = take_scratch();
  if (!scratch) return false;
  // By the request, so that neither threads nor blocks decide on the bits of a logit.
  const bool split = kernels.split && request.batch >= kSplitBatch;
  rows.find(request.ids + first * request.count, count, request.tables, request.count,
            scratch->rows);
  if (request.user) {
    for (int64_t i = 0; i < count; ++i) {
      memcpy(scratch->bottom + i * width, request.user->bottom,
             static_cast<size_t>(width) * sizeof(float));
    }
  } else {
    run_mlp(bottom, request.dense + first * num_dense, num_dense, count, scratch->bottom, width,
            scratch, helpers, split);
  }
  std::atomic<bool> good{true};
  const int64_t parts = helpers ? (count + kGathered - 1) / kGathered : 1;
  const auto work = [&](int64_t part) {
    const int64_t begin = count * part / parts, end = count * (part + 1) / parts;
    Scratch* const own = parts > 1 ? take_scratch() : scratch;
    if (!own || !interact(request, begin, end - begin, *scratch, own)) good = false;
    if (own && own != scratch) scratches.put(own);
  };
  run_parts(helpers, parts, work);
  if (good) {
    run_mlp(top, scratch->interaction, interaction_width, count, request.logits + first, 1, scratch,
            helpers, split);
  }
  scratches.put(scratch);
  return good;
}

int Scorer::score(const Request& request) {
  if (request.batch == 0) return SCORER_OK;
  const bool acquired = pool.threads() > 1 && pool.try_acquire();
  ThreadPool* const helpers = acquired ? &pool : nullptr;
  std::atomic<bool> good{true};
  if (request.batch <= kSharedBatch) {
    good = score_block(request, 0, request.batch, helpers);
  } else {
    const int64_t threads = acquired ? pool.threads() : 1;
    const int64_t blocks = rounded_up((request.batch + kBlock - 1) / kBlock, threads);
    const auto work = [&](int64_t block) {
      const int64_t begin = request.batch * block / blocks;
      const int64_t end = request.batch * (block + 1) / blocks;
      if (!score_block(request, begin, end - begin, nullptr)) good = false;
    };
    run_parts(helpers, blocks, work);
  }
  if (acquired) pool.release();
  return good ? SCORER_OK : SCORER_NO_MEMORY;
}

int Scorer::check_dense(const float* dense, int64_t batch, ScorerFault* fault) const {
  const int64_t count = batch * num_dense;
  for (int64_t i = 0; i < count; ++i) {
    // A difference with itself is not zero if the value is infinite or not a number.
    if (dense[i] - dense[i] != 0) {
      *fault = {i / num_dense, i % num_dense};
      return SCORER_BAD_DENSE;
    }
  }
  return SCORER_OK;
}

int Scorer::check_ids(const int32_t* ids, const int64_t* listed, int64_t count, int64_t batch,
                      ScorerFault* fault) const {
  for (int64_t sample = 0; sample < batch; ++sample) {
    for (int64_t i = 0; i < count; ++i) {
      // A negative id is a large one without its sign.
      if (static_cast<uint32_t>(ids[sample * count + i]) >= vocab_sizes[listed[i]]) {
        *fault = {sample, listed[i]};
        return SCORER_BAD_ID;
      }
    }
  }
  return SCORER_OK;
}

extern "C" {

Scorer* scorer_open(const ScorerModel* model, int level, int threads) {
  Scorer* const scorer = new (std::nothrow) Scorer(*model, level, threads);
  if (scorer && !scorer->open(*model)) {
    delete scorer;
    return nullptr;
  }
  return scorer;
}

void scorer_close(Scorer* scorer) { delete scorer; }

int scorer_score(Scorer* scorer, const float* dense, const int32_t* ids, int64_t batch,
                 float* logits, ScorerFault* fault) {
  if (const int bad = scorer->check_dense(dense, batch, fault)) return bad;
  const int64_t* const listed = scorer->all_tables;
  if (const int bad = scorer->check_ids(ids, listed, scorer->tables, batch, fault)) return bad;
  return scorer->score({dense, ids, listed, scorer->tables, batch, logits, nullptr});
}

int scorer_candidates(Scorer* scorer, const float* dense, const int32_t* user_tables,
                      const int32_t* user_ids, int64_t user_count, const int32_t* item_ids,
                      int64_t batch, float* logits, ScorerFault* fault) {
  const int64_t item_count = scorer->tables - user_count, width = scorer->width;
  Memory memory;
  if (!memory.allocate(Memory::needed<int64_t>(user_count) + Memory::needed<int64_t>(item_count) +
                       Memory::needed<const char*>(user_count) + Memory::needed<float>(width) +
                       Memory::needed<float>(scorer->tables * width))) {
    return SCORER_NO_MEMORY;
  }
  int64_t* const users = memory.take<int64_t>(user_count);
  int64_t* const items = memory.take<int64_t>(item_count);
  const char** const rows = memory.take<const char*>(user_count);
  float* const bottom = memory.take<float>(width);
  float* const vectors = memory.take<float>(scorer->tables * width);
  for (int64_t i = 0; i < user_count; ++i) users[i] = user_tables[i];
  for (int64_t table = 0, item = 0; table < scorer->tables; ++table) {
    bool of_user = false;
    for (int64_t i = 0; i < user_count; ++i) of_user |= users[i] == table;
    if (!of_user) items[item++] = table;
  }
  if (const int bad = scorer->check_dense(dense, 1, fault)) return bad;
  if (const int bad = scorer->check_ids(user_ids, users, user_count, 1, fault)) {
    fault->sample = -1;
    return bad;
  }
  if (const int bad = scorer->check_ids(item_ids, items, item_count, batch, fault)) return bad;

  Scratch* const scratch = scorer->take_scratch();
  if (!scratch) return SCORER_NO_MEMORY;
  scorer->run_mlp(scorer->bottom, dense, scorer->num_dense, 1, bottom, width, scratch, nullptr,
                  false);
  scorer->scratches.put(scratch);
  scorer->rows.find(user_ids, 1, users, user_count, rows);
  GatherCall gather = {};
  gather.row_type = scorer->row_type;
  gather.samples = 1;
  gather.tables = user_count;
  gather.width = width;
  gather.rows = rows;
  gather.tables_listed = users;
  gather.scales = scorer->table_scales;
  gather.output = vectors;
  scorer->kernels.gather(gather);
  // The rows of the user lie in the slots of their tables; they are copied from there.
  const User user = {bottom, vectors, user_count, users};
  return scorer->score({nullptr, item_ids, items, item_count, batch, logits, &user});
}

int scorer_look_up(const Scorer* scorer, const int64_t* values, int64_t batch, int32_t* ids,
                   ScorerFault* fault) {
  const int64_t tables = scorer->tables;
  for (int64_t sample = 0; sample < batch; ++sample) {
    for (int64_t table = 0; table < tables; ++table) {
      int64_t value = values[sample * tables + table];
      int32_t& id = ids[sample * tables + table];
      if (value < -1 || value >> 32 > 0) {
        *fault = {sample, table};
        return SCORER_BAD_VALUE;
      }
      id = 0;
      if (value < 0 && !scorer->missing_is_value) continue;
      if (value < 0) value = 0;
      if (scorer->moduli[table]) value %= scorer->moduli[table];
      const int64_t wanted = table << 32 | value;
      const int64_t end = scorer->dictionary_starts[table + 1];
      const int64_t at =
          lower_bound(scorer->dictionary_values, scorer->dictionary_starts[table], end, wanted);
      if (at < end && scorer->dictionary_values[at] == wanted) id = scorer->dictionary_ids[at];
    }
  }
  return SCORER_OK;
}

void scorer_unpack(const int32_t* words, int64_t batch, int64_t word_count, const int32_t* fields,
                   int64_t tables, int32_t* ids) {
  for (int64_t sample = 0; sample < batch; ++sample, words += word_count) {
    for (int64_t table = 0; table < tables; ++table) {
      const int32_t* const field = fields + 3 * table;  // word, shift, bits
      const uint32_t shifted = static_cast<uint32_t>(words[field[0]]) >> field[1];
      const uint32_t mask = static_cast<uint32_t>((uint64_t{1} << field[2]) - 1);
      *ids++ = static_cast<int32_t>(shifted & mask);
    }
  }
}

void scorer_lookups(const Scorer* scorer, int64_t* hot, int64_t* cold) {
  scorer->rows.lookups(hot, cold);
}

}  // extern "C"
