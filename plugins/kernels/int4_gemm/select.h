// SPDX-License-Identifier: Apache-2.0
// Which kernel, tile and grid an INT4 GEMM gets: a pure function of shape and device.
#pragma once

#include <algorithm>

#include "common/driver.h"
#include "kernels/int4_gemm/params.h"

namespace orin::int4_gemm {

constexpr int kFewTokens = 16;  // most tokens of the path that is limited by reading W
constexpr int kMaxWarps = 16;   // of a block of that path
constexpr int kMaxSplits = 16;
constexpr int kSemaphores = 4096;                       // output tiles of a launch that splits columns
constexpr int kStaticShared = 1024;                     // of a block, at most
constexpr int kMaxShared = 163 * 1024 - kStaticShared;  // of a block: what Orin has beside

struct Shape {
  int tokens, n, k, group_size;
  bool has_norm, has_rows, has_zeros;
  bool has_columns = false;  // then the norm goes before and has_norm is false
};

// The tiles of int4_gemm_many.cu, smallest first, with their costs in microseconds on an H200. Only ratios matter for
// the choice; Orin's were not measured and are taken to be the same.
struct Tile {
  int tokens, rows;
  int shares;  // warps that share rows of W, each with its part of the columns
  int threads, stages;
  int blocks_per_sm;  // that fit beside each other
  float chunk_cost;   // of 128 columns of a tile that has its SM to itself
  float crowd_cost;   // what each further tile beside it adds, as a part of that
  float fixed_cost;   // first copies and epilogue
};

constexpr Tile kTiles[] = {
    {32, 64, 2, 256, 4, 2, 0.42f, 0.85f, 3.3f},  {32, 128, 1, 128, 3, 4, 0.74f, 0.57f, 3.6f},
    {64, 128, 1, 128, 3, 3, 1.08f, 0.61f, 4.6f}, {64, 128, 2, 256, 3, 1, 1.f, 0.f, 4.2f},
    {64, 256, 1, 128, 2, 2, 1.72f, 0.75f, 5.f},
};
constexpr float kSplitCost =
    2.3f;  // of splitting columns; and of sums that are left, which share L2, and then added up:
constexpr float kLeaveCost = 2.3e-4f, kAddCost = 4e-5f;  // each of an SM, and each of all splits of a tile
constexpr int kNumTiles = sizeof(kTiles) / sizeof(kTiles[0]);

struct Choice {
  int tile = -1;  // index of kTiles; -1 = the path for few tokens
  int blocks = 1;
  int splits = 1;
  int warps_n = 1, warps_k = 1;     // few
  int warp_tiles = 1;               // few: most of a warp, of one stripe or, with a norm, of two
  int round_tiles = 1, rounds = 1;  // few, norm: of these between two barriers
  int group_m = 1;
  bool normalises_first = false;  // norm, rows and columns by a kernel of their own, into the workspace

