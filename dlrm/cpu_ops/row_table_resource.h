// A `RowTable` as a resource of TensorFlow.
#ifndef ROW_TABLE_RESOURCE_H
#define ROW_TABLE_RESOURCE_H

#include <shared_mutex>
#include <string>

#include "row_table.h"
#include "tensorflow/core/framework/resource_mgr.h"

struct RowTableResource : public tensorflow::ResourceBase {
  RowTableResource(int64_t width, int32_t shared_rows, int32_t admit_after, int32_t evict_after)
      : shared(shared_rows), table(width, shared_rows, admit_after, evict_after) {}

  static bool is_in(const tensorflow::ResourceHandle& handle) {
    return handle.hash_code() == tensorflow::TypeIndex::Make<RowTableResource>().hash_code();
  }

  std::string DebugString() const override { return "rows of an embedding table by key"; }

  const int32_t shared;
  std::shared_mutex mutex;
  RowTable table;
};

#endif
