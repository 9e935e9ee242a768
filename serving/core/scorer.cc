// The C interface of scorer.h: checks the inputs of a call and has them scored.
//
// It knows neither kernels nor layouts; nothing is computed here.

#include "scorer.h"

#include <new>

#include "scorer_state.h"

extern "C" {

int64_t scorer_model_bytes(void) { return sizeof(ScorerModel); }

Scorer* scorer_open(const ScorerModel* model, int level, int threads) {
  Scorer* const scorer = new (std::nothrow) Scorer(*model, level, threads);
  if (scorer && !scorer->open(*model)) {
    delete scorer;
    return nullptr;
  }
  return scorer;
}

void scorer_close(Scorer* scorer) { delete scorer; }

int scorer_score(Scorer* scorer, const float* dense, const int32_t* ids, const float* weights,
                 int64_t batch, float* logits, ScorerFault* fault) {
  if (const int bad = scorer->check_dense(dense, batch, fault)) return bad;
  const Request request = {dense, {ids, weights}, scorer->all_tables, batch, logits, nullptr};
  if (const int bad = scorer->check_ids(request.ids, request.listed, batch, fault)) return bad;
  return scorer->score(request) ? SCORER_OK : SCORER_NO_MEMORY;
}

int scorer_candidates(Scorer* scorer, const float* dense, const int32_t* user_tables,
                      int64_t user_count, const int32_t* user_ids, const float* user_weights,
                      const int32_t* item_ids, const float* item_weights, int64_t batch,
                      float* logits, ScorerFault* fault) {
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
  TableList of_user = {users, user_count, 0}, of_items = {items, item_count, 0};
  for (int64_t i = 0; i < user_count; ++i) {
    users[i] = user_tables[i];
    of_user.columns += scorer->columns[users[i]];
  }
  of_items.columns = scorer->all_tables.columns - of_user.columns;
  for (int64_t table = 0, item = 0; table < scorer->tables; ++table) {
    bool is_user = false;
    for (int64_t i = 0; i < user_count; ++i) is_user |= users[i] == table;
    if (!is_user) items[item++] = table;
  }
  if (const int bad = scorer->check_dense(dense, 1, fault)) return bad;
  const Ids ids = {user_ids, user_weights};
  if (const int bad = scorer->check_ids(ids, of_user, 1, fault)) {
    fault->sample = -1;
    return bad;
  }
  const User user = {bottom, vectors, of_user};
  const Request request = {nullptr, {item_ids, item_weights}, of_items, batch, logits, &user};
  if (const int bad = scorer->check_ids(request.ids, of_items, batch, fault)) return bad;
  const bool good = scorer->compute_user(dense, ids, user) && scorer->score(request);
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
