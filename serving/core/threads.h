// A few threads that share the parts of one job.
//
// The calling thread works too and never waits for one that has not begun. One job at a time: a
// caller that finds the threads busy does its work alone, as the cores are busy as well.
#pragma once

#include <pthread.h>
#include <stdint.h>

#include <atomic>

class ThreadPool {
 public:
  typedef void Work(const void* context, int64_t part);

  // `threads` includes the calling one; there are fewer where the system gives no more.
  explicit ThreadPool(int threads);
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool();

  int threads() const { return workers_ + 1; }

  bool try_acquire() { return !busy_.exchange(true, std::memory_order_acquire); }
  void release() { busy_.store(false, std::memory_order_release); }

  // Calls `work` for each part from 0 to count - 1; whoever calls this has acquired the pool.
  void run(int64_t count, Work* work, const void* context);

 private:
  static void* start(void* pool);
  void serve();
  bool do_one();
  bool idle() const;

  // Epoch, number of parts and next part of the current job in one word: whoever takes a part by
  // changing it knows that the job has not ended, and so that work and context are its own.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<int64_t> done_{0};
  std::atomic<bool> busy_{false};
  std::atomic<bool> ending_{false};
  std::atomic<int> sleeping_{0};
  Work* work_ = nullptr;
  const void* context_ = nullptr;
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t awake_ = PTHREAD_COND_INITIALIZER;
  enum { kMostWorkers = 255 };
  pthread_t handles_[kMostWorkers];
  int workers_ = 0;
};
