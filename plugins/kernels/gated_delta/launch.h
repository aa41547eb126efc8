// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/abi.h"

// Shapes in params.h. conv and rec are updated in place. rec_steps and conv_steps (both or none) take the states after
// each token, for orin_gated_delta_restore; with them a step runs token by token, however long it is.
// semaphores: orin_gated_delta_semaphores bytes, zeroed once by the caller, left at zero by every launch; launches that
// may run at the same time need their own. workspace: orin_gated_delta_workspace bytes of anything. Steps that run
// token by token need the one, steps that run by chunks the other; the size of what is not needed is 0.
// settled: 1 = states, lengths and slots were complete before the launch in front of this one began, so that a kernel
// which starts early may read them while that one runs (common/dependent.cuh).
// clang-format off
#define ORIN_GATED_DELTA_FIELDS(P, I, F)                                                                           \
  P(qkvz) P(ba) P(conv_weight) P(a_log) P(dt_bias) P(norm) P(conv) P(rec) P(cu_seqlens) P(past_lens) P(slots) P(y) \
  P(rec_steps) P(conv_steps) P(semaphores) P(workspace)                                                            \
  I(tokens) I(sequences) I(key_heads) I(value_heads) I(key_dim) I(value_dim) I(conv_width) I(settled) F(norm_eps)
// clang-format on

ORIN_ABI(GatedDelta, gated_delta, ORIN_GATED_DELTA_FIELDS)
ORIN_API int64_t orin_gated_delta_workspace(const orin::GatedDelta* arguments);
ORIN_API int64_t orin_gated_delta_semaphores(const orin::GatedDelta* arguments);

// Back to the states after the first `accepted` [B] (1 or more) tokens of each sequence's step.
// clang-format off
#define ORIN_GATED_DELTA_RESTORE_FIELDS(P, I, F)                                    \
  P(rec_steps) P(conv_steps) P(rec) P(conv) P(cu_seqlens) P(slots) P(accepted)      \
  I(sequences) I(key_heads) I(value_heads) I(key_dim) I(value_dim) I(conv_width)
// clang-format on

ORIN_ABI(GatedDeltaRestore, gated_delta_restore, ORIN_GATED_DELTA_RESTORE_FIELDS)
