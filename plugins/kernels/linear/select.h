// SPDX-License-Identifier: Apache-2.0
// Which kernel computes a product, as a pure function of its shape and the device.
#pragma once

#include <initializer_list>

#include "common/driver.h"

namespace orin {

// The tallest product of the kernels that only stream the weight: the 16 rows of one mma tile. Above it the tiled
// kernels read the weight once per block of tokens and are bound by arithmetic.
constexpr int kMostStreamedTokens = 16;

struct LinearChoice {
  // Streamed: 8 columns of y per block and all its warps along K, for matrices too small to fill the GPU otherwise, or
  // 128 columns with little of K per warp. Tiled: blocks of tile x tile values of y.
  enum Kind : int { kStreamedNarrow, kStreamedWide, kTiled } kind;
  int tile;  // columns of y of one block; for kTiled also its tokens
};

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

constexpr LinearChoice choose_linear(int outputs, int n, const Device& device) {
  if (outputs <= kMostStreamedTokens) {
    // Wide blocks must come to two for each SM, or SMs would idle while others stream.
    if (ceil_div(n, 128) >= 2 * device.sm_count) return {LinearChoice::kStreamedWide, 128};
    return {LinearChoice::kStreamedNarrow, 8};
  }
  for (int tile : {128, 64}) {
    if (ceil_div(outputs, tile) * ceil_div(n, tile) >= device.sm_count) return {LinearChoice::kTiled, tile};
  }
  return {LinearChoice::kTiled, 32};
}

}  // namespace orin
