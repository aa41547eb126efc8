// SPDX-License-Identifier: Apache-2.0
// What the launcher and the device code of OrinInt4Gemm share. Plain C++: both compilers read it.
#pragma once

namespace orin {

constexpr int kStripeRows = 8;     // rows of W that the kernel layout interleaves
constexpr int kChunkColumns = 128;  // columns of one row that lie together: 64 bytes

struct Int4GemmParams {
  const void* x;         // float16 [*, k]
  const void* weight;    // int4, kernel layout
  const void* scales;    // float16, kernel layout
  const void* zeros;     // packed, kernel layout; null = 8 everywhere
  const float* norm;     // [k] or null
  const void* bias;      // float16 [n] or null
  const void* residual;  // float16 [tokens, n'] or null
  const int* rows;       // [tokens], row of x of each token, -1 = skipped; or null
  void* y;               // [tokens, n'], n' = n, or n/2 for swiglu
  float* partials;       // [splits, tokens, n] when splits > 1
  int* semaphores;       // one per output tile when splits > 1; zero before and after
  int tokens;
  int n;
  int k;
  int swiglu;
  int float32_output;
  float norm_eps;
  int is_plain;       // at most a residual follows, y is float16 and n even
  int x_is_gathered;  // rows of x are in the order of the tokens already
  int splits;   // blocks that share the columns of one output tile
  int warps_n;  // few: warps side by side over stripes
  int warps_k;  // few: warps that share the columns of a stripe
  int group_m;  // many: tiles along the tokens that run together
  // few: stripes of each block and whole chunks of each warp along k of all splits; the first more_... have one more
  int stripes, more_stripes;
  int chunks, more_chunks;
  int has_short_chunk;  // few: k is no multiple of 128
  int stripe_bytes, stripe_scale_bytes, stripe_zero_bytes;  // few: of a stripe of 8 rows
  float inverse_k;
  int x_share;  // few: 2^x_share warps share a token
  // few: offsets in shared memory, from few_shared() in select.h
  int x_stride;
  int sums_at;
  int partial_at;
};

struct NormRowsParams {
  const void* x;     // float16 [*, k]
  const float* norm;  // [k] or null
  const int* rows;   // [tokens] or null
  void* y;           // float16 [tokens, k]; zeros where the row is -1
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