  bool is_few() const { return tile < 0; }
};

inline int most_shared(const Device& device) { return std::min(kMaxShared, device.max_shared_bytes - kStaticShared); }

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int num_stripes(const Shape& s) { return ceil_div(s.n, kStripeRows); }
constexpr int num_chunks(const Shape& s) { return ceil_div(s.k, kChunkColumns); }

// A short chunk or a short stripe: kernels of their own, so that the others know nothing of them.
constexpr bool is_ragged(const Shape& s) {
  return s.k % kChunkColumns != 0 || s.n % (s.has_norm ? 2 * kStripeRows : kStripeRows) != 0;
}

constexpr int few_tiles(const Shape& s) { return ceil_div(s.n, s.has_norm ? 2 * kStripeRows : kStripeRows); }

// Bytes of shared memory of the path for few tokens and where its parts lie.
struct FewShared {
  int buffer_bytes, squares_at, bytes;
};

constexpr FewShared few_shared(const Shape& s, const Choice& c) {
  const int warps = c.warps_n * c.warps_k, row_bytes = 4 * s.tokens * kStripeRows;
  if (!s.has_norm) return {0, 0, c.warp_tiles * warps * row_bytes};
  const int buffer = c.round_tiles * warps * 2 * row_bytes, squares = (c.rounds > 1 ? 2 : 1) * buffer;
  return {buffer, squares, squares + num_chunks(s) * 4 * (s.tokens > 8 ? 16 : 8)};
}

// Warps of a block for which int4_gemm_few_norm.cu has registers where each has one chunk, and where it has several.
constexpr int most_norm_warps(const Shape& s, bool has_phases) {
  if (has_phases || is_ragged(s)) return s.group_size == 128 && s.tokens <= 8 && !is_ragged(s) ? 10 : 8;
  return s.group_size == 32 && s.tokens > 8 ? 8 : kMaxWarps;
}

constexpr bool has_phases(const Shape& s) { return is_ragged(s) || num_chunks(s) > most_norm_warps(s, false); }

constexpr int many_shared(const Shape& s, const Tile& tile) {
  const int groups = kChunkColumns / s.group_size, stripes = tile.rows / kStripeRows;
  return tile.stages * (tile.tokens * 2 * kChunkColumns + stripes * (512 + 16 * groups + 8 * std::max(1, groups / 2)));
}

// With a norm each warp has one chunk, or as few as it can; a second row of warps pays once each has many tiles.
inline void arrange_norm_warps(const Shape& s, const Device& device, Choice& c) {
  const int most = most_norm_warps(s, has_phases(s)), chunks = num_chunks(s);
  c.warps_k = ceil_div(chunks, ceil_div(chunks, most));
  c.warps_n = std::max(1, std::min(most / c.warps_k, ceil_div(few_tiles(s), 8 * device.sm_count)));
}

// Without one, the time of the slowest warp: its chunks, one more per tile for starting and adding up, and what each
// warp adds to the others' time.
inline void arrange_plain_warps(const Shape& s, const Device& device, int shared, Choice& c) {
  float best = 1e30f;
  for (int k = 1; k <= std::min(kMaxWarps, num_chunks(s)); ++k) {
    for (int n = 1; n <= kMaxWarps / k; ++n) {
      const int tiles = ceil_div(few_tiles(s), device.sm_count * n);
      const float cost = tiles * (ceil_div(num_chunks(s), k) + 1) + 0.25f * n * k;
      if (cost >= best || tiles * n * k * 4 * s.tokens * kStripeRows > shared) continue;
      best = cost, c.warps_n = n, c.warps_k = k;
    }
  }
}

// Blocks and rounds for given warps: one block per SM, as few blocks as do not make any of them slower, and sums of as
// many tiles between two barriers as shared memory holds.
inline void spread_tiles(const Shape& s, const Device& device, int shared, Choice& c) {
  const int tiles = few_tiles(s);
  c.warp_tiles = ceil_div(tiles, device.sm_count * c.warps_n);
  c.blocks = ceil_div(tiles, c.warps_n * c.warp_tiles);
  c.warp_tiles = ceil_div(tiles, c.blocks * c.warps_n);
  c.rounds = 1, c.round_tiles = c.warp_tiles;
  while (c.round_tiles > 1 && few_shared(s, c).bytes > shared) {
    c.rounds = ceil_div(c.warp_tiles, --c.round_tiles);
  }
  c.round_tiles = ceil_div(c.warp_tiles, c.rounds);
}

inline Choice choose_few(const Shape& s, const Device& device) {
  Choice c;
  c.normalises_first = s.has_columns;
  const int shared = most_shared(device);
  if (s.has_norm) {
    arrange_norm_warps(s, device, c);
    spread_tiles(s, device, shared, c);
    return c;
  }
  Device many = device;  // blocks one after another where one alone could not hold the sums of its tiles
  do {
    arrange_plain_warps(s, many, shared, c);
    spread_tiles(s, many, shared, c);
    many.sm_count *= 2;
  } while (few_shared(s, c).bytes > shared);
  return c;
}

// Time of a launch by the costs above, from what the busiest SM has to do: as many blocks as fit, then the next.
inline float many_cost(const Shape& s, const Device& device, const Tile& t, int tiles, int splits) {
  const int blocks = ceil_div(tiles * splits, device.sm_count);
  const int waves = blocks / t.blocks_per_sm, rest = blocks % t.blocks_per_sm;
  const float wave = 1.f + (t.blocks_per_sm - 1) * t.crowd_cost, last = rest ? 1.f + (rest - 1) * t.crowd_cost : 0.f;
  const float chunks = ceil_div(num_chunks(s), splits) * t.chunk_cost * (waves * wave + last);
  const float sums = float(t.tokens * t.rows * t.shares) * splits;
  const float adding = kSplitCost + (kLeaveCost * tiles / device.sm_count + kAddCost) * sums;
  return chunks + ceil_div(blocks, t.blocks_per_sm) * t.fixed_cost + (splits > 1 ? adding : 0.f);
}

// The tile and the split of columns with the shortest time. Splits only up to three blocks per SM.
inline Choice choose_many(const Shape& s, const Device& device) {
  Choice best;
  float best_cost = 1e30f;
  for (int tile = 0; tile < kNumTiles; ++tile) {
    const Tile& t = kTiles[tile];
    if (many_shared(s, t) > device.max_shared_bytes || (s.has_zeros && t.rows > 128)) continue;
    const int tiles_m = ceil_div(s.tokens, t.tokens), tiles = tiles_m * ceil_div(s.n, t.rows);
    for (int splits = 1; splits <= std::min(kMaxSplits, num_chunks(s)); ++splits) {
      if (splits > 1 && tiles * splits > 3 * device.sm_count) break;
      const float cost = many_cost(s, device, t, tiles, splits);
      if (cost >= best_cost) continue;
      best_cost = cost;
      best.tile = tile, best.splits = splits, best.blocks = tiles;
      best.group_m = std::min(tiles_m, device.sm_count >= 64 ? 16 : 8);
    }
  }
  best.normalises_first = s.has_norm || s.has_rows || s.has_columns;
  return best;
}

inline Choice choose(const Shape& s, const Device& device) {
  return s.tokens <= kFewTokens ? choose_few(s, device) : choose_many(s, device);
}

}  // namespace orin::int4_gemm
