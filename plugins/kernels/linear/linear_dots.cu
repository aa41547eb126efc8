// SPDX-License-Identifier: Apache-2.0
// OrinLinear of few rows of W for few tokens, such as the gates of a gated-delta layer: a matter of latency alone. A
// block makes one value of y, each of its warps a part of K. All that a warp needs is on its way before it computes;
// the norm's 1/rms is found beside the product, which it scales in the end, so that nothing waits for it.
#include "kernels/linear/epilogue.cuh"

using namespace orin;

namespace {

constexpr int kWarps = 4;
constexpr int kColumns = 8 * 32 * kWarps;  // of K, that a block reads at a time
constexpr int kDepth = 3;                  // of these in flight

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kWarps) linear_dots_float16(LinearParams p) {
  begin_in_turn();
  __shared__ float2 parts[kWarps];
  const int column = blockIdx.x, output = blockIdx.y, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int row = wanted_row(p.rows, output, p.tokens);
  float dot = 0.0f, squares = 0.0f;
  if (row >= 0) {
    const half* x = static_cast<const half*>(p.x) + size_t(row) * p.k;
    const half* w = static_cast<const half*>(p.weight) + size_t(column) * p.k;
    for (int begin = 8 * threadIdx.x; begin < p.k; begin += kDepth * kColumns) {
      uint4 weights[kDepth], values[kDepth];
      Norm norms[kDepth];
#pragma unroll
      for (int i = 0; i < kDepth; ++i) {
        const int k = begin + i * kColumns;
        const bool is_inside = k < p.k;
        weights[i] = is_inside ? load_streaming(w + k) : uint4{};
        values[i] = is_inside ? *reinterpret_cast<const uint4*>(x + k) : uint4{};
        norms[i] = p.norm && is_inside ? load_norm(p.norm + k) : Norm{{{1, 1}, {1, 1}, {1, 1}, {1, 1}}};
      }
#pragma unroll
      for (int i = 0; i < kDepth; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 v = __half22float2(reinterpret_cast<const half2*>(&values[i])[j]);
          const float2 u = __half22float2(reinterpret_cast<const half2*>(&weights[i])[j]);
          dot += v.x * norms[i].pairs[j].x * u.x + v.y * norms[i].pairs[j].y * u.y;
          squares += v.x * v.x + v.y * v.y;
        }
      }
    }
  }
  dot = warp_sum(dot), squares = warp_sum(squares);
  if (lane == 0) parts[warp] = make_float2(dot, squares);
  __syncthreads();
  if (threadIdx.x) return;
  for (int i = 1; i < kWarps; ++i) dot += parts[i].x, squares += parts[i].y;
  if (p.norm) dot *= inverse_rms(squares, p.k, p.norm_eps);
  if (p.bias) dot += __half2float(static_cast<const half*>(p.bias)[column]);
  store(p, size_t(output) * p.n + column, dot, row >= 0);
}
