// SPDX-License-Identifier: Apache-2.0
// Which kernel computes a product, as a pure function of its shape and the device.
#pragma once

#include <initializer_list>

#include "common/driver.h"

namespace orin {

// The tallest product that is streamed: the rows of one mma tile. Where tiles would leave most of the GPU idle, taller
// ones are too; the weight is then read several times, from the L2 cache.
constexpr int kMostStreamedTokens = 16;
constexpr int kMostStreamedTokensOfSmall = 64;

// Whether each value of y gets a block of its own: products that are so small that only latency counts.
constexpr bool is_of_dots(int outputs, int n, int bits, bool swiglu) {
  return bits == 16 && !swiglu && outputs <= 8 && n <= 256;
}

struct LinearChoice {
  // Streamed: 8, 32 or 128 columns of y per block, with 8, 4 or 1 warps along K. Tiled: tile x tile values of y per
  // block.
  enum Kind : int { kNarrow, kMiddle, kWide, kTiled } kind;
  int columns;  // of y, of one block
  int tokens;   // of one block
};

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

constexpr int num_tiles(int outputs, int n, int tile) { return ceil_div(outputs, tile) * ceil_div(n, tile); }

constexpr LinearChoice choose_linear(int outputs, int n, const Device& device) {
  const int sms = device.sm_count;
  const bool is_small = outputs <= kMostStreamedTokensOfSmall && 4 * num_tiles(outputs, n, 32) < sms;
  if (outputs <= kMostStreamedTokens || is_small) {
    // The wider the block, the fewer times x is normalised; but every SM must get one.
    const int height = outputs > 8 ? 16 : 8;
    if (ceil_div(n, 128) >= 2 * sms) return {LinearChoice::kWide, 128, height};
    if (ceil_div(n, 32) >= sms) return {LinearChoice::kMiddle, 32, height};
    return {LinearChoice::kNarrow, 8, ceil_div(n, 8) * ceil_div(outputs, 4) <= sms ? 4 : 8};
  }
  for (int tile : {128, 64}) {
    // A quarter of the SMs may idle: half the tile would read twice as much. Half the tile must not be padding.
    if (2 * outputs > tile && 4 * num_tiles(outputs, n, tile) >= 3 * sms) return {LinearChoice::kTiled, tile, tile};
  }
  return {LinearChoice::kTiled, 32, 32};
}

}  // namespace orin
