// The scorer of a DLRM: from dense features and ids to logits, behind a C interface.
//
// It knows neither files nor Python: whoever opens it passes the rows of the tables, mapped or in
// memory, and the layers of both MLPs. Any number of threads may call a scorer at once.
#ifndef SCORER_H
#define SCORER_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#pragma GCC visibility push(default)
#endif

// How a row is stored. INT8 has one scale for each table; the uint8 values of INT8_ROWS are
// followed by the row's scale and bias as floats.
enum { SCORER_FLOAT32, SCORER_FLOAT16, SCORER_INT8, SCORER_INT8_ROWS };

// What the top MLP gets: the bottom MLP's output and the dot products of all pairs of vectors; all
// vectors, one behind the other, after any cross layers; their sum.
enum { SCORER_DOT, SCORER_CONCAT, SCORER_SUM };

// Instruction sets. All compute the same integers in int8 layers.
enum {
  SCORER_PORTABLE,
  SCORER_AVX2,
  SCORER_AVX2_VNNI,
  SCORER_AVX512,
  SCORER_AVX512_VNNI,
  SCORER_AVX512_AMX,
  SCORER_LEVELS
};

// What a table has of a sample: one id, or a bag of ids whose rows become one vector.
enum { SCORER_ONE_ID, SCORER_BAG_SUM, SCORER_BAG_MEAN };

enum {
  SCORER_OK,
  SCORER_BAD_ID,
  SCORER_BAD_DENSE,
  SCORER_BAD_VALUE,
  SCORER_BAD_WEIGHT,
  SCORER_NO_MEMORY
};

// One layer of an MLP. A float layer computes x K + b. An int8 layer takes every column j of its
// input as q = clip(rint(x / input_scale[j]) + input_zero[j], 0, 255) and computes
// kernel_scale * sum((q - input_zero) K) + b.
typedef struct {
  int64_t inputs, outputs;
  int32_t int8;
  int32_t relu;
  const void* kernel;  // [inputs, outputs], float or int8_t
  const float* bias;   // [outputs]
  // Only of int8 layers:
  const float* kernel_scale;  // [outputs]
  const float* input_scale;   // [inputs]
  const int32_t* input_zero;  // [inputs]
} ScorerLayer;

typedef struct {
  int64_t num_dense, tables, width;
  const int64_t* vocab_sizes;  // [tables], the bounds of the ids
  // [tables], copied; NULLs where every table has one id. A table has max_ids columns of ids.
  const int32_t *pooling, *max_ids;
  int32_t row_type;
  const float* table_scales;  // [tables], only for SCORER_INT8
  const void* rows;           // of all tables; must outlive the scorer
  int32_t rows_mapped;        // whether they are the mapping of a file, whose pages may be dropped
  int64_t hot_rows;           // the first of them, which are copied to memory of the scorer
  const void* positions;      // key -> row, or NULL where they are the same; must outlive it too
  int32_t position_bytes;     // of one position: 4 or 8
  int32_t bottom_count, top_count;
  const ScorerLayer *bottom, *top;  // copied
  int32_t interaction;
  int32_t cross_count;       // of cross layers x0 * (W V x + b) + x, only for SCORER_CONCAT
  const ScorerLayer* cross;  // float layers V and W of each; copied
  // A dictionary, or NULLs: values table << 32 | value in ascending order, and their ids. Both must
  // outlive the scorer. A modulus of 0 leaves the values of a table as they are.
  int64_t dictionary_count;
  const int64_t* dictionary_values;
  const int32_t* dictionary_ids;
  const int64_t* moduli;  // [tables]
  int32_t missing_is_value;
  // Where only known ids have a row of their own, or NULLs: their number in each table, and they
  // themselves, of one table after the other, ascending in each. Row 0 of a table is that of all
  // other ids, row i + 1 that of its known id i.
  const int64_t* known_counts;  // [tables]
  const int32_t* known_ids;     // only for scorer_open
  // What an id without a row has beside row 0, which is zero then: value j of id i is the output of
  // SplitMix64 for the counter (i + vocab_sizes of the tables before) * width + j, in
  // [-bound, bound). NULL where row 0 is all.
  const float* initial_bounds;  // [tables], copied
  uint64_t initial_seed;
} ScorerModel;

// Where the first bad input is, and the id or raw value that is bad.
typedef struct {
  int64_t sample, column, value;
} ScorerFault;

typedef struct Scorer Scorer;

// The size of ScorerModel here: a caller with another one was written for another library.
int64_t scorer_model_bytes(void);

// The highest level that this CPU supports, and whether it supports one.
int scorer_cpu_level(void);
int scorer_supports(int level);

// Returns NULL if memory runs out. `threads` includes the calling one.
Scorer* scorer_open(const ScorerModel* model, int level, int threads);
void scorer_close(Scorer* scorer);

// dense [batch, num_dense], ids [batch, columns] -> logits [batch]. The columns are those of one
// table after the other: one of each, or max_ids, of which those without an id hold -1. `weights`
// of the same shape are factors on the rows, or NULL for 1; that of no id is not looked at. Returns
// SCORER_OK, or the kind of `fault`, whose column is that of the dense feature or the table;
// nothing is written then.
int scorer_score(Scorer* scorer, const float* dense, const int32_t* ids, const float* weights,
                 int64_t batch, float* logits, ScorerFault* fault);

// One user and `batch` candidates: dense [num_dense], user_ids [their columns] for the user_count
// tables that user_tables lists, item_ids [batch, other columns] for the others in order -> logits
// [batch]; weights as for scorer_score. The user's part is computed once. The sample of a fault in
// user_ids or user_weights is -1.
int scorer_candidates(Scorer* scorer, const float* dense, const int32_t* user_tables,
                      int64_t user_count, const int32_t* user_ids, const float* user_weights,
                      const int32_t* item_ids, const float* item_weights, int64_t batch,
                      float* logits, ScorerFault* fault);

// values [batch, columns] -> ids [batch, columns]; -1 is a missing value, or none where a table has
// bags; others are below 2^32.
int scorer_look_up(const Scorer* scorer, const int64_t* values, int64_t batch, int32_t* ids,
                   ScorerFault* fault);

// words [batch, word_count] -> ids [batch, tables]; fields [tables] of word, shift, bits.
void scorer_unpack(const int32_t* words, int64_t batch, int64_t word_count, const int32_t* fields,
                   int64_t tables, int32_t* ids);

// Numbers of rows read from memory and from the mapping since the scorer was opened.
void scorer_lookups(const Scorer* scorer, int64_t* hot, int64_t* cold);

#ifdef __cplusplus
#pragma GCC visibility pop
}
#endif

#endif
