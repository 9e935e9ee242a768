// Looks ids up by binary search among the values of a table, and takes them out of packed words.
//
// It does not know whether an id has a row: whoever scores it checks that.

#include "ids.h"

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

}  // namespace

void Dictionary::open(const ScorerModel& model, const int64_t* tables, int64_t columns,
                      Memory& memory) {
  columns_ = columns;
  tables_ = tables;
  values_ = model.dictionary_values;
  ids_ = model.dictionary_ids;
  missing_is_value_ = model.missing_is_value != 0;
  int64_t* const moduli = memory.take<int64_t>(model.tables);
  int64_t* const starts = memory.take<int64_t>(model.tables + 1);
  bool* const in_bag = memory.take<bool>(model.tables);
  for (int64_t table = 0; table < model.tables; ++table) {
    if (model.moduli) moduli[table] = model.moduli[table];
    in_bag[table] = model.pooling && model.pooling[table] != SCORER_ONE_ID;
  }
  for (int64_t table = 0; values_ && table <= model.tables; ++table) {
    starts[table] = lower_bound(values_, 0, model.dictionary_count, table << 32);
  }
  in_bag_ = in_bag;
  moduli_ = moduli;
  starts_ = starts;
}

int Dictionary::look_up(const int64_t* values, int64_t batch, int32_t* ids,
                        ScorerFault* fault) const {
  for (int64_t sample = 0; sample < batch; ++sample) {
    for (int64_t column = 0; column < columns_; ++column) {
      const int64_t table = tables_[column];
      int64_t value = *values++;
      int32_t& id = *ids++;
      if (value < -1 || value >> 32 > 0) {
        *fault = {sample, table, value};
        return SCORER_BAD_VALUE;
      }
      id = value < 0 && in_bag_[table] ? -1 : 0;
      if (id < 0) continue;
      if (value < 0 && !missing_is_value_) continue;
      if (value < 0) value = 0;
      if (moduli_[table]) value %= moduli_[table];
      const int64_t wanted = table << 32 | value;
      const int64_t end = starts_[table + 1];
      const int64_t at = lower_bound(values_, starts_[table], end, wanted);
      if (at < end && values_[at] == wanted) id = ids_[at];
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
