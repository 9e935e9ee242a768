// Looks for inputs that no logit can be computed of. It knows nothing of how they are computed.

#include "scorer_state.h"

int Scorer::check_dense(const float* dense, int64_t batch, ScorerFault* fault) const {
  const int64_t count = batch * num_dense;
  for (int64_t i = 0; i < count; ++i) {
    // A difference with itself is not zero if the value is infinite or not a number.
    if (dense[i] - dense[i] != 0) {
      *fault = {i / num_dense, i % num_dense, 0};
      return SCORER_BAD_DENSE;
    }
  }
  return SCORER_OK;
}

int Scorer::check_ids(const Ids& ids, const TableList& listed, int64_t batch,
                      ScorerFault* fault) const {
  if (has_bags) return check_bags(ids, listed, batch, fault);
  const int32_t* next = ids.ids;
  for (int64_t sample = 0; sample < batch; ++sample) {
    for (int64_t i = 0; i < listed.count; ++i, ++next) {
      // A negative id is a large one without its sign.
      if (static_cast<uint32_t>(*next) >= vocab_sizes[listed.tables[i]]) {
        *fault = {sample, listed.tables[i], *next};
        return SCORER_BAD_ID;
      }
    }
  }
  return SCORER_OK;
}

int Scorer::check_bags(const Ids& ids, const TableList& listed, int64_t batch,
                       ScorerFault* fault) const {
  const int32_t* next = ids.ids;
  const float* weight = ids.weights;
  for (int64_t sample = 0; sample < batch; ++sample) {
    for (int64_t i = 0; i < listed.count; ++i) {
      const int64_t table = listed.tables[i];
      for (const int32_t* const end = next + columns[table]; next < end; ++next) {
        const float factor = weight ? *weight++ : 0.0f;
        if (*next == -1 && pooling[table] != SCORER_ONE_ID) continue;
        *fault = {sample, table, *next};
        if (static_cast<uint32_t>(*next) >= vocab_sizes[table]) return SCORER_BAD_ID;
        if (factor - factor != 0) return SCORER_BAD_WEIGHT;
      }
    }
  }
  return SCORER_OK;
}
