// SPDX-License-Identifier: Apache-2.0
// Which kernel, tile and grid an INT4 GEMM gets: a pure function of shape and device.
#pragma once

#include <algorithm>

#include "common/driver.h"
#include "kernels/int4_gemm/params.h"

namespace orin::int4_gemm {

constexpr int kFewTokens = 16;       // most tokens of the path that is limited by reading W
constexpr int kMaxWarps = 16;        // of a block of that path
constexpr int kMaxSplits = 16;
constexpr int kSemaphores = 4096;    // output tiles of a launch that splits columns
constexpr int kMaxFusedNorm = 8192;  // columns: 32 sums of 256; longer rows are normalised by a kernel of their own
constexpr int kMaxShared = 160 * 1024;  // of a block: what Orin has, rounded down

struct Shape {
  int tokens, n, k, group_size;
  bool has_norm, has_rows, has_zeros;
};

// The tiles of int4_gemm_many.cu, smallest first, with their costs in microseconds on an H200. Only ratios matter for
// the choice; Orin's were not measured and are taken to be the same.
struct Tile {
  int tokens, rows;
  int threads, stages;
  int blocks_per_sm;  // that fit beside each other
  float chunk_cost;   // of 128 columns of a tile that has its SM to itself
  float crowd_cost;   // what each further tile of the SM adds, as a part of that
  float fixed_cost;   // first copies and epilogue
};

constexpr Tile kTiles[] = {
    {32, 64, 128, 4, 4, 0.55f, 0.8f, 2.2f},
    {64, 64, 128, 4, 2, 0.875f, 0.85f, 2.9f},
    {128, 128, 256, 3, 1, 1.815f, 1.f, 6.f},
    {128, 256, 256, 3, 1, 2.915f, 1.f, 8.7f},
};
constexpr float kSplitCost = 2.5f;  // of splitting columns; and of the values that are left and added up:
constexpr float kAddCost[] = {3e-4f, 1.5e-4f};  // each, and each of each split
constexpr int kNumTiles = sizeof(kTiles) / sizeof(kTiles[0]);

struct Choice {
  int tile = -1;  // index of kTiles; -1 = the path for few tokens
  int blocks = 1;
  int splits = 1;
  int warps_n = 1, warps_k = 1;
  int stripes = 1;  // that a warp of the path for few tokens takes at a time: 1 or 2
  int group_m = 1;
  bool normalises_first = false;  // norm and rows by a kernel of their own, into the workspace

