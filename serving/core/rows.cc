// Copies the hot rows, and finds rows by key: hot ones in memory, cold ones in the mapped file.
//
// It knows addresses and numbers of bytes, not how a row is decoded.

#include "rows.h"

#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

namespace {

constexpr int64_t kPiece = 8 << 20;  // of the hot rows, that one thread copies at a time
constexpr int64_t kAhead = 32;       // positions asked for before they are needed

constexpr int64_t kBlocksAfterFault = 64;  // whose cold rows are asked for
constexpr size_t kMostRanges = 256;

// Older headers lack what newer kernels know.
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_process_madvise
#define SYS_process_madvise 440
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
    this_process_ = static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0));
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

Rows::~Rows() {
  if (this_process_ >= 0) close(this_process_);
}

// Whether the disk had to be waited for lately, so that it is worth asking for pages ahead. Where
// the pages of the file stay in memory, to ask would take longer than to read them.
bool Rows::disk_is_read() {
  thread_local int64_t last = 0;
  struct rusage usage;
  if (getrusage(RUSAGE_THREAD, &usage) != 0) return false;
  if (usage.ru_majflt != last) {
    last = usage.ru_majflt;
    blocks_to_ask_for_ = kBlocksAfterFault;
  }
  return blocks_to_ask_for_ > 0 && blocks_to_ask_for_.fetch_sub(1) > 0;
}

// Asks for the pages of the cold rows among these, so that the disk reads them at the same time
// instead of one after the other when each is missed.
void Rows::read_ahead(const char* const* addresses, int64_t count) const {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto hot_begin = reinterpret_cast<uintptr_t>(hot_);
  const auto hot_bytes = static_cast<uintptr_t>(hot_rows_ * row_bytes_);
  struct iovec ranges[kMostRanges];
  size_t ranges_count = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto begin = reinterpret_cast<uintptr_t>(addresses[i]);
    if (begin - hot_begin >= hot_bytes) {
      const uintptr_t first = begin & ~(page - 1);
      const uintptr_t end = begin + static_cast<uintptr_t>(row_bytes_);
      ranges[ranges_count++] = {reinterpret_cast<void*>(first), end - first};
    }
    if (ranges_count == kMostRanges || (i + 1 == count && ranges_count > 0)) {
      // Many ranges in one call: the disk gets them together. A system that has no such call, or
      // does not allow it, reads the pages when they are missed.
      syscall(SYS_process_madvise, this_process_, ranges, ranges_count, MADV_WILLNEED, 0);
      ranges_count = 0;
    }
  }
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
  count_lookups(addresses, all, hot);
}

void Rows::find_bags(const int32_t* ids, const float* weights, int64_t samples,
                     const int64_t* tables, int64_t count, const int64_t* columns,
                     const BagRows& found) {
  // Keys first, where the addresses will be: positions are asked for ahead.
  int64_t all = 0;
  int64_t* start = found.starts;
  for (int64_t sample = 0; sample < samples; ++sample) {
    for (int64_t i = 0; i < count; ++i) {
      *start++ = all;
      for (int64_t column = 0; column < columns[tables[i]]; ++column, ++ids) {
        if (*ids >= 0) {
          const int64_t key = first_keys_[tables[i]] + *ids;
          found.rows[all] = reinterpret_cast<const char*>(key);
          if (weights) found.weights[all] = *weights;
          ++all;
        }
        if (weights) ++weights;
      }
    }
  }
  *start = all;
  const auto key_at = [&](int64_t i) { return reinterpret_cast<int64_t>(found.rows[i]); };
  int64_t hot = 0;
  for (int64_t i = 0; i < all; ++i) {
    if (positions_ && i + kAhead < all) prefetch_position(key_at(i + kAhead));
    const int64_t row = position(key_at(i));
    const bool is_hot = row < hot_rows_;
    found.rows[i] = (is_hot ? hot_ : mapped_) + row * row_bytes_;
    hot += is_hot;
  }
  count_lookups(found.rows, all, hot);
}

// Counts what was found, and asks for cold rows where that is worth it.
void Rows::count_lookups(const char* const* addresses, int64_t all, int64_t hot) {
  if (hot < all && this_process_ >= 0 && disk_is_read()) read_ahead(addresses, all);
  hot_lookups_.fetch_add(hot, std::memory_order_relaxed);
  cold_lookups_.fetch_add(all - hot, std::memory_order_relaxed);
}
