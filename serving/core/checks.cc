// Looks for inputs that no logit can be computed of. It knows nothing of how they are computed.

#include "scorer_state.h"

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
