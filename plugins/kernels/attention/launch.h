// SPDX-License-Identifier: Apache-2.0
// OrinAttention. Layouts as in params.h; shapes and masks as in toolkit/orinkit/ops/attention.py.
//
// max_step, max_length  the most tokens of one sequence in this step, and the longest a sequence may be after it. They
//                       choose the kernel and its grid, so a capture holds for every step within them; the tables
//                       cos and sin need max_length rows. A sequence beyond either counts as padding: y is zero there.
// kv_scale              null: the cache is float16. Else the cache is int8 [slots, 2, Hkv, capacity, D] and this is
//                       its float32 [slots, 2, Hkv, capacity]: per token and head, scale = max |x| / 127,
//                       q = round(x / scale), and attention sees q * scale.
// workspace             orin_attention_workspace() bytes, any contents.
// counters              orin_attention_counters() bytes that the caller sets to zero once; launches leave them zero.
//                       Launches that may overlap need counters of their own.
// settled               1: cache, lengths and slots were complete before the launch in front of this one began, so that
//                       a kernel which starts early may read them while that one runs (common/dependent.cuh).
#pragma once

#include "common/abi.h"

// clang-format off
#define ORIN_ATTENTION_FIELDS(P, I, F)                                                                                \
  P(qkv) P(kv) P(kv_scale) P(cu_seqlens) P(past_lens) P(slots) P(q_norm) P(k_norm) P(cos) P(sin) P(y) P(workspace)    \
  P(counters) I(tokens) I(sequences) I(max_step) I(max_length) I(capacity) I(heads) I(kv_heads) I(head_dim)           \
  I(rotary_dim) I(window) I(gate) I(settled) F(scale) F(softcap) F(norm_eps)
// clang-format on

ORIN_ABI(Attention, attention, ORIN_ATTENTION_FIELDS)

ORIN_API int64_t orin_attention_workspace(const orin::Attention* arguments);
ORIN_API int64_t orin_attention_counters(const orin::Attention* arguments);
