// The rows of all tables: the first in memory, the others in a mapped file. It checks no ids.
#pragma once

#include <atomic>

#include "kernels.h"
#include "memory.h"
#include "scorer.h"
#include "threads.h"

class Rows {
 public:
  Rows() = default;
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;
  ~Rows();

  // Copies the hot rows to memory; returns false if that runs out.
  bool open(const ScorerModel& model, const int64_t* first_keys, ThreadPool* pool);

  // Finds the rows of `samples` samples: ids [samples, count] of the tables listed -> addresses.
  void find(const int32_t* ids, int64_t samples, const int64_t* tables, int64_t count,
            const char** addresses);

  int64_t row_bytes() const { return row_bytes_; }
  void lookups(int64_t* hot, int64_t* cold) const {
    *hot = hot_lookups_;
    *cold = cold_lookups_;
  }

 private:
  int64_t position(int64_t key) const;
  bool disk_is_read();
  void read_ahead(const char* const* addresses, int64_t count) const;
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
