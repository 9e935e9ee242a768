// Builds and reads the index of known ids, and computes the initial values of unknown ones.

#include "known_ids.h"

namespace {

constexpr int64_t kIdsPerLine = 5;  // on average
constexpr int64_t kAhead = 16;      // lines asked for before they are needed

// SplitMix64, as dlrm/embedding/fused_table.py has it.
constexpr uint64_t kGamma = 0x9e3779b97f4a7c15u;

uint64_t word_of(uint64_t state) {
  state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
  state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
  return state ^ (state >> 31);
}

// The finalizer of MurmurHash3: ids that follow any rule are spread over all lines.
uint32_t mixed(uint32_t id) {
  id = (id ^ (id >> 16)) * 0x85ebca6bu;
  id = (id ^ (id >> 13)) * 0xc2b2ae35u;
  return id ^ (id >> 16);
}

}  // namespace

KnownIds::Line* KnownIds::Table::home(int32_t id) const {
  const uint64_t hash = mixed(static_cast<uint32_t>(id));
  return lines + (hash * static_cast<uint64_t>(count) >> 32);
}

int32_t KnownIds::Table::place(int32_t id) const {
  const uint32_t wanted = static_cast<uint32_t>(id) + 1;
  for (Line* line = home(id);; line = next(line)) {
    int32_t found = 0;
    for (int i = 0; i < kIdsOfLine; ++i) found |= line->ids[i] == wanted ? line->places[i] : 0;
    if (found != 0 || line->ids[kIdsOfLine - 1] == 0) return found;
  }
}

void KnownIds::Table::insert(int32_t id, int32_t place) const {
  for (Line* line = home(id);; line = next(line)) {
    for (int i = 0; i < kIdsOfLine; ++i) {
      if (line->ids[i] != 0) continue;
      line->ids[i] = static_cast<uint32_t>(id) + 1;
      line->places[i] = place;
      return;
    }
  }
}

bool KnownIds::open(const ScorerModel& model, ThreadPool* pool) {
  if (!model.known_counts) return true;
  const auto lines_of = [&](int64_t table) { return model.known_counts[table] / kIdsPerLine + 1; };
  int64_t lines = 0;
  for (int64_t table = 0; table < model.tables; ++table) lines += lines_of(table);
  const int64_t bytes = Memory::needed<Table>(model.tables) + Memory::needed<Line>(lines);
  if (!memory_.allocate(bytes)) return false;
  Table* const tables = memory_.take<Table>(model.tables);
  Line* next = memory_.take<Line>(lines);
  int64_t first_key = 0;
  for (int64_t table = 0; table < model.tables; ++table) {
    const float bound = model.initial_bounds ? model.initial_bounds[table] : 0.0f;
    tables[table] = {next, lines_of(table), first_key, bound};
    next += tables[table].count;
    first_key += model.vocab_sizes[table];
  }
  tables_ = tables;
  all_tables_ = model.tables;
  width_ = model.width;
  adds_ = model.initial_bounds;
  first_state_ = model.initial_seed * kGamma * kGamma;
  const struct {
    const ScorerModel* model;
    const Table* tables;
  } build = {&model, tables};
  pool->run(
      model.tables,
      [](const void* context, int64_t table) {
        const auto& job = *static_cast<const decltype(build)*>(context);
        const int32_t* ids = job.model->known_ids;
        for (int64_t i = 0; i < table; ++i) ids += job.model->known_counts[i];
        const int64_t count = job.model->known_counts[table];
        for (int64_t i = 0; i < count; ++i) {
          if (i + kAhead < count) __builtin_prefetch(job.tables[table].home(ids[i + kAhead]), 1);
          job.tables[table].insert(ids[i], static_cast<int32_t>(i + 1));
        }
      },
      &build);
  return true;
}

void KnownIds::find(const int32_t* ids, int64_t samples, const int64_t* tables, int64_t count,
                    const int64_t* columns, int32_t* places) const {
  int64_t stride = 0, column = 0;
  for (int64_t i = 0; i < count; ++i) stride += columns[tables[i]];
  for (int64_t i = 0; i < count; ++i) {
    const Table table = tables_[tables[i]];
    for (const int64_t end = column + columns[tables[i]]; column < end; ++column) {
      for (int64_t sample = 0; sample < samples; ++sample) {
        const int64_t at = sample * stride + column;
        if (sample + kAhead < samples) __builtin_prefetch(table.home(ids[at + kAhead * stride]));
        places[at] = ids[at] < 0 ? -1 : table.place(ids[at]);
      }
    }
  }
}

void KnownIds::add_initial(const int32_t* ids, const int32_t* places, const float* weights,
                           int64_t samples, const int64_t* tables, int64_t count,
                           const int64_t* columns, const int32_t* pooling, float* vectors) const {
  for (int64_t sample = 0; sample < samples; ++sample, vectors += all_tables_ * width_) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t table = tables[i], width = columns[table];
      for (int64_t column = 0; column < width; ++column) {
        if (places[column] != 0) continue;
        float factor = weights ? weights[column] : 1.0f;
        if (pooling[table] == SCORER_BAG_MEAN) {
          int64_t in_bag = 0;
          for (int64_t j = 0; j < width; ++j) in_bag += places[j] >= 0;
          factor /= static_cast<float>(in_bag);
        }
        add_values(tables_[table], ids[column], factor, vectors + table * width_);
      }
      ids += width;
      places += width;
      if (weights) weights += width;
    }
  }
}

void KnownIds::add_values(const Table& table, int32_t id, float factor, float* to) const {
  const auto first = static_cast<uint64_t>((table.first_key + id) * width_);
  for (int64_t j = 0; j < width_; ++j) {
    const uint64_t state = first_state_ + (first + static_cast<uint64_t>(j) + 1) * kGamma;
    // The upper 24 bits fill a float exactly.
    const auto top = static_cast<float>(static_cast<int32_t>(word_of(state) >> 40));
    to[j] += (top * 0x1p-23f - 1.0f) * table.bound * factor;
  }
}
