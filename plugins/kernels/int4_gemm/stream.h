// SPDX-License-Identifier: Apache-2.0
// Which INT4 GEMMs int4_gemm_stream.cu computes, and how their work lies on the device: pure functions of both.
#pragma once

#include "kernels/int4_gemm/select.h"

namespace orin::int4_gemm {

struct StreamChoice {
  int warps = kStreamWarps;
  int stripes = 1;  // of a unit
  int blocks = 1;
  int warp_pieces = 1;  // of each warp, at most
  int parts = 1;        // warps that have pieces of the same unit, at most
};

// Bytes of shared memory, and where its parts lie behind the tokens.
struct StreamShared {
  int offsets, factors, squares, ring, parts, bytes;
};

// For dividing by multiplication: (value * magic) >> 32 is value / divisor as long as value * divisor < 2^32. 0 for 1.
constexpr unsigned magic(int divisor) {
  return divisor == 1 ? 0 : static_cast<unsigned>(((uint64_t(1) << 32) + divisor - 1) / divisor);
}

constexpr int num_units(const Shape& s, const StreamChoice& c) { return s.n / (kStripeRows * c.stripes); }

// A piece is a chunk of a unit; two, where for one token a unit is one stripe.
constexpr int piece_chunks(const Shape& s, const StreamChoice& c) { return s.tokens == 1 ? 2 / c.stripes : 1; }
constexpr int unit_pieces(const Shape& s, const StreamChoice& c) { return num_chunks(s) / piece_chunks(s, c); }

// Whether all of W is units of so many stripes, whose pieces are whole.
constexpr bool has_units(const Shape& s, int stripes) {
  return s.n % (stripes * kStripeRows) == 0 && (stripes == 2 || s.tokens > 1 || num_chunks(s) % 2 == 0);
}

constexpr StreamShared stream_shared(const Shape& s, const StreamChoice& c) {
  const int columns = s.tokens == 1 ? 1 : ceil_div(s.tokens, 8) * 8, chunks = num_chunks(s),
            groups = kChunkColumns / s.group_size;
  const int stage = stream_stage_bytes(c.stripes, piece_chunks(s, c), groups, s.has_zeros);
  StreamShared at{};
  at.offsets = 2 * s.k * s.tokens;
  at.factors = at.offsets + 4 * columns * (s.k / s.group_size);
  at.squares = at.factors + (s.has_norm ? 4 * columns * chunks : 0);
  const int residual = s.tokens == 1 ? 4 * 32 * c.warps : 0;  // a word of each thread, in front of the ring
  at.ring = ceil_div(at.squares + (s.has_norm ? 4 * s.tokens * chunks : 0), kSectorBytes) * kSectorBytes + residual;
  at.parts = at.ring + c.warps * kStreamStages * stage;
  at.bytes = at.parts + ceil_div(num_units(s, c), c.blocks) * c.parts * s.tokens * c.stripes * kStripeRows * 4;
  return at;
}

// Pieces for given warps, stripes and blocks; more blocks, one after the other, where the sums of one do not fit.
inline void spread_pieces(const Shape& s, int shared, StreamChoice& c) {
  const int units = num_units(s, c), pieces = unit_pieces(s, c);
  c.blocks = std::min(c.blocks, units);
  while (true) {
    c.warp_pieces = ceil_div(ceil_div(units, c.blocks) * pieces, c.warps);
    c.parts = (pieces + c.warp_pieces - 2) / c.warp_pieces + 1;
    if (c.blocks == units || stream_shared(s, c).bytes <= shared) return;
    c.blocks = std::min(units, 2 * c.blocks);
  }
}

// For one token two stripes at a time unless one at a time leaves the busiest SM less; for more, where the products of
// two are half as many, unless there would not be a unit for each SM.
inline StreamChoice choose_stream(const Shape& s, const Device& device) {
  const int stripes = s.n / kStripeRows, pairs = stripes / 2;
  const bool is_even = ceil_div(stripes, device.sm_count) >= 2 * ceil_div(pairs, device.sm_count);
  const bool prefers_pairs = s.tokens == 1 ? is_even : pairs >= device.sm_count;
  StreamChoice c;
  c.stripes = has_units(s, 2) && (prefers_pairs || !has_units(s, 1)) ? 2 : 1;
  c.blocks = device.sm_count;
  spread_pieces(s, most_shared(device), c);
  return c;
}

// One token, or a few whose norm is then computed once for a block; more of them are better read by each warp for
// itself.
inline bool streams(const Shape& s, const Device& device) {
  if (s.tokens > (s.has_norm ? kFewTokens : 1) || s.k % kChunkColumns) return false;
  if (!has_units(s, 1) && !has_units(s, 2)) return false;
  const int shared = most_shared(device);
  return stream_shared(s, choose_stream(s, device)).bytes <= shared;
}

}  // namespace orin::int4_gemm
