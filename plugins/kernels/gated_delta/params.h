// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace orin {

constexpr int kChunk = 64;    // tokens of one sequence that the chunked kernels take together
constexpr int kConvTaps = 4;  // width of the convolution; its state holds the last 3 inputs

// Blocks that split the columns of one head's state: in pieces of 32.
constexpr int kSplitColumns = 32;
constexpr int kMaxSplits = 4;

constexpr int kMaxRound = 16;  // tokens of one sequence that the token-by-token kernels prepare and finish together

// What blocks of one launch that share a value head of a sequence tell each other. Zero between launches.
struct Exchange {
  // By token, two rounds of them in turn, reader, writer: {number of the token in the step, from 1; float bits of a
  // piece's sum of squares}.
  unsigned long long squares[2 * kMaxRound][kMaxSplits][kMaxSplits];
};

// T tokens, B sequences, S slots, Hk and Hv heads, D = Dk = Dv, channels = (2 Hk + Hv) D, N places of chunks
// (select.h).
struct GatedDeltaParams {
  const void* qkvz;         // float16 [T, channels + Hv D]
  const void* ba;           // float16 [T, 2 Hv]: b, then a
  const void* conv_weight;  // float16 [channels, 4]
  const float* a_log;       // [Hv]
  const float* dt_bias;     // [Hv]
  const float* norm;        // [D]
  void* conv;               // float16 [S, channels, 3], oldest input first
  float* rec;               // [S, Hv, D, D]
  const int* cu_seqlens;    // [B + 1]
  const int* past_lens;     // [B]
  const int* slots;         // [B]
  void* y;                  // float16 [T, Hv D]
  float* rec_steps;         // [T, Hv, D, D] or null: the recurrent state after each token
  void* conv_steps;         // float16 [T, channels, 3] or null: the convolution's state after each token
  Exchange* exchange;       // [B, Hv], where columns are split
  unsigned* readers;        // [B, Hk]: blocks that have read the convolution's state. Zero between launches
  int tokens;
  int sequences;
  int key_heads;
  int value_heads;
  int is_settled;  // states, lengths and slots were complete before the launch in front of this one began
  float norm_eps;

  // Workspace of the chunked kernels, a part per chunk and head; rows beyond a chunk's tokens are zero.
  void* qkv;     // float16 [N, 2 Hk + Hv, 64, D]: convolved; heads of q and k with unit length, then of v
  void* t;       // float16 [N, Hv, 64, 64]: (I + L)^-1 diag(beta)
  float* decay;  // [N, Hv, 3, 64]: G, exp(G), exp(G_last - G)
  void* delta;   // float16 [N, Hv, 64 D]: what each token adds to the state, in fragment order
  void* states;  // float16 [N, Hv, D D]: the state before each chunk, in fragment order
};

struct RestoreParams {
  const void* rec_steps;
  const void* conv_steps;
  void* rec;
  void* conv;
  const int* cu_seqlens;
  const int* slots;
  const int* accepted;  // [B], 1 .. tokens of the sequence
  int rec_vectors;      // 16-byte vectors of one slot's recurrent state
  int conv_vectors;     // and of its convolution's state
};

}  // namespace orin
