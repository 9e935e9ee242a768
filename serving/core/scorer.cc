// The C interface of scorer.h: checks the inputs of a call and has them scored.
//
// It knows neither kernels nor layouts; nothing is computed here.

#include "scorer.h"

#include <new>

#include "scorer_state.h"

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
  const Request request = {dense, ids, listed, scorer->tables, batch, logits, nullptr};
  return scorer->score(request) ? SCORER_OK : SCORER_NO_MEMORY;
}

int scorer_candidates(Scorer* scorer, const float* dense, const int32_t* user_tables,
                      const int32_t* user_ids, int64_t user_count, const int32_t* item_ids,
                      int64_t batch, float* logits, ScorerFault* fault) {
  const int64_t item_count = scorer->tables - user_count, width = scorer->width;
  Memory memory;
  if (!memory.allocate(Memory::needed<int64_t>(user_count) + Memory::needed<int64_t>(item_count) +
                       Memory::needed<float>(width) +
                       Memory::needed<float>(scorer->tables * width))) {
    return SCORER_NO_MEMORY;
  }
  int64_t* const users = memory.take<int64_t>(user_count);
  int64_t* const items = memory.take<int64_t>(item_count);
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

  const User user = {bottom, vectors, user_count, users};
  const Request request = {nullptr, item_ids, items, item_count, batch, logits, &user};
  const bool good = scorer->compute_user(dense, user_ids, user) && scorer->score(request);
  return good ? SCORER_OK : SCORER_NO_MEMORY;
}

int scorer_look_up(const Scorer* scorer, const int64_t* values, int64_t batch, int32_t* ids,
                   ScorerFault* fault) {
  return scorer->dictionary.look_up(values, batch, ids, fault);
}

void scorer_lookups(const Scorer* scorer, int64_t* hot, int64_t* cold) {
  scorer->rows.lookups(hot, cold);
}

}  // extern "C"
