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
  // decode: grid splits x (kv_heads * row_tiles) x sequences
  int rows;  // of one tile: 8 or 16
  int row_tiles;
  int splits;
  // prefill: grid of `blocks`
  int keys;  // of one tile
  int blocks;
  int descending;
};

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Blocks of so much shared memory that one multiprocessor holds; each also costs the system 1 KiB.
constexpr int blocks_per_sm(int shared_bytes, const Device& device) {
  return (device.max_shared_bytes + 1024) / (shared_bytes + 1024);
}

// The number of splits with the least predicted time. Unit: 1/64 of the time in which every warp of a block takes one
// tile of keys, about 2 us on an H200 and 5 us on an Orin. A wave costs half a unit for its start, a reduction one for
// its round trip through memory, and each further split what the last block needs to read its sums.
constexpr int choose_splits(int keys, int units, int dim, int blocks_at_once) {
  const int rounds = ceil_div(keys, kDecodeKeys * decode_warps(dim));
  const int most = rounds < kMaxSplits ? rounds : kMaxSplits;
  int best = 1;
  int64_t best_cost = INT64_MAX;
  for (int splits = 1; splits <= most; ++splits) {
    const int64_t waves = ceil_div(units * splits, blocks_at_once);
    const int64_t cost = waves * (64 * ceil_div(rounds, splits) + 32) + (splits > 1 ? 64 + splits : 0);
    if (cost < best_cost) best = splits, best_cost = cost;
  }
  return best;
}

constexpr AttentionChoice choose_decode(const AttentionShape& s, const Device& device) {
  const int rows_of_a_sequence = s.max_step * (s.heads / s.kv_heads);
  AttentionChoice c{};
  c.is_decode = true;
  c.rows = rows_of_a_sequence <= 8 ? 8 : 16;
  c.row_tiles = ceil_div(rows_of_a_sequence, c.rows);
  c.shared_bytes = decode_shared_bytes(s.head_dim, c.rows, s.int8);
  const int seen = s.window && s.window + s.max_step < s.max_length ? s.window + s.max_step : s.max_length;
  const int per_sm = blocks_per_sm(c.shared_bytes, device);
  c.splits = choose_splits(seen, s.sequences * s.kv_heads * c.row_tiles, s.head_dim,
                           device.sm_count * (per_sm > 1 ? per_sm : 1));
  return c;
}

constexpr AttentionChoice choose_prefill(const AttentionShape& s, const Device& device) {
  AttentionChoice c{};
  // With head dim 256, tiles of 64 keys only where two such blocks still share a multiprocessor.
  const bool is_wide = s.head_dim > 128;
  c.keys = !is_wide || (!s.int8 && blocks_per_sm(prefill_shared_bytes(256, 64, false), device) >= 2) ? 64 : 32;
  c.shared_bytes = prefill_shared_bytes(s.head_dim, c.keys, s.int8);
  // Every sequence may leave one tile partly filled.
  const int group = s.heads / s.kv_heads, rows = prefill_rows(s.head_dim);
  const int tiles = s.tokens * group / rows + (s.sequences < s.tokens ? s.sequences : s.tokens);
  c.blocks = tiles * s.kv_heads;
  // Long tiles first. Where all blocks run at once, a second layer in rising order pairs long tiles with short ones.
  c.descending = c.blocks <= 2 * device.sm_count ? device.sm_count : c.blocks;
  return c;
}

constexpr AttentionChoice choose_attention(const AttentionShape& s, const Device& device) {
  return s.max_step <= kDecodeMaxStep ? choose_decode(s, device) : choose_prefill(s, device);
}

}  // namespace orin
