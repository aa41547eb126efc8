// SPDX-License-Identifier: Apache-2.0
// What select.h has and chooses above 16 tokens, for programs without a GPU.
//
//   int4_gemm_choices SM_COUNT SHARED_BYTES < lines of "tokens n k"
//
// prints the number of tiles, "tokens rows shares" of each, then the chosen
// tile with its splits and group_m for each line.
#include <cstdio>
#include <cstdlib>

#include "kernels/int4_gemm/select.h"

int main(int, char **arguments) {
  using namespace orin::int4_gemm;
  orin::Device device;
  device.sm_count = std::atoi(arguments[1]),
  device.max_shared_bytes = std::atoi(arguments[2]);
  std::printf("%d\n", kNumTiles);
  for (const Tile &tile : kTiles)
    std::printf("%d %d %d\n", tile.tokens, tile.rows, tile.shares);
  Shape shape{0, 0, 0, 128, false, false, false};
  while (std::scanf("%d %d %d", &shape.tokens, &shape.n, &shape.k) == 3) {
    const Choice c = choose(shape, device);
    const Tile &tile = kTiles[c.tile];
    std::printf("%d %d %d %d %d\n", tile.tokens, tile.rows, tile.shares,
                c.splits, c.group_m);
  }
}
