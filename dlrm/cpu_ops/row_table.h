// Rows of embedding tables by key, for keys that come and go. A hash table of keys says which row
// each has; rows lie in chunks of memory that never move. Independent of TensorFlow.
#ifndef ROW_TABLE_H
#define ROW_TABLE_H

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

class RowTable {
 public:
  static constexpr int32_t kNone = -1;

  // What is known of a key: its row, or kNone if it has none yet; the number of steps whose batch
  // held it, since it was last forgotten; and the last of these steps.
  struct Entry {
    int64_t key;
    int32_t row, seen, last;
  };

  // Rows have `width` values. A key gets its row in the first step after `admit_after` others that
  // held it; and it is forgotten, with its row, after `evict_after` steps without it, or never if
  // that is 0. Rows [0, shared) are those of the keys without one.
  RowTable(int64_t width, int32_t shared, int32_t admit_after, int32_t evict_after)
      : width_(width), shared_(shared), admit_after_(admit_after), evict_after_(evict_after) {
    while ((int64_t{4} << shift_) * width_ < kChunkBytes && shift_ < 16) ++shift_;
    clear();
  }

  void clear() {
    entries_.assign(kFirstEntries, Entry{kEmpty, kNone, 0, 0});
    chunks_.clear();
    owned_.clear();
    unused_.clear();
    used_ = rows_ = 0;
    cursor_ = 0;
    for (int32_t row = 0; row < shared_; ++row) new_row();
  }

  int64_t width() const { return width_; }
  int64_t rows() const { return rows_; }     // that were ever in use at the same time
  int64_t entries() const { return used_; }  // keys, with and without a row
  int shift() const { return shift_; }       // 2^shift rows in a chunk
  float* const* chunks() const { return chunks_.data(); }
  float* row(int32_t row) const {
    return chunks_[static_cast<size_t>(row >> shift_)] + (row & ((1 << shift_) - 1)) * width_;
  }

  // Counts that a step's batch holds the key, however often in that step. Returns its row, which
  // is new if `fresh` becomes true and then has no values yet; or kNone.
  int32_t sight(int64_t key, int32_t step, bool* fresh) {
    if (4 * (used_ + 1) > 3 * static_cast<int64_t>(entries_.size())) grow();
    Entry& entry = entries_[place_of(key)];
    if (entry.key == kEmpty) {
      entry = {key, kNone, 0, 0};
      ++used_;
    } else if (is_stale(entry, step)) {
      release(entry);
      entry.seen = 0;
    }
    if (entry.seen == 0 || entry.last != step) {
      ++entry.seen;
      entry.last = step;
    }
    *fresh = entry.row == kNone && entry.seen > admit_after_;
    if (*fresh) entry.row = new_row();
    return entry.row;
  }

  // The row of a key as of a step, or kNone.
  int32_t find(int64_t key, int32_t step) const {
    const Entry& entry = entries_[place_of(key)];
    return entry.key == kEmpty || is_stale(entry, step) ? kNone : entry.row;
  }

  // Takes over what was known of a key. Returns its row, if it is to have one.
  int32_t put(int64_t key, int32_t seen, int32_t last, bool has_row) {
    if (4 * (used_ + 1) > 3 * static_cast<int64_t>(entries_.size())) grow();
    Entry& entry = entries_[place_of(key)];
    if (entry.key == kEmpty) {
      entry = {key, kNone, seen, last};
      ++used_;
    }
    if (has_row && entry.row == kNone) entry.row = new_row();
    return entry.row;
  }

  // Frees what is forgotten, in the part of the table that is due: all of it within `evict_after`
  // steps. When a key is forgotten does not depend on that: see `sight` and `find`.
  void sweep(int32_t step) {
    if (evict_after_ == 0) return;
    const int64_t size = static_cast<int64_t>(entries_.size());
    for (int64_t left = size / evict_after_ + 1; left > 0; --left) {
      Entry& entry = entries_[static_cast<size_t>(cursor_)];
      if (entry.key != kEmpty && is_stale(entry, step)) {
        release(entry);
        erase(cursor_);  // another entry may have moved here: it is next
      } else {
        cursor_ = (cursor_ + 1) & (size - 1);
      }
    }
  }

  template <typename Visit>
  void each(const Visit& visit) const {
    for (const Entry& entry : entries_) {
      if (entry.key != kEmpty) visit(entry);
    }
  }

  void prefetch(int64_t key) const { __builtin_prefetch(&entries_[home_of(key)], 1); }

 private:
  static constexpr int64_t kEmpty = -1, kChunkBytes = 1 << 20;
  static constexpr size_t kFirstEntries = 1024;

  bool is_stale(const Entry& entry, int32_t step) const {
    return evict_after_ != 0 && entry.last < step - evict_after_;
  }

  size_t home_of(int64_t key) const {
    const uint64_t mixed = static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio
    return (mixed >> 32) & (entries_.size() - 1);
  }

  // Where the key is, or the empty place where it belongs.
  size_t place_of(int64_t key) const {
    size_t place = home_of(key);
    while (entries_[place].key != key && entries_[place].key != kEmpty) {
      place = (place + 1) & (entries_.size() - 1);
    }
    return place;
  }

  int32_t new_row() {
    if (!unused_.empty()) {
      const int32_t row = unused_.back();
      unused_.pop_back();
      return row;
    }
    if (rows_ >> shift_ == static_cast<int64_t>(chunks_.size())) {
      owned_.emplace_back(new float[static_cast<size_t>(width_ << shift_)]);
      chunks_.push_back(owned_.back().get());
    }
    return static_cast<int32_t>(rows_++);
  }

  void release(Entry& entry) {
    if (entry.row != kNone) unused_.push_back(entry.row);
    entry.row = kNone;
  }

  // Empties a place, and moves those behind it which it would hide from their search.
  void erase(int64_t hole) {
    const size_t mask = entries_.size() - 1;
    size_t place = static_cast<size_t>(hole), next = place;
    for (;;) {
      next = (next + 1) & mask;
      if (entries_[next].key == kEmpty) break;
      const size_t home = home_of(entries_[next].key);
      if (((next - home) & mask) < ((next - place) & mask)) continue;  // its search begins behind
      entries_[place] = entries_[next];
      place = next;
    }
    entries_[place] = {kEmpty, kNone, 0, 0};
    --used_;
  }

  void grow() {
    std::vector<Entry> before(2 * entries_.size(), Entry{kEmpty, kNone, 0, 0});
    before.swap(entries_);
    for (const Entry& entry : before) {
      if (entry.key != kEmpty) entries_[place_of(entry.key)] = entry;
    }
    cursor_ = 0;
  }

  const int64_t width_;
  const int32_t shared_, admit_after_, evict_after_;
  int shift_ = 0;
  std::vector<Entry> entries_;  // a power of two, at least a quarter of it empty
  std::vector<float*> chunks_;
  std::vector<std::unique_ptr<float[]>> owned_;
  std::vector<int32_t> unused_;
  int64_t used_ = 0, rows_ = 0, cursor_ = 0;
};

#endif
