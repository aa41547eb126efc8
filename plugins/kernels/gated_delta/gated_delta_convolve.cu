// SPDX-License-Identifier: Apache-2.0
// First of the chunked kernels (chunk.cuh): a block convolves one chunk of one head of q, k or v. A warp takes 8
// tokens, a lane D/32 neighbouring channels, so that a warp holds whole rows to normalise.
#include "kernels/gated_delta/chunk.cuh"

using namespace orin;

namespace {

constexpr int kRows = kChunk / 8;        // of a warp
constexpr int kHistory = kConvTaps - 1;  // inputs before the first

template <int D>
__device__ void convolve(const GatedDeltaParams& p) {
  begin_in_turn();
  constexpr int N = D / 32;
  const Chunk at = chunk_at(p, blockIdx.x);
  if (at.count == 0 || at.slot < 0) return;
  const int head = blockIdx.y, channel = head * D + N * (threadIdx.x % 32), row0 = threadIdx.x / 32 * kRows;
  const int num_channels = conv_heads(p) * D, row_halves = num_channels + p.value_heads * D;

  const half* in = static_cast<const half*>(p.qkvz) + size_t(at.token + row0) * row_halves + channel;
  Halves<N> x[kHistory + kRows] = {};
#pragma unroll
  for (int i = 0; i < kHistory + kRows; ++i) {
    const int row = row0 + i - kHistory;
    if (row < at.count && (row >= 0 || !at.is_first)) x[i] = load_halves<N>(in + (i - kHistory) * row_halves);
  }
  if (row0 == 0 && at.is_first && !at.is_fresh) {
    const half* conv = static_cast<const half*>(p.conv) + (size_t(at.slot) * num_channels + channel) * kHistory;
#pragma unroll
    for (int i = 0; i < kHistory; ++i) {
#pragma unroll
      for (int n = 0; n < N; n += 2) {
        const half2 pair = {conv[n * kHistory + i], conv[(n + 1) * kHistory + i]};
        x[i].pair[n / 2] = *reinterpret_cast<const uint32*>(&pair);
      }
    }
  }

  float tap[N][kConvTaps];
#pragma unroll
  for (int n = 0; n < N; ++n) {
    widen(load_halves<kConvTaps>(static_cast<const half*>(p.conv_weight) + (channel + n) * kConvTaps), tap[n]);
  }
  float window[kConvTaps][N];
#pragma unroll
  for (int i = 0; i < kHistory; ++i) widen(x[i], window[i]);
  half* out = part<half>(p.qkv, at.place, conv_heads(p), head, kChunk * D) + row0 * D + N * (threadIdx.x % 32);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    widen(x[i + kHistory], window[kHistory]);
    float c[N];
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kConvTaps; ++j) sum += tap[n][j] * window[j][n];
      c[n] = row0 + i < at.count ? silu(sum) : 0.f;
#pragma unroll
      for (int j = 0; j < kHistory; ++j) window[j][n] = window[j + 1][n];
    }
    if (head < 2 * p.key_heads) {
      float squares = 0;
#pragma unroll
      for (int n = 0; n < N; ++n) squares += c[n] * c[n];
      const float scale = rsqrtf(sum_over(squares) + kL2Eps);
#pragma unroll
      for (int n = 0; n < N; ++n) c[n] *= scale;
    }
    store_halves(out + i * D, c);
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256, 4) gated_delta_convolve_64(GatedDeltaParams p) { convolve<64>(p); }
extern "C" __global__ void __launch_bounds__(256, 4) gated_delta_convolve_128(GatedDeltaParams p) { convolve<128>(p); }
