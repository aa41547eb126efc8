// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/abi.h"

// bits: 16 wide table, 8 int8 rows with a scale each, 4 int4 groups. kernel_layout: 1 where table and scale are those
// of the INT4 GEMM, which a tied head shares with the embedding.
#define ORIN_EMBEDDING_FIELDS(P, I, F) \
  P(ids) P(table) P(scale) P(y) I(tokens) I(vocab) I(hidden) I(bits) I(group_size) I(kernel_layout)

ORIN_ABI(Embedding, embedding, ORIN_EMBEDDING_FIELDS)
