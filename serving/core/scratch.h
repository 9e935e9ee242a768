// The memory of one thread while it scores a block of samples, kept for the next call.
//
// It knows no sizes: whoever makes a scratch gives it its arrays.
#pragma once

#include <pthread.h>

#include "memory.h"
#include "rows.h"

struct Scratch {
  Memory memory;
  float* values[2];    // inputs and outputs of layers, [block, stride]; also as words
  float* bottom;       // [block, width]
  float* vectors;      // of a few samples, [.., tables, width]
  float* interaction;  // [block, interaction width]
  float* crossed;      // [block, interaction width]: outputs of cross layers, if there are any
  float* factor;       // likewise: what the first input is multiplied by
  BagRows found;       // [block, columns] rows; without bags there are rows alone, and any places
  uint32_t* split;     // inputs of a layer in parts, [parts, block, split stride]
  Scratch* next;
};

// The scratches that no call uses at the moment.
class ScratchList {
 public:
  ScratchList() = default;
  ScratchList(const ScratchList&) = delete;
  ScratchList& operator=(const ScratchList&) = delete;
  ~ScratchList() {
    while (Scratch* const scratch = take()) delete scratch;
  }

  Scratch* take() {
    pthread_mutex_lock(&mutex_);
    Scratch* const taken = first_;
    if (taken) first_ = taken->next;
    pthread_mutex_unlock(&mutex_);
    return taken;
  }

  void put(Scratch* scratch) {
    pthread_mutex_lock(&mutex_);
    scratch->next = first_;
    first_ = scratch;
    pthread_mutex_unlock(&mutex_);
  }

 private:
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  Scratch* first_ = nullptr;
};
