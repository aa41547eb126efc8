// SPDX-License-Identifier: Apache-2.0
// Which kernels run a gated delta step, as a function of its shape and the device.
#pragma once

#include "common/driver.h"
#include "kernels/gated_delta/params.h"

namespace orin {

// Token by token up to this many tokens per sequence, by chunks above: three launches and the fixed cost of a chunk
// against one launch and the cost of each token.
constexpr int kMaxStepTokens = 16;

struct GatedDeltaChoice {
  bool is_chunked;
  int carry_warps;  // 1, 2 or 4: 16-column tiles of one head's state in a block of the chunked kernel `carry`
};

// Blocks share what they load among their warps; but first every multiprocessor must have one.
constexpr GatedDeltaChoice choose_gated_delta(int tokens, int sequences, int value_heads, int dim, bool wants_steps,
                                              const Device& device) {
  const int tiles = sequences * value_heads * (dim / 16);
  const int warps = tiles >= 4 * device.sm_count ? 4 : tiles >= 2 * device.sm_count ? 2 : 1;
  return {!wants_steps && dim >= 64 && tokens > kMaxStepTokens * sequences, warps};
}

// Places for chunks in the workspace, one per block of the grid: see first_place in chunk.cuh. The tokens behind the
// last sequence count as one sequence more.
constexpr int chunk_places(int tokens, int sequences) { return tokens / kChunk + sequences + 1; }

}  // namespace orin
