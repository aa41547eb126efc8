// SPDX-License-Identifier: Apache-2.0
// What the launcher and the device code of OrinInt4Gemm share. Plain C++: both compilers read it.
#pragma once

#include "common/both_sides.h"

namespace orin {

constexpr int kStripeRows = 8;      // rows of W that the kernel layout interleaves
constexpr int kChunkColumns = 128;  // columns of one row that lie together: 64 bytes

struct Int4GemmParams {
  // What a launch for few tokens needs first lies together, in one or two lines of the constant cache.
  const void* x;       // float16 [*, k]
  const void* weight;  // int4, kernel layout
  const void* scales;  // float16, kernel layout
  int tokens;
  unsigned row_bytes;                               // of x
  unsigned stripe_bytes, stripe_scale_bytes;        // of a stripe of 8 rows
  int warp_chunks, more_chunks;                     // few, no norm: of each warp; the first more_chunks have one more
  int tiles;                                        // few: of W, a stripe or, with a norm, two
  int warp_tiles;                                   // few: most of a warp
  const int* rows;                                  // [tokens], row of x of each token, -1 = skipped; or null
  const float* norm;                                // [k] or null
  unsigned tile_step_bytes, tile_step_scale_bytes;  // few, norm: from a tile of a warp to its next
  int round_tiles, rounds;                          // few, norm: tiles between two barriers
  int chunks;                                       // of 128 columns, the last may be short
  int buffer_bytes, squares_at;                     // few, norm: in shared memory, from few_shared() in select.h
  int n, k;
  unsigned stripe_zero_bytes;
  int short_chunk;  // the last one if it has fewer than 128 columns, else -1
  float inverse_k, norm_eps;
  int swiglu;
  int float32_output;
  int is_plain;          // at most a residual follows, y is float16 and n even
  const void* zeros;     // packed, kernel layout; null = 8 everywhere
  const void* bias;      // float16 [n] or null
  const void* residual;  // float16 [tokens, n'] or null
  void* y;               // [tokens, n'], n' = n, or n/2 for swiglu
  float* partials;       // many: [splits, tiles, sums of a block] when splits > 1
  int* semaphores;       // many: one per output tile when splits > 1; zero before and after
  int splits;            // many: blocks that share the columns of one output tile
  int group_m;           // many: tiles along the tokens that run together
};

constexpr int kStreamWarps = 16;  // of a block of the streaming path, at most
constexpr int kBesideRows = 4;    // of a block of the streaming path, at most
constexpr int kStreamStages = 3;  // of a warp's ring

// Where copies of whole lines begin in shared memory: from another multiple of 16 they take a sixth longer.
constexpr int kSectorBytes = 32;

// Of a piece with as many stripes and chunks, of which each has `groups`: bytes of zero points of a row of a stripe,
// and bytes of a stage of the ring, which are W, scales and zero points.
ORIN_BOTH_SIDES constexpr int stream_zero_pairs(int chunks, int groups) {
  return chunks * groups > 2 ? chunks * groups / 2 : 1;
}
ORIN_BOTH_SIDES constexpr int stream_stage_bytes(int stripes, int chunks, int groups, bool has_zeros) {
  const int zeros = has_zeros ? stripes * stream_zero_pairs(chunks, groups) * 8 : 0;
  const int bytes = stripes * chunks * (512 + 16 * groups) + zeros;
  return (bytes + kSectorBytes - 1) / kSectorBytes * kSectorBytes;
}

// What follows a product of the streaming path: at most a residual; swiglu and nothing else; or whatever `gemm` says.
enum StreamEnd : unsigned char { kEndPlain, kEndGated, kEndAny };

// Of the streaming path. What a launch needs first lies together, in the line of the constant cache in which the
// parameters begin, and nearly all of the rest in the next: each further line costs a tenth of a microsecond.
struct Int4StreamParams {
  const void* x;
  const void* weight;
  const void* scales;
  const void* norm;
  unsigned unit_magic;  // of a unit's pieces: ceil(2^32 / divisor), 0 for 1; here and below
  unsigned char tokens;
  StreamEnd end;
  unsigned short chunks;
  unsigned short block_units, more_units;  // units of each block; the first more_units have one more
  unsigned short warp_pieces;
  unsigned char has_rows, has_beside, leads;

  unsigned pieces_magic, tokens_magic;  // of warp_pieces and tokens
  void* y;
  const void* residual;
  int n;
  float inverse_k, norm_eps;
  int parts;
  int offsets_at, factors_at, squares_at, ring_at, parts_at;  // in shared memory, see stream.h
  int beside_rows;                                            // of a wide product of the same normed token, or 0

  const void* beside;  // float16 [beside_rows, k]
  void* beside_y;      // float16 [beside_rows]
  Int4GemmParams gemm;
};

struct NormRowsParams {
  const void* x;       // float16 [*, k]
  const float* norm;   // [k] or null
  const int* rows;     // [tokens] or null
  const int* columns;  // [k], of x where each column of y is, or null
  void* y;             // float16 [tokens, k]; zeros where the row is -1
  int* rows_out;       // [tokens], row of y of each token, -1 = skipped; or null
  int k;
  float norm_eps;
};

struct Int4LayoutParams {
  const void* weight;  // canonical, see toolkit/orinkit/int4.py
  const void* scales;
  const void* zeros;  // or null
  void* weight_out;   // kernel layout
  void* scales_out;
  void* zeros_out;
  int n;
  int k;
  int groups;  // k / group_size
};

}  // namespace orin
