// Scores a batch in blocks whose activations stay in cache: bottom MLP, rows, interaction, top MLP.
//
// Large batches give every thread blocks of its own. A small one is a single block, whose layers
// are shared by the threads where their weights are worth it.
//
// It takes checked inputs alone, and knows neither the C interface nor how weights and rows lie.

#include <string.h>

#include <atomic>
#include <new>

#include "../../interact_op/interact.h"
#include "scorer_state.h"

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

int64_t bytes_of(const PanelLayer& layer) {
  return layer.inputs * layer.outputs * (layer.int8 ? 1 : static_cast<int64_t>(sizeof(float)));
}

int interact_level(int level) {
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

}  // namespace

Scratch* Scorer::take_scratch() {
  if (Scratch* const kept = scratches.take()) return kept;
  Scratch* const scratch = new (std::nothrow) Scratch();
  const int64_t bytes = Memory::needed<float>(kBlock * stride) * 2 +
                        Memory::needed<float>(kBlock * width) +
                        Memory::needed<float>(kGathered * tables * width) +
                        Memory::needed<float>(kBlock * interaction_width) * (cross.count ? 3 : 1) +
                        Memory::needed<const char*>(kBlock * all_tables.columns) +
                        (has_bags ? Memory::needed<float>(kBlock * all_tables.columns) +
                                        Memory::needed<int64_t>(kBlock * tables + 1)
                                  : 0) +
                        (known.any() ? Memory::needed<int32_t>(kBlock * all_tables.columns) : 0) +
                        Memory::needed<uint32_t>(kernels.parts * kBlock * split_stride);
  if (!scratch || !scratch->memory.allocate(bytes)) {
    delete scratch;
    return nullptr;
  }
  for (float*& values : scratch->values) values = scratch->memory.take<float>(kBlock * stride);
  scratch->bottom = scratch->memory.take<float>(kBlock * width);
  scratch->vectors = scratch->memory.take<float>(kGathered * tables * width);
  scratch->interaction = scratch->memory.take<float>(kBlock * interaction_width);
  if (cross.count) {
    scratch->crossed = scratch->memory.take<float>(kBlock * interaction_width);
    scratch->factor = scratch->memory.take<float>(kBlock * interaction_width);
  }
  scratch->found.rows = scratch->memory.take<const char*>(kBlock * all_tables.columns);
  if (has_bags) {
    scratch->found.weights = scratch->memory.take<float>(kBlock * all_tables.columns);
    scratch->found.starts = scratch->memory.take<int64_t>(kBlock * tables + 1);
  }
  if (known.any()) {
    scratch->found.places = scratch->memory.take<int32_t>(kBlock * all_tables.columns);
  }
  scratch->split = scratch->memory.take<uint32_t>(kernels.parts * kBlock * split_stride);
  return scratch;
}

