// SPDX-License-Identifier: Apache-2.0
// How many blocks share a row, as a pure function of the shape and the device.
#pragma once

#include "common/driver.h"

namespace orin {

// A block per part while all of them run at once, two to an SM; else so many that they do, with several parts each.
constexpr int sampling_blocks(int rows, int parts, const Device& device) {
  const int blocks = (2 * device.sm_count + rows - 1) / rows;
  return blocks < parts ? blocks : parts;
}

}  // namespace orin
