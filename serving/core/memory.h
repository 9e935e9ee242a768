// Zeroed memory from the operating system, in huge pages where it is large enough for them.
//
// It knows nothing of what is kept there.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#include "kernels.h"

constexpr int64_t kAlignment = 64;

class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    if (begin_) munmap(begin_, static_cast<size_t>(bytes_));
  }

  bool allocate(int64_t bytes) {
    if (bytes == 0) return true;
    constexpr int64_t kHugePage = 2 << 20;
    bytes_ = bytes >= kHugePage ? rounded_up(bytes, kHugePage) + kHugePage : bytes;
    void* const found = mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) return false;
    begin_ = static_cast<char*>(found);
    if (bytes >= kHugePage) {
      // Only whole huge pages count, so the values begin at one.
      const int64_t before =
          -static_cast<int64_t>(reinterpret_cast<uintptr_t>(begin_)) & (kHugePage - 1);
      next_ = before;
      madvise(begin_ + before, static_cast<size_t>(bytes_ - before), MADV_HUGEPAGE);
    }
    return true;
  }

  // The next `count` values, at the start of a cache line.
  template <typename T>
  T* take(int64_t count) {
    T* const taken = reinterpret_cast<T*>(begin_ + next_);
    next_ += needed<T>(count);
    return taken;
  }

  template <typename T>
  static int64_t needed(int64_t count) {
    return rounded_up(count * static_cast<int64_t>(sizeof(T)), kAlignment);
  }

 private:
  char* begin_ = nullptr;
  int64_t bytes_ = 0, next_ = 0;
};