// Samples [count, inputs] -> [count, outputs], at most a block of them. Both may lie in `scratch`,
// but not in its values.
void Scorer::run_layers(const PanelLayer* layers, int layer_count, const float* input,
                        int64_t input_stride, int64_t count, float* output, int64_t output_stride,
                        Scratch* scratch, ThreadPool* helpers, bool split) const {
  LayerCall call = {};
  call.rows = count;
  call.input = input;
  call.input_stride = input_stride;
  int free = 0;
  if (layers[0].int8) {
    auto* const words = reinterpret_cast<uint32_t*>(scratch->values[0]);
    kernels.quantise(layers[0], input, input_stride, count, words, word_stride);
    call.input = words;
    call.input_stride = word_stride;
    free = 1;
  }
  for (int i = 0; i < layer_count; ++i) {
    call.layer = &layers[i];
    const bool last = i + 1 == layer_count;
    call.next = !last && layers[i + 1].int8 ? &layers[i + 1] : nullptr;
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

// Ids of samples [samples, columns of the tables listed] -> their rows.
void Scorer::find(const Ids& ids, int64_t samples, const TableList& listed, const BagRows& found) {
  const int32_t* places = ids.ids;
  if (found.places) {
    known.find(ids.ids, samples, listed.tables, listed.count, columns, found.places);
    places = found.places;
  }
  if (has_bags) {
    rows.find_bags(places, ids.weights, samples, listed.tables, listed.count, columns, found);
  } else {
    rows.find(places, samples, listed.tables, listed.count, found.rows);
  }
}

// Rows of samples [first, first + samples) of what was found for `ids`, those of a block ->
// vectors, each in the slot of its table.
void Scorer::gather(const BagRows& found, const Ids& ids, int64_t first, int64_t samples,
                    const TableList& listed, float* vectors) const {
  GatherCall call = {};
  call.row_type = row_type;
  call.samples = samples;
  call.tables = listed.count;
  call.width = width;
  call.stride = tables * width;
  call.tables_listed = listed.tables;
  call.scales = table_scales;
  call.output = vectors;
  if (has_bags) {
    call.rows = found.rows;
    call.starts = found.starts + first * listed.count;
    call.weights = ids.weights ? found.weights : nullptr;
    call.pooling = pooling;
  } else {
    call.rows = found.rows + first * listed.count;
  }
  kernels.gather(call);
  if (known.adds()) {
    const int64_t before = first * listed.columns;
    known.add_initial(ids.ids + before, found.places + before,
                      ids.weights ? ids.weights + before : nullptr, samples, listed.tables,
                      listed.count, columns, pooling, vectors);
  }
}

// Vectors [samples, tables, width] and the bottom MLP's outputs -> rows of the interaction, where
// that has no products.
void Scorer::combine(const float* block_bottom, const float* vectors, int64_t samples,
                     float* output) const {
  const size_t bytes = static_cast<size_t>(width) * sizeof(float);
  for (int64_t i = 0; i < samples; ++i) {
    const float* const own = vectors + i * tables * width;
    float* const to = output + i * interaction_width;
    memcpy(to, block_bottom + i * width, bytes);
    if (interaction == SCORER_CONCAT) {
      memcpy(to + width, own, static_cast<size_t>(tables) * bytes);
      continue;
    }
    for (int64_t table = 0; table < tables; ++table) {
      for (int64_t j = 0; j < width; ++j) to[j] += own[table * width + j];
    }
  }
}

// Cross layers over the interaction of a block, into `crossed`: x = x0 * (W V x + b) + x.
void Scorer::run_cross(int64_t count, Scratch* scratch, ThreadPool* helpers, bool split) const {
  const float* const first = scratch->interaction;
  const float* values = first;
  for (int i = 0; i < cross.count; i += 2) {
    run_layers(cross.layers + i, 2, values, interaction_width, count, scratch->factor,
               interaction_width, scratch, helpers, split);
    for (int64_t j = 0; j < count * interaction_width; ++j) {
      scratch->crossed[j] = first[j] * scratch->factor[j] + values[j];
    }
    values = scratch->crossed;
  }
}

// Rows and interaction of samples [first, first + count) of a block with these ids, with vectors in
// `own` memory.
bool Scorer::interact(const Request& request, const Ids& ids, int64_t first, int64_t count,
                      const Scratch& block, Scratch* own) const {
  const User* const user = request.user;
  if (user) {
    for (int64_t i = 0; i < user->listed.count; ++i) {
      const int64_t table = user->listed.tables[i];
      for (int64_t sample = 0; sample < count && sample < kGathered; ++sample) {
        memcpy(own->vectors + (sample * tables + table) * width, user->vectors + table * width,
               static_cast<size_t>(width) * sizeof(float));
      }
    }
  }
  for (const int64_t end = first + count; first < end; first += kGathered) {
    const int64_t samples = end - first < kGathered ? end - first : kGathered;
    gather(block.found, ids, first, samples, request.listed, own->vectors);
    if (interaction != SCORER_DOT) {
      combine(block.bottom + first * width, own->vectors, samples,
              block.interaction + first * interaction_width);
      continue;
    }
    const InteractGroup groups[] = {{block.bottom + first * width, nullptr, 1},
                                    {own->vectors, nullptr, tables}};
    const InteractBatch batch = {INTERACT_FLOAT32, 2, groups, width};
    if (interact_cpu_forward(interact_level(level), &batch, 0, samples,
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
  const int64_t before = first * request.listed.columns;
  const Ids ids = {request.ids.ids + before,
                   request.ids.weights ? request.ids.weights + before : nullptr};
  find(ids, count, request.listed, scratch->found);
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
    if (!own || !interact(request, ids, begin, end - begin, *scratch, own)) good = false;
    if (own && own != scratch) scratches.put(own);
  };
  run_parts(helpers, parts, work);
  if (good) {
    if (cross.count) run_cross(count, scratch, helpers, split);
    run_mlp(top, cross.count ? scratch->crossed : scratch->interaction, interaction_width, count,
            request.logits + first, 1, scratch, helpers, split);
  }
  scratches.put(scratch);
  return good;
}

bool Scorer::score(const Request& request) {
  if (request.batch == 0) return true;
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
  return good;
}

bool Scorer::compute_user(const float* dense, const Ids& ids, const User& user) {
  Scratch* const scratch = take_scratch();
  if (!scratch) return false;
  run_mlp(bottom, dense, num_dense, 1, user.bottom, width, scratch, nullptr, false);
  find(ids, 1, user.listed, scratch->found);
  gather(scratch->found, ids, 0, 1, user.listed, user.vectors);
  scratches.put(scratch);
  return true;
}
