// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/abi.h"

// One token per row of logits, as runtime/sampling.py chooses it; two kernels.
//
//   logits float32 [rows, vocab]; slots, past_lens int32 [rows], cu_seqlens int32 [rows+1]: those of the step. The
//   token's position is past_len + tokens of the step. logit_rows int32 [rows] or null. A row with slot or logit row -1
//   is skipped. settings  struct orin::SamplingSlot of each slot; orin_sampling_slot_fields() describes it counts
//   uint16 [slots, vocab] or null: bit 15 = in the prompt, the rest = times in the output (step.cu keeps it) bias_ids
//   int32, bias_values float64 [slots, max_biases]; an id comes once. mask uint32 [slots, ceil(vocab/32)] or null
//   tokens    int32 [rows]: -1 where the row is skipped or nothing can be chosen
//   logprobs  float32 [rows]: log-probability under the model itself, before bias, penalties, temperature and cuts
//   errors    int32 [rows]: -1 = none; the lowest id whose logit is not finite; vocab = the mask allows no token
//   top_ids int32, top_logprobs float32 [rows, max_logprobs]: the slot's num_logprobs most likely; others untouched
//   counters  orin_sampling_counters() bytes that the caller zeroes once; the kernels leave them zero
//   workspace orin_sampling_workspace() bytes, aligned to 16; contents mean nothing
#define ORIN_SAMPLING_FIELDS(P, I, F) \
  P(logits)                           \
  P(slots)                            \
  P(past_lens)                        \
  P(cu_seqlens)                       \
  P(logit_rows)                       \
  P(settings)                         \
  P(counts)                           \
  P(bias_ids)                         \
  P(bias_values)                      \
  P(mask)                             \
  P(tokens)                           \
  P(logprobs)                         \
  P(errors) P(top_ids) P(top_logprobs) P(counters) P(workspace) I(rows) I(vocab) I(max_biases) I(max_logprobs)

ORIN_ABI(Sampling, sampling, ORIN_SAMPLING_FIELDS)

ORIN_API int64_t orin_sampling_counters(const orin::Sampling* arguments);
ORIN_API int64_t orin_sampling_workspace(const orin::Sampling* arguments);
ORIN_API const char* orin_sampling_slot_fields();
