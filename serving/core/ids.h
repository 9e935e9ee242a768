// Ids from what clients have instead: raw values, which a dictionary maps, and packed words.
//
// It knows neither rows nor layers. (scorer_unpack of scorer.h is part of it.)
#pragma once

#include "memory.h"
#include "scorer.h"

class Dictionary {
 public:
  // Bytes of `memory` that open takes.
  static int64_t bytes(int64_t tables) {
    return Memory::needed<int64_t>(tables) + Memory::needed<int64_t>(tables + 1) +
           Memory::needed<bool>(tables);
  }

  // `tables` [columns] is the table of each column of ids. It must outlive this.
  void open(const ScorerModel& model, const int64_t* tables, int64_t columns, Memory& memory);

  // As scorer_look_up.
  int look_up(const int64_t* values, int64_t batch, int32_t* ids, ScorerFault* fault) const;

 private:
  int64_t columns_ = 0;
  const int64_t* tables_ = nullptr;  // [columns]
  const bool* in_bag_ = nullptr;     // [tables]
  const int64_t* values_ = nullptr;
  const int32_t* ids_ = nullptr;
  const int64_t* starts_ = nullptr;  // [tables + 1]: where the values of a table begin
  const int64_t* moduli_ = nullptr;  // [tables]
  bool missing_is_value_ = false;
};
