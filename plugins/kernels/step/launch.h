// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/abi.h"

// The end of a step, behind sampling in the same capture: nothing here waits for the host, and the host waits for
// nothing but the ring. One block; the rows of a step that are wanted (slot and logit row not -1)
//
//   count their token in `counts`, look whether it ends the sequence, and become row `destinations[r]` of the next
//   decode step (-1: of none): next_ids = token, next_past_lens = tokens now in the caches, next_slots = slot,
//   next_logit_rows = its row. A sequence that has ended becomes a padded row there: -1, 0, -1, -1.
//
// In a decode step `destinations` is null and next_* are the step's own inputs, updated in place. In a prefill step
// they are the decode step's, so a prompt's first token reaches the decode step without the host. Rows that are not
// wanted change nothing.
//
//   tokens, logprobs, top_ids, top_logprobs: outputs of orin_sampling; slots, past_lens, cu_seqlens, logit_rows: the
//   step's counts   uint16 [slots, vocab] or null, as orin_sampling reads them stop_ids int32 [slots, max_stops], -1 =
//   unused; max_lens int32 [slots]: tokens, prompt included, at which to end clock    uint64 in device memory, the
//   number of the step; counts up ring     pinned host memory [ring_steps, ring_rows] of struct orin::StepEntry
//   (orin_step_entry_fields()) with max_logprobs
//            pairs behind each; step n is in n % ring_steps. ring_rows may be
//            more than rows. The host must not be ring_steps ahead of what it has read
//   head     uint64 in pinned host memory: steps whose entries are complete, released to the whole system.
//            orin_step_head(const orin::Step*) reads it with acquire
// clang-format off
#define ORIN_STEP_FIELDS(P, I, F)                                                                                   \
  P(tokens) P(logprobs) P(top_ids) P(top_logprobs) P(slots) P(past_lens) P(cu_seqlens) P(logit_rows)                \
  P(destinations) P(next_ids) P(next_slots) P(next_past_lens) P(next_logit_rows) P(counts) P(stop_ids) P(max_lens)  \
  P(clock) P(ring) P(head) I(rows) I(vocab) I(max_stops) I(max_logprobs) I(ring_steps) I(ring_rows)
// clang-format on

ORIN_ABI(Step, step, ORIN_STEP_FIELDS)

ORIN_API int64_t orin_step_head(const orin::Step* arguments);
ORIN_API const char* orin_step_entry_fields();

// New sequences in their slots: counts of the slots are cleared and the prompts' tokens are marked (bit 15). ids int32
// [tokens] packed, cu_seqlens int32 [sequences+1], slots int32 [sequences] (-1 = none), counts uint16 [slots, vocab].
#define ORIN_PROMPT_FIELDS(P, I, F) P(ids) P(cu_seqlens) P(slots) P(counts) I(tokens) I(sequences) I(vocab)

ORIN_ABI(Prompt, prompt, ORIN_PROMPT_FIELDS)
