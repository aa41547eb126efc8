// SPDX-License-Identifier: Apache-2.0
// Which attention kernel, on which grid: a pure function of the shapes and of the device.
#pragma once

#include <cstdint>

#include "common/driver.h"
#include "kernels/attention/params.h"

namespace orin {

struct AttentionShape {
  int tokens;      // T
  int sequences;   // B
  int max_step;    // most tokens of one sequence
  int max_length;  // longest sequence after the step
  int heads;
  int kv_heads;
  int head_dim;
  int window;  // 0 = all
  bool int8;
};

struct AttentionChoice {
  bool is_decode;
  int shared_bytes;
  // decode: `launches` of up to kDecodeMaxStep tokens each, of a grid splits x (kv_heads * row_tiles) x sequences
  int launches;
  int rows;  // of one tile: 8 or 16
  int row_tiles;
  int splits;
  // prefill: grid of `blocks`
  int warps;
  int keys;  // of one tile
  int blocks;
  int descending;
};

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Blocks of so much shared memory that one multiprocessor holds; each also costs the system 1 KiB.
constexpr int blocks_per_sm(int shared_bytes, const Device& device) {
  return (device.max_shared_bytes + 1024) / (shared_bytes + 1024);
}

// The number of splits with the least predicted time. Unit: 1/64 of the time in which a block reads one tile for each
// warp, 128 KiB with float16 and head dim 256: 1.7 us on an H200 for a block alone, more where all read at once. A
// wave costs 16 for its start; a reduction 80 for its way through memory, and as much again for 270 KiB of sums.
constexpr int choose_splits(const AttentionShape& s, int keys, int units, int rows, int blocks_at_once) {
  const int tiles = ceil_div(keys, kDecodeKeys), useful = ceil_div(tiles, decode_split_tiles(s.head_dim));
  const int most = tiles <= decode_alone_tiles(s.head_dim) ? 1 : useful < kMaxSplits ? useful : kMaxSplits;
  const int64_t tile = s.int8 ? s.head_dim / 64 : s.head_dim / 32;  // of one warp of eight
  int best = 1;
  int64_t best_cost = INT64_MAX;
  for (int splits = 1; splits <= most; ++splits) {
    const int64_t reading = ceil_div(units * splits, blocks_at_once) * (16 + tile * ceil_div(tiles, splits));
    const int64_t cost = reading + (splits > 1 ? 80 + int64_t(splits) * rows * s.head_dim / 1700 : 0);
    if (cost < best_cost) best = splits, best_cost = cost;
  }
  return best;
}

constexpr int seen_keys(const AttentionShape& s) {
  return s.window && s.window + s.max_step < s.max_length ? s.window + s.max_step : s.max_length;
}

constexpr AttentionChoice choose_decode(const AttentionShape& s, const Device& device) {
  const int rows_of_a_sequence = (s.max_step < kDecodeMaxStep ? s.max_step : kDecodeMaxStep) * (s.heads / s.kv_heads);
  AttentionChoice c{};
  c.is_decode = true;
  c.launches = ceil_div(s.max_step, kDecodeMaxStep);
  c.rows = rows_of_a_sequence <= 8 ? 8 : 16;
  c.row_tiles = ceil_div(rows_of_a_sequence, c.rows);
  c.shared_bytes = decode_shared_bytes(s.head_dim, c.rows, s.int8);
  const int seen = seen_keys(s);
  const int per_sm = blocks_per_sm(c.shared_bytes, device);
  const int rows = rows_of_a_sequence < c.rows ? rows_of_a_sequence : c.rows;
  c.splits =
      choose_splits(s, seen, s.sequences * s.kv_heads * c.row_tiles, rows, device.sm_count * (per_sm > 1 ? per_sm : 1));
  return c;
}

constexpr int prefill_blocks(const AttentionShape& s, int warps) {
  // Every sequence may leave one tile partly filled.
  const int rows = warps * prefill_warp_rows(s.head_dim);
  return (s.tokens * (s.heads / s.kv_heads) / rows + (s.sequences < s.tokens ? s.sequences : s.tokens)) * s.kv_heads;
}

constexpr AttentionChoice choose_prefill(const AttentionShape& s, const Device& device) {
  AttentionChoice c{};
  c.warps = 4;
  c.keys = s.int8 ? 32 : 64;  // the int8 tiles lie beside the float16 ones that are made of them
  if (s.head_dim > 128) {
    // Eight warps share one tile of keys, so half as much goes to shared memory; but with fewer than two blocks for
    // each multiprocessor four warps, of which two blocks fit an H200, leave fewer of them without work.
    const bool has_room = blocks_per_sm(prefill_shared_bytes(s.head_dim, 4, 64, false), device) >= 2;
    c.warps = s.int8 || !has_room || prefill_blocks(s, 8) >= 2 * device.sm_count ? 8 : 4;
  }
  c.shared_bytes = prefill_shared_bytes(s.head_dim, c.warps, c.keys, s.int8);
  c.blocks = prefill_blocks(s, c.warps);
  // Long tiles first. Where all blocks run at once, a second layer in rising order pairs long tiles with short ones.
  const bool is_paired = c.warps == 4 && c.blocks <= 2 * device.sm_count;
  c.descending = is_paired ? device.sm_count : c.blocks;
  return c;
}

// A block of prefill reads all keys of its rows one tile after another, which takes long where they are many, however
// idle the GPU is; decode splits them. On an H200 a tile of 64 keys takes 2.6 us, a decode launch 9 to 26.
constexpr int kMostDecodeLaunches = 4;
constexpr int kKeysPerLaunch = 320;

constexpr bool is_faster_in_parts(const AttentionShape& s, const Device& device) {
  const int launches = ceil_div(s.max_step, kDecodeMaxStep);
  return launches <= kMostDecodeLaunches && seen_keys(s) >= launches * kKeysPerLaunch &&
         2 * prefill_blocks(s, 4) <= device.sm_count;
}

constexpr AttentionChoice choose_attention(const AttentionShape& s, const Device& device) {
  const bool is_decode = s.max_step <= kDecodeMaxStep || is_faster_in_parts(s, device);
  return is_decode ? choose_decode(s, device) : choose_prefill(s, device);
}

}  // namespace orin
