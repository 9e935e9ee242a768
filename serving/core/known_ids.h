// The rows of ids where only those that occurred in training have one of their own.
//
// Row 0 of such a table is that of all other ids, row i + 1 that of the i-th known id. An index in
// memory finds it. What there was to choose from, by bytes for an id and by lines that a lookup
// reads from memory, with n ids in a table:
//
//   ascending ids, halved            4      log2(n) less the first ten or so, one after the other
//   ascending ids under a tree       4.25   1 to 3, one after the other: five levels at 1 M ids
//   minimal perfect hash             4.4    2, one after the other, with rows in its own order
//   hashed lines of 8 ids and rows  12.8    1.03; 1.2 for an id that is not there
//
// The last it is: all lines of a batch are asked for at once, as the rows are, which lie beside
// them and take 16 to 512 bytes. Five ids on average share a line; one that is full sends its ids
// to the next.
//
// It knows ids and places of rows, neither what a row holds nor where it lies.
#pragma once

#include <stdint.h>

#include "memory.h"
#include "scorer.h"
#include "threads.h"

class KnownIds {
 public:
  KnownIds() = default;
  KnownIds(const KnownIds&) = delete;
  KnownIds& operator=(const KnownIds&) = delete;

  // Makes the index if the model has one. Returns false if memory runs out.
  bool open(const ScorerModel& model, ThreadPool* pool);

  // Whether ids must be looked up at all, and whether those without a row have values to be added.
  bool any() const { return tables_ != nullptr; }
  bool adds() const { return adds_; }

  // ids [samples, columns of the tables listed] -> the row of each within its table; -1 stays.
  void find(const int32_t* ids, int64_t samples, const int64_t* tables, int64_t count,
            const int64_t* columns, int32_t* places) const;

  // Adds the initial values of each id without a row to its table's vector, in which row 0, a row
  // of zeros, stands for it: vectors [samples, all tables, width]. `pooling` is that of each table.
  void add_initial(const int32_t* ids, const int32_t* places, const float* weights, int64_t samples,
                   const int64_t* tables, int64_t count, const int64_t* columns,
                   const int32_t* pooling, float* vectors) const;

 private:
  static constexpr int kIdsOfLine = 8;

  // Filled from the front. An id is stored as id + 1, so that zeroed memory is empty.
  struct Line {
    uint32_t ids[kIdsOfLine];
    int32_t places[kIdsOfLine];
  };

  struct Table {
    Line* lines;
    int64_t count;
    int64_t first_key;  // of training, where every id has a key
    float bound;

    Line* home(int32_t id) const;
    Line* next(Line* line) const { return line + 1 == lines + count ? lines : line + 1; }
    int32_t place(int32_t id) const;
    void insert(int32_t id, int32_t place) const;
  };

  void add_values(const Table& table, int32_t id, float factor, float* to) const;

  Memory memory_;
  const Table* tables_ = nullptr;
  int64_t all_tables_ = 0, width_ = 0;
  bool adds_ = false;
  uint64_t first_state_ = 0;
};
