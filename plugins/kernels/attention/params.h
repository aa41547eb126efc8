// SPDX-License-Identifier: Apache-2.0
// What host and device share of OrinAttention: the parameters, and the tiles with the shared memory they need.
#pragma once

#include "common/both_sides.h"

namespace orin {

struct AttentionParams {
  const void* qkv;        // float16 [tokens, (Hq [+ Hq] + 2 Hkv) D]: query, gate, key, value; head by head
  void* kv;               // float16 or int8 [slots, 2, Hkv, capacity, D]; position p lies in row p mod capacity
  float* kv_scale;        // float32 [slots, 2, Hkv, capacity] of an int8 cache: value = q * scale
  const int* cu_seqlens;  // [sequences + 1]
  const int* past_lens;   // [sequences]
  const int* slots;       // [sequences]
  const float* q_norm;    // [D] or null
  const float* k_norm;    // [D] or null
  const float* cos;       // [max_length or more, rotary_dim / 2]
  const float* sin;
  void* y;         // float16 [tokens, Hq D]
  void* partials;  // decode: see `Partials` in attention_decode.cu
  int* counters;   // decode: [sequences, Hkv, row tiles], zero between launches
  int tokens;
  int sequences;
  int max_step;    // a sequence with more tokens in this step, or
  int max_length;  // longer after it, counts as padding
  int heads;
  int kv_heads;
  int group;              // heads / kv_heads, and for division by it
  unsigned group_factor;  // 2^32 / group rounded up; 0 for a group of 1
  int capacity;
  int half_rotary;  // rotary_dim / 2
  int window;       // 0 = all
  int gate;
  int row_tiles;    // decode: tiles of rows of one sequence and KV head
  int is_settled;   // decode: cache, lengths and slots were complete before the launch in front of this one began
  int first_token;  // decode: of each sequence, this launch computes up to kDecodeMaxStep tokens from this one on
  int descending;   // prefill: so many blocks take the tiles from the last to the first, the rest from the first on
  float norm_eps;
  float score_scale;    // exponent of 2 = score_scale * dot, or
  float softcap_scale;  // score_scale * tanh(softcap_scale * dot) unless 0
};

// Rows in shared memory are padded by 16 bytes: eight rows at the same column then lie in different banks.
constexpr int kPadding = 8;

// Decode: each of eight warps takes 16 keys at a time, through a ring of its own.
constexpr int kDecodeKeys = 16;
constexpr int kDecodeWarps = 8;
constexpr int kDecodeMaxStep = 16;  // the new keys of a launch fill one tile
constexpr int kMaxSplits = 256;
ORIN_BOTH_SIDES constexpr int decode_stages(int dim) { return dim > 128 ? 1 : 2; }
ORIN_BOTH_SIDES constexpr int decode_tile_bytes(int dim) { return kDecodeKeys * (dim + kPadding) * 2; }
ORIN_BOTH_SIDES constexpr int decode_stage_bytes(int dim, bool int8) {
  return int8 ? 2 * kDecodeKeys * (dim + 4) : 2 * decode_tile_bytes(dim);
}
ORIN_BOTH_SIDES constexpr int decode_ring_bytes(int dim, bool int8) {
  return decode_stages(dim) * decode_stage_bytes(dim, int8) + (int8 ? decode_tile_bytes(dim) : 0);
}
ORIN_BOTH_SIDES constexpr int decode_shared_bytes(int dim, int rows, bool int8) {
  return kDecodeWarps * decode_ring_bytes(dim, int8) + 2 * decode_tile_bytes(dim) + rows * (dim + kPadding) * 2;
}
// A sequence of up to 256 KiB of K and V per head stays with one block, because the way through memory to a reduction
// takes as long as reading that. Beyond, the rate of one multiprocessor is what counts: splits may be down to 64 KiB.
ORIN_BOTH_SIDES constexpr int decode_split_tiles(int dim) { return 1024 / dim; }
ORIN_BOTH_SIDES constexpr int decode_alone_tiles(int dim) { return 4 * decode_split_tiles(dim); }
// What a split leaves for the reduction: D sums in float16, maximum and denominator of each row.
ORIN_BOTH_SIDES constexpr int decode_partial_bytes(int dim) { return 2 * dim + 8; }

// Prefill: warps of 16 or 32 rows, all over the same keys.
ORIN_BOTH_SIDES constexpr int prefill_warp_rows(int dim) { return dim > 128 ? 16 : 32; }
ORIN_BOTH_SIDES constexpr int prefill_shared_bytes(int dim, int warps, int keys, bool int8) {
  return (warps * prefill_warp_rows(dim) + 2 * keys) * (dim + kPadding) * 2 + (int8 ? 2 * keys * (dim + 4) : 0);
}

}  // namespace orin
