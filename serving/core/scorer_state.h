// What an opened scorer consists of. Its functions are defined by subject: opening.cc lays the
// model out, checks.cc looks for bad inputs, scoring.cc computes.
//
// It knows the types of the C interface, not its functions, which scorer.cc makes of these.
#pragma once

#include "ids.h"
#include "kernels.h"
#include "known_ids.h"
#include "memory.h"
#include "panels.h"
#include "rows.h"
#include "scorer.h"
#include "scratch.h"
#include "threads.h"

// Some of the tables, and how many columns their ids have.
struct TableList {
  const int64_t* tables;  // [count]
  int64_t count, columns;
};

// The ids of a listed set of tables, [batch, columns], and a weight for each or NULL.
struct Ids {
  const int32_t* ids;
  const float* weights;
};

// What stays the same for all candidates of a user.
struct User {
  float* bottom;   // [width]
  float* vectors;  // [tables, width], of which only the user's are used
  TableList listed;
};

struct Request {
  const float* dense;  // [batch, num_dense]; unused with a user
  Ids ids;
  TableList listed;  // the tables that every sample looks up
  int64_t batch;
  float* logits;
  const User* user;
};

// The C interface makes its name known; its functions are nobody else's.
struct __attribute__((visibility("hidden"))) Scorer {
  Scorer(const ScorerModel& model, int cpu_level, int threads)
      : num_dense(model.num_dense),
        tables(model.tables),
        width(model.width),
        row_type(model.row_type),
        interaction(model.interaction),
        level(cpu_level),
        kernels(kernels_of(cpu_level)),
        pool(threads) {}

  // Returns false if memory runs out.
  bool open(const ScorerModel& model);

  // Each returns SCORER_OK or the kind of `fault`.
  int check_dense(const float* dense, int64_t batch, ScorerFault* fault) const;
  int check_ids(const Ids& ids, const TableList& listed, int64_t batch, ScorerFault* fault) const;

  // Checked inputs -> logits. Returns false if memory runs out.
  bool score(const Request& request);
  // Dense features [num_dense] and ids of a user -> the arrays of `user`, likewise.
  bool compute_user(const float* dense, const Ids& ids, const User& user);

  int64_t num_dense, tables, width;
  int32_t row_type, interaction;
  int level;
  const Kernels& kernels;
  ThreadPool pool;
  Memory memory;  // of everything that the model's own arrays are copied to
  const int64_t* vocab_sizes = nullptr;
  const int64_t* first_keys = nullptr;  // [tables + 1]
  bool has_bags = false;
  const int64_t* columns = nullptr;  // of the ids of each table
  const int32_t* pooling = nullptr;  // [tables], if there are bags
  TableList all_tables = {};
  const float* table_scales = nullptr;
  Dictionary dictionary;
  Mlp bottom, top, cross;  // two layers for each cross layer
  KnownIds known;
  Rows rows;
  ScratchList scratches;
  int64_t interaction_width = 0;
  int64_t stride = 0;        // of activations
  int64_t word_stride = 0;   // of quantised activations
  int64_t split_stride = 0;  // of split activations

 private:
  int check_bags(const Ids& ids, const TableList& listed, int64_t batch, ScorerFault* fault) const;
  Scratch* take_scratch();
  void find(const Ids& ids, int64_t samples, const TableList& listed, const BagRows& found);
  bool score_block(const Request& request, int64_t first, int64_t count, ThreadPool* helpers);
  void run_mlp(const Mlp& mlp, const float* input, int64_t stride, int64_t rows, float* output,
               int64_t output_stride, Scratch* scratch, ThreadPool* helpers, bool split) const {
    run_layers(mlp.layers, mlp.count, input, stride, rows, output, output_stride, scratch, helpers,
               split);
  }
  void run_layers(const PanelLayer* layers, int layer_count, const float* input, int64_t stride,
                  int64_t rows, float* output, int64_t output_stride, Scratch* scratch,
                  ThreadPool* helpers, bool split) const;
  void gather(const BagRows& found, const Ids& ids, int64_t first, int64_t samples,
              const TableList& listed, float* vectors) const;
  void combine(const float* block_bottom, const float* vectors, int64_t samples,
               float* output) const;
  void run_cross(int64_t count, Scratch* scratch, ThreadPool* helpers, bool split) const;
  bool interact(const Request& request, const Ids& ids, int64_t first, int64_t count,
                const Scratch& block, Scratch* own) const;
};
