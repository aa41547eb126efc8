// SPDX-License-Identifier: Apache-2.0
#pragma once

// How one slot samples, in device memory, one struct per slot: the values of runtime/sampling.py's Sampling. The list
// also makes the text by which the host builds the same struct: D float64, U uint64, I int32, in this order, unpadded.
//
//   top_k             0 = all
//   num_biases        entries in use of the slot's row of bias_ids and bias_values
//   num_logprobs      most likely tokens to report, at most max_logprobs
//   is_constrained    1: only tokens whose bit of the slot's row of `mask` is set may be chosen
#define ORIN_SAMPLING_SLOT_FIELDS(D, U, I) \
  D(temperature)                           \
  D(top_p)                                 \
  D(min_p)                                 \
  D(repetition_penalty)                    \
  D(presence_penalty) D(frequency_penalty) U(seed) I(top_k) I(num_biases) I(num_logprobs) I(is_constrained)

namespace orin {

using uint64 = unsigned long long;

#define ORIN_MEMBER_DOUBLE(name) double name;
#define ORIN_MEMBER_UINT64(name) uint64 name;
#define ORIN_MEMBER_INT(name) int name;
struct SamplingSlot {
  ORIN_SAMPLING_SLOT_FIELDS(ORIN_MEMBER_DOUBLE, ORIN_MEMBER_UINT64, ORIN_MEMBER_INT)
};

constexpr int kSamplingThreads = 512;
constexpr int kSamplingPart = 4 * kSamplingThreads;  // tokens of one block
constexpr int kMostVocab = 1 << 20;                  // one thread per part, and 20 bits of an ordering key
constexpr int kMostLogprobs = 20;
constexpr int kBins = 1024;

// What is known of some of a row's tokens.
struct Survey {
  float raw_max;    // of the logits themselves
  float raw_sum;    // of exp(logit - raw_max)
  int bad;          // lowest id with a logit that is not finite, or 2^31 - 1
  float high, low;  // best score, and the lowest id that has it
  int id;
  float raw;  // that token's logit
};

// What the first kernel leaves to the second.
struct SamplingRow {
  float raw_max, log_sum;
  float high, low;  // best score
  float by, rest;   // 16 / temperature as a sum
  float least;      // log(min_p)
  float floor;      // exp of the best token's Gumbel number: what another token must beat
  int slot;         // -1: the row's token stands already
};

// A row's tokens by score, best first; bin of a token: see sampling.cu.
struct SamplingBins {
  uint64 mass[kBins];
  uint64 best[kBins];   // largest drawing key
  uint64 where[kBins];  // bit g: parts of group g have tokens in the bin
  unsigned count[kBins];
};

struct SamplingParams {
  const float* logits;           // [rows, vocab]
  const int* slots;              // [rows]; -1 = padded row
  const int* past_lens;          // [rows]
  const int* cu_seqlens;         // [rows + 1]
  const int* logit_rows;         // [rows] or null; -1 = no token wanted
  const SamplingSlot* settings;  // [slots]
  const unsigned short* counts;  // [slots, vocab] or null: bit 15 = stands in the prompt, else times in the output
  const int* bias_ids;           // [slots, max_biases]
  const double* bias_values;     // [slots, max_biases]
  const unsigned* mask;          // [slots, ceil(vocab / 32)] or null, bit id % 32 of word id / 32
  int* tokens;                   // [rows]; -1 = none
  float* logprobs;               // [rows]
  int* errors;                   // [rows]
  int* top_ids;                  // [rows, max_logprobs]
  float* top_logprobs;           // [rows, max_logprobs]
  unsigned* counters;            // [2, rows], zero between launches
  SamplingRow* states;           // [rows]
  Survey* surveys;               // [rows, blocks]
  uint64* tops;                  // [rows, parts, max_logprobs]
  SamplingBins* bins;            // [rows]
  int rows;
  int vocab;
  int parts;
  int blocks;  // of one row
  int max_biases;
  int max_logprobs;
};

}  // namespace orin
