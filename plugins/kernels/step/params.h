// SPDX-License-Identifier: Apache-2.0
#pragma once

// What one row of one step tells the host: U uint64, I int32, F float32, in this order, unpadded; after it stand
// max_logprobs pairs of id (int32) and log-probability (float32).
//
//   step   number of the step, from 0
//   state  see RowState
#define ORIN_STEP_ENTRY_FIELDS(U, I, F) U(step) I(slot) I(token) F(logprob) I(state)

namespace orin {

#define ORIN_ENTRY_UINT64(name) unsigned long long name;
#define ORIN_ENTRY_INT(name) int name;
#define ORIN_ENTRY_FLOAT(name) float name;
struct StepEntry {
  ORIN_STEP_ENTRY_FIELDS(ORIN_ENTRY_UINT64, ORIN_ENTRY_INT, ORIN_ENTRY_FLOAT)
};

enum RowState : int {
  kIdle = -1,    // a padded row, or one whose logits were not wanted
  kRunning = 0,  // the token is the next step's input
  kStopped = 1,  // the token is one of the slot's stop tokens
  kFull = 2,     // with the token the sequence has max_len tokens
  kFailed = 3,   // no token could be sampled
};

struct StepParams {
  const int* tokens;      // [rows], sampled; -1 = none
  const float* logprobs;  // [rows]
  const int* top_ids;     // [rows, max_logprobs]
  const float* top_logprobs;
  const int* slots;         // [rows] of the step that ends
  const int* past_lens;     // [rows]
  const int* cu_seqlens;    // [rows + 1]
  const int* logit_rows;    // [rows] or null
  const int* destinations;  // [rows] or null: row r goes to row r
  int* next_ids;            // of the next decode step
  int* next_slots;
  int* next_past_lens;
  int* next_logit_rows;    // or null
  unsigned short* counts;  // [slots, vocab] or null
  const int* stop_ids;     // [slots, max_stops]; -1 = unused
  const int* max_lens;     // [slots]
  unsigned long long* clock;
  char* ring;
  unsigned long long* head;
  int rows;
  int vocab;
  int max_stops;
  int max_logprobs;
  int ring_steps;
  int ring_rows;
};

struct PromptParams {
  const int* ids;          // [tokens]
  const int* cu_seqlens;   // [sequences + 1]
  const int* slots;        // [sequences]
  unsigned short* counts;  // [slots, vocab]
  int tokens;
  int sequences;
  int vocab;
};

}  // namespace orin
