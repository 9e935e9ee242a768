// The rows of all tables: the first in memory, the others in a mapped file. It checks no ids.
#pragma once

#include <atomic>

#include "kernels.h"
#include "memory.h"
#include "scorer.h"
#include "threads.h"

// The rows of the bags of some samples: bag i has the rows starts[i] to starts[i + 1] - 1. Where
// ids are looked up, `places` are those of their rows within their tables.
struct BagRows {
  const char** rows;  // [ids]
  float* weights;     // [ids], or NULL
  int64_t* starts;    // [bags + 1]
  int32_t* places;    // NULL, or [samples, columns]
};

class Rows {
 public:
  Rows() = default;
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;
  ~Rows();

  // Copies the hot rows to memory; returns false if that runs out.
  bool open(const ScorerModel& model, const int64_t* first_keys, ThreadPool* pool);

  // Finds the rows of `samples` samples: ids [samples, count] of the tables listed -> addresses.
  // Here and below, the ids are places of rows within their tables where only known ids have one.
  void find(const int32_t* ids, int64_t samples, const int64_t* tables, int64_t count,
            const char** addresses);

  // Finds the rows of bags: ids [samples, columns of the tables listed], of which those of -1 have
  // no row, and their weights or NULL -> the rows of each bag.
  void find_bags(const int32_t* ids, const float* weights, int64_t samples, const int64_t* tables,
                 int64_t count, const int64_t* columns, const BagRows& found);

  int64_t row_bytes() const { return row_bytes_; }
  void lookups(int64_t* hot, int64_t* cold) const {
    *hot = hot_lookups_;
    *cold = cold_lookups_;
  }

 private:
  int64_t position(int64_t key) const;
  bool disk_is_read();
  void read_ahead(const char* const* addresses, int64_t count) const;
  void count_lookups(const char* const* addresses, int64_t all, int64_t hot);
  void prefetch_position(int64_t key) const;

  const char* mapped_ = nullptr;
  const char* hot_ = nullptr;
  const int64_t* first_keys_ = nullptr;
  int64_t row_bytes_ = 0, hot_rows_ = 0;
  const void* positions_ = nullptr;
  int32_t position_bytes_ = 0;
  Memory memory_;
  std::atomic<int64_t> hot_lookups_{0}, cold_lookups_{0};
  std::atomic<int64_t> blocks_to_ask_for_{0};
  int this_process_ = -1;  // a descriptor, if there are cold rows
};