  bool is_few() const { return tile < 0; }
};

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int num_stripes(const Shape& s) { return ceil_div(s.n, kStripeRows); }
constexpr int num_chunks(const Shape& s) { return ceil_div(s.k, kChunkColumns); }

// Bytes of shared memory of the path for few tokens and where its parts lie.
struct FewShared {
  int x_stride, sums_at, partial_at, bytes;
};

constexpr FewShared few_shared(const Shape& s, const Choice& c) {
  const int share = ceil_div(s.k / kChunkColumns, c.splits * c.warps_k);  // of a warp
  const int width = (std::min(s.k / kChunkColumns, share * c.warps_k) + (s.k % kChunkColumns != 0)) * kChunkColumns;
  FewShared at{};
  at.x_stride = 2 * width + 64;  // 64: neighbouring tokens start half of the banks apart
  at.sums_at = s.tokens * at.x_stride;
  at.partial_at = at.sums_at + (s.has_norm && !c.normalises_first ? 4 * s.tokens * 32 : 0);
  at.bytes = at.partial_at + (c.warps_k > 1 ? 2 * c.stripes * c.warps_n * c.warps_k * s.tokens * 4 * kStripeRows : 0);
  return at;
}

// Warps that share a token of the block when tokens are copied and normalised: a power of two.
constexpr int x_share(const Shape& s, const Choice& c) {
  int share = 0;
  while ((2 << share) * s.tokens <= c.warps_n * c.warps_k) ++share;
  return share;
}

constexpr int many_shared(const Shape& s, const Tile& tile) {
  const int groups = kChunkColumns / s.group_size, stripes = tile.rows / kStripeRows;
  return tile.stages *
         (tile.tokens * 2 * kChunkColumns + stripes * (512 + 16 * groups + 8 * std::max(1, groups / 2)));
}

// Warps over stripes and over columns with the shortest time: a step (one chunk of one stripe) of the slowest warp
// costs a few times what starting one more warp does, which also helps with more tokens. Two stripes at a time cost
// 1.3 steps.
inline void arrange_warps(const Shape& s, int max_warps, Choice& c) {
  const int stripes = ceil_div(num_stripes(s), c.blocks), chunks = ceil_div(num_chunks(s), c.splits);
  const float per_warp = s.tokens > 1 ? 0.3f : 0.8f;
  float best = 1e30f;
  for (int k = 1; k <= std::min(max_warps, chunks); ++k) {
    for (int at_once = 1; at_once <= std::min(2, stripes); ++at_once) {
      for (int n = 1; n <= std::min(max_warps / k, ceil_div(stripes, at_once)); ++n) {
        const int rounds = ceil_div(stripes, n * at_once), steps = rounds * ceil_div(chunks, k);
        const float cost = 2.f * (at_once == 2 ? 1.3f : 1.f) * steps + per_warp * n * k + (k > 1 ? 4 : 1) * rounds;
        if (cost < best) best = cost, c.warps_n = n, c.warps_k = k, c.stripes = at_once;
      }
    }
  }
}

// One block per SM and all columns in it, unless the tokens alone would fill shared memory. Where a block would have a
// single stripe and there are several tokens, half as many blocks read the tokens half as often.
inline Choice choose_few(const Shape& s, const Device& device) {
  Choice c;
  const int max_warps = device.max_shared_bytes > 200 * 1024 ? kMaxWarps : kMaxWarps / 2;
  const int stripes = num_stripes(s);
  c.normalises_first = s.has_norm && s.k > kMaxFusedNorm;
  for (c.splits = 1; c.splits <= kMaxSplits; ++c.splits) {
    if (c.splits > 1) c.normalises_first = s.has_norm;
    const int most = std::max(1, device.sm_count / c.splits);
    c.blocks = stripes > most ? most : s.tokens > 1 ? ceil_div(stripes, 2) : stripes;
    arrange_warps(s, max_warps, c);
    if (few_shared(s, c).bytes <= std::min(kMaxShared, device.max_shared_bytes)) break;
  }
  return c;
}

// Time of a launch by the costs above, from what the busiest SM has to do.
inline float many_cost(const Shape& s, const Device& device, const Tile& t, int tiles, int splits) {
  const int blocks = ceil_div(tiles * splits, device.sm_count);
  const float chunks = ceil_div(num_chunks(s), splits) * t.chunk_cost * (1.f + (blocks - 1) * t.crowd_cost);
  const float adding = splits > 1 ? kSplitCost + t.tokens * t.rows * (kAddCost[0] + kAddCost[1] * splits) : 0.f;
  return chunks + ceil_div(blocks, t.blocks_per_sm) * t.fixed_cost + adding;
}

// The tile and the split of columns with the shortest time. Splits only up to one block per SM.
inline Choice choose_many(const Shape& s, const Device& device) {
  Choice best;
  float best_cost = 1e30f;
  for (int tile = 0; tile < kNumTiles; ++tile) {
    const Tile& t = kTiles[tile];
    if (many_shared(s, t) > device.max_shared_bytes || (s.has_zeros && t.rows > 128)) continue;
    const int tiles_m = ceil_div(s.tokens, t.tokens), tiles = tiles_m * ceil_div(s.n, t.rows);
    for (int splits = 1; splits <= std::min(kMaxSplits, num_chunks(s)); ++splits) {
      if (splits > 1 && tiles * splits > device.sm_count) break;
      const float cost = many_cost(s, device, t, tiles, splits);
      if (cost >= best_cost) continue;
      best_cost = cost;
      best.tile = tile, best.splits = splits, best.blocks = tiles;
      best.group_m = std::min(tiles_m, device.sm_count >= 64 ? 8 : 4);
    }
  }
  best.normalises_first = s.has_norm || s.has_rows;
  return best;
}

inline Choice choose(const Shape& s, const Device& device) {
  return s.tokens <= kFewTokens ? choose_few(s, device) : choose_many(s, device);
}

}  // namespace orin::int4_gemm
