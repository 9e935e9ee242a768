#include "rows.h"

#include <string.h>
#include <unistd.h>

namespace {

constexpr int64_t kPiece = 8 << 20;  // of the hot rows, that one thread copies at a time
constexpr int64_t kAhead = 32;       // positions asked for before they are needed

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

struct Copy {
  char* to;
  const char* from;
  int64_t bytes;
  bool mapped;

  // Copies one piece. The pages of the mapping are dropped: the rows would count twice.
  void piece(int64_t part) const {
    const int64_t begin = part * kPiece;
    const int64_t count = bytes - begin < kPiece ? bytes - begin : kPiece;
    const char* const source = from + begin;
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t first = reinterpret_cast<uintptr_t>(source) & ~(page - 1);
    const auto length = static_cast<size_t>(reinterpret_cast<uintptr_t>(source + count) - first);
    void* const pages = reinterpret_cast<void*>(first);
    // Where the kernel does not know the advice, the copy reads the pages one by one.
    if (mapped) madvise(pages, length, MADV_POPULATE_READ);
    memcpy(to + begin, source, static_cast<size_t>(count));
    if (mapped) madvise(pages, length, MADV_DONTNEED);
  }
};

int64_t bytes_of_row(int32_t type, int64_t width) {
  switch (type) {
    case SCORER_FLOAT32:
      return width * 4;
    case SCORER_FLOAT16:
      return width * 2;
    case SCORER_INT8:
      return width;
    default:
      return width + 8;
  }
}

}  // namespace

bool Rows::open(const ScorerModel& model, const int64_t* first_keys, ThreadPool* pool) {
  row_bytes_ = bytes_of_row(model.row_type, model.width);
  mapped_ = static_cast<const char*>(model.rows);
  first_keys_ = first_keys;
  hot_rows_ = model.hot_rows;
  positions_ = model.positions;
  position_bytes_ = model.position_bytes;
  const int64_t bytes = hot_rows_ * row_bytes_;
  if (!memory_.allocate(bytes)) return false;
  char* const hot = memory_.take<char>(bytes);
  hot_ = hot;
  const Copy copy = {hot, mapped_, bytes, model.rows_mapped != 0};
  pool->run(
      (bytes + kPiece - 1) / kPiece,
      [](const void* context, int64_t part) { static_cast<const Copy*>(context)->piece(part); },
      &copy);
  const int64_t rows = first_keys[model.tables];
  if (model.rows_mapped && hot_rows_ < rows) {
    // A cold row is read alone; what stands around it is not wanted next.
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t first = reinterpret_cast<uintptr_t>(mapped_ + bytes) & ~(page - 1);
    const uintptr_t end = reinterpret_cast<uintptr_t>(mapped_ + rows * row_bytes_);
    madvise(reinterpret_cast<void*>(first), end - first, MADV_RANDOM);
  }
  return true;
}

int64_t Rows::position(int64_t key) const {
  if (!positions_) return key;
  return position_bytes_ == 4 ? static_cast<const int32_t*>(positions_)[key]
                              : static_cast<const int64_t*>(positions_)[key];
}

void Rows::prefetch_position(int64_t key) const {
  __builtin_prefetch(static_cast<const char*>(positions_) + key * position_bytes_);
}

void Rows::find(const int32_t* ids, int64_t samples, const int64_t* tables, int64_t count,
                const char** addresses) {
  int64_t hot = 0;
  const int64_t all = samples * count;
  int64_t table = 0, ahead = kAhead % (count ? count : 1);
  for (int64_t i = 0; i < all; ++i) {
    if (positions_ && i + kAhead < all) {
      prefetch_position(first_keys_[tables[ahead]] + ids[i + kAhead]);
      if (++ahead == count) ahead = 0;
    }
    const int64_t row = position(first_keys_[tables[table]] + ids[i]);
    const bool is_hot = row < hot_rows_;
    addresses[i] = (is_hot ? hot_ : mapped_) + row * row_bytes_;
    hot += is_hot;
    if (++table == count) table = 0;
  }
  hot_lookups_.fetch_add(hot, std::memory_order_relaxed);
  cold_lookups_.fetch_add(all - hot, std::memory_order_relaxed);
}
