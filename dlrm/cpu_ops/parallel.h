// Work in pieces on the threads of a TensorFlow operation.
#ifndef PARALLEL_H
#define PARALLEL_H

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "tensorflow/core/framework/op_kernel.h"

// The threads that a call to in_pieces uses at most: 0 <= worker < workers(...).
inline int64_t workers(tensorflow::OpKernelContext* context, int64_t pieces) {
  const int64_t threads = context->device()->tensorflow_cpu_worker_threads()->num_threads;
  return std::max<int64_t>(1, std::min(threads, pieces));
}

// Calls work(worker, piece) for each piece in [0, pieces), and returns when all are done. A thread
// that is free takes the next piece, so a slower one takes fewer; and one that comes too late is
// not waited for. What a piece computes must not depend on its worker, which only says whose
// scratch memory it uses.
template <typename Work>
void in_pieces(tensorflow::OpKernelContext* context, int64_t pieces, const Work& work) {
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable all;
  };
  const auto progress = std::make_shared<Progress>();
  // Who takes no piece does not touch `work`, which may be gone by then.
  const auto take = [progress, pieces, &work](int64_t worker) {
    for (int64_t piece; (piece = progress->next.fetch_add(1)) < pieces;) {
      work(worker, piece);
      if (progress->done.fetch_add(1) + 1 == pieces) {
        const std::lock_guard<std::mutex> lock(progress->mutex);
        progress->all.notify_one();
      }
    }
  };
  auto* const pool = context->device()->tensorflow_cpu_worker_threads()->workers;
  for (int64_t worker = 1; worker < workers(context, pieces); ++worker) {
    pool->Schedule([take, worker] { take(worker); });
  }
  take(0);
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->all.wait(lock, [&] { return progress->done == pieces; });
}

#endif
