// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/abi.h"

// bits: 16 wide table, 8 int8 rows with a scale each, 4 canonical int4 groups.
#define ORIN_EMBEDDING_FIELDS(P, I, F) \
  P(ids) P(table) P(scale) P(y) I(tokens) I(vocab) I(hidden) I(bits) I(group_size)

ORIN_ABI(Embedding, embedding, ORIN_EMBEDDING_FIELDS)
