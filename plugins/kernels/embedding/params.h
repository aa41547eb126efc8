// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace orin {

enum class TableFormat : int { kFloat16, kInt8, kInt4, kInt4Kernel };

struct EmbeddingParams {
  const int* ids;     // [tokens]
  const void* table;  // [vocab, hidden] or int4 [vocab, hidden/2], canonical or in kernel layout
  const void* scale;  // float16 [vocab] or [vocab, hidden/group]
  void* y;            // float16 [tokens, hidden]
  int vocab;
  int hidden;
  int group_size;
};

}  // namespace orin
