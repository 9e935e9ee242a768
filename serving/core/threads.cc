// Threads that take the parts of a job by one atomic word and sleep only after a while without one.
//
// They know nothing of the work.

#include "threads.h"

#include <sched.h>

namespace {

constexpr int kPartBits = 24;
constexpr uint64_t kPartMask = (uint64_t{1} << kPartBits) - 1;

// About as long as the pause between two layers of a small batch, and so short that a server's
// other threads do not miss the core.
constexpr int kSpins = 2000;

uint64_t next_part(uint64_t ticket) { return ticket & kPartMask; }
uint64_t part_count(uint64_t ticket) { return ticket >> kPartBits & kPartMask; }

void pause_briefly() {
#ifdef __x86_64__
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  while (workers_ + 1 < threads && workers_ < kMostWorkers) {
    if (pthread_create(&handles_[workers_], nullptr, start, this) != 0) break;
    ++workers_;
  }
}

ThreadPool::~ThreadPool() {
  pthread_mutex_lock(&mutex_);
  ending_ = true;
  pthread_cond_broadcast(&awake_);
  pthread_mutex_unlock(&mutex_);
  for (int i = 0; i < workers_; ++i) pthread_join(handles_[i], nullptr);
}

void* ThreadPool::start(void* pool) {
  static_cast<ThreadPool*>(pool)->serve();
  return nullptr;
}

bool ThreadPool::idle() const {
  const uint64_t ticket = ticket_.load();
  return next_part(ticket) >= part_count(ticket);
}

void ThreadPool::serve() {
  while (true) {
    int spins = 0;
    while (!ending_ && spins < kSpins) {
      if (do_one()) {
        spins = 0;
      } else {
        ++spins;
        pause_briefly();
      }
    }
    pthread_mutex_lock(&mutex_);
    ++sleeping_;
    while (!ending_ && idle()) pthread_cond_wait(&awake_, &mutex_);
    --sleeping_;
    pthread_mutex_unlock(&mutex_);
    if (ending_) return;
  }
}

bool ThreadPool::do_one() {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  do {
    if (next_part(ticket) >= part_count(ticket)) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel));
  work_(context_, static_cast<int64_t>(next_part(ticket)));
  done_.fetch_add(1, std::memory_order_release);
  return true;
}

void ThreadPool::run(int64_t count, Work* work, const void* context) {
  if (count <= 1 || workers_ == 0 || count > static_cast<int64_t>(kPartMask)) {
    for (int64_t part = 0; part < count; ++part) work(context, part);
    return;
  }
  work_ = work;
  context_ = context;
  done_.store(0, std::memory_order_relaxed);
  const uint64_t epoch = (ticket_.load() >> 2 * kPartBits) + 1;
  ticket_.store(epoch << 2 * kPartBits | static_cast<uint64_t>(count) << kPartBits);
  if (sleeping_.load() > 0) {
    pthread_mutex_lock(&mutex_);
    pthread_cond_broadcast(&awake_);
    pthread_mutex_unlock(&mutex_);
  }
  while (do_one()) {
  }
  for (int spins = 0; done_.load(std::memory_order_acquire) < count; ++spins) {
    if (spins < kSpins) {
      pause_briefly();
    } else {
      sched_yield();
    }
  }
}
