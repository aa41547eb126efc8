// SPDX-License-Identifier: Apache-2.0
// Which kernels run a gated delta step, as a function of its shape and the device.
#pragma once

#include "common/driver.h"
#include "kernels/gated_delta/params.h"

namespace orin {

// Token by token up to this many tokens per sequence, by chunks above: four launches and the fixed cost of a chunk
// against one launch and the cost of each token. Measured on an H200 with heads of 128: by chunks 20.5 us for 1
// sequence and 34 us for 8; token by token 0.6 us each and 2.6 us where columns are split, else 21 us for 16 and by
// extrapolation 1.1 us for each further one.
constexpr int kMaxStepTokens = 24;

struct GatedDeltaChoice {
  bool is_chunked;
  bool is_split;    // token by token: a head's columns over several blocks, which wait for each other
  int carry_tiles;  // by chunks: 1 or 2 tiles of 16 columns in a block of the kernel `carry`
};

constexpr GatedDeltaChoice choose_gated_delta(int tokens, int sequences, int value_heads, int dim, bool wants_steps,
                                              const Device& device) {
  // Blocks that wait for each other must all run: at most one per multiprocessor, half of what fits.
  const int heads = sequences * value_heads;
  const bool is_split = dim > kSplitColumns && heads * (dim / kSplitColumns) <= device.sm_count;
  // Two tiles share what their block loads; but first every multiprocessor must have a block.
  const int carry_tiles = heads * (dim / 16) <= device.sm_count ? 1 : 2;
  return {!wants_steps && dim >= 64 && tokens > kMaxStepTokens * sequences, is_split, carry_tiles};
}

// Places for chunks in the workspace, one per block of the grid: see first_place in chunk.cuh. The tokens behind the
// last sequence count as one sequence more.
constexpr int chunk_places(int tokens, int sequences) { return tokens / kChunk + sequences + 1; }

}  // namespace orin
