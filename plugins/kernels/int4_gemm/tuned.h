// SPDX-License-Identifier: Apache-2.0
// Choices above 16 tokens that do not come from select.h's costs: a table for given GPUs and matrices.
#pragma once

#include "kernels/int4_gemm/select.h"

namespace orin::int4_gemm {

// A tile is named by its size, not by its place in kTiles, so that a new tile makes no entry wrong.
struct Tuned {
  int sm_count, max_shared_bytes;  // of the device
  int n, k, group_size;
  int first_tokens, last_tokens;
  int tile_tokens, tile_rows, tile_shares, splits, group_m;
};

constexpr Tuned kTuned[] = {
#include "kernels/int4_gemm/tuned_table.h"
};

// Index of an entry's tile in kTiles, -1 = there is none any more.
constexpr int tile_of(const Tuned& entry) {
  for (int tile = 0; tile < kNumTiles; ++tile) {
    const Tile& t = kTiles[tile];
    if (t.tokens == entry.tile_tokens && t.rows == entry.tile_rows && t.shares == entry.tile_shares) return tile;
  }
  return -1;
}

// The entry for a shape on a device, or null. Matrices with zero points have no tile of 256 rows and were not measured.
inline const Tuned* find_tuned(const Shape& s, const Device& device) {
  if (s.has_zeros) return nullptr;
  for (const Tuned& entry : kTuned) {
    const bool is_device = entry.sm_count == device.sm_count && entry.max_shared_bytes == device.max_shared_bytes;
    const bool is_matrix = entry.n == s.n && entry.k == s.k && entry.group_size == s.group_size;
    const bool is_step = entry.first_tokens <= s.tokens && s.tokens <= entry.last_tokens;
    if (is_device && is_matrix && is_step && tile_of(entry) >= 0) return &entry;
  }
  return nullptr;
}

inline Choice tuned_or_chosen(const Shape& s, const Device& device) {
  const Tuned* entry = find_tuned(s, device);
  if (!entry) return choose(s, device);
  Choice c;
  c.tile = tile_of(*entry), c.splits = entry->splits;
  const int tiles_m = ceil_div(s.tokens, entry->tile_tokens);
  c.blocks = tiles_m * ceil_div(s.n, entry->tile_rows), c.group_m = std::min(tiles_m, entry->group_m);
  c.normalises_first = s.has_norm || s.has_rows || s.has_columns;
  return c;
}

}  // namespace orin::int4_gemm
