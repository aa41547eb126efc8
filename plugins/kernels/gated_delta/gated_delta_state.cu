// SPDX-License-Identifier: Apache-2.0
// Second of the chunked kernels (chunk.cuh): carries the state through a sequence's chunks. A warp owns 16 columns of one
// head's state for the whole sequence, transposed, in its accumulators: columns of S depend on no other columns, so warps
// never wait for each other's results, only for the tiles that the block loads two chunks ahead.
//
// Also moves the convolution's state on: `prepare` was its last reader.
#include "kernels/gated_delta/chunk.cuh"

using namespace orin;

namespace {

constexpr int kStages = 3;

template <int D, int W>
struct alignas(16) Stage {
  half k[kChunk * D];
  half t[kChunk * kChunk];
  half v[kChunk * 16 * W];  // the block's columns
  float decay[2][kChunk];   // exp(G), exp(G_last - G)
};

template <int D, int W>
__device__ void load_stage(const GatedDeltaParams& p, Stage<D, W>& to, int place, int head, int column0) {
  const int key_head = head / (p.value_heads / p.key_heads);
  const half* k = part<D>(p.k, place, p.key_heads, key_head, kChunk * D);
  const half* v = part<D>(p.v, place, p.value_heads, head, kChunk * D) + column0;
  const half* t = part<D>(p.t, place, p.value_heads, head, kChunk * kChunk);
  const float* decay = p.decay + ((size_t(place) * p.value_heads + head) * 3 + 1) * kChunk;
  constexpr int threads = 32 * W;
#pragma unroll 4
  for (int i = threadIdx.x; i < kChunk * D / 8; i += threads) {
    const int row = i / (D / 8), column = i % (D / 8) * 8;
    cp_async16(to.k + swizzled<D>(row, column), k + row * D + column);
  }
#pragma unroll 4
  for (int i = threadIdx.x; i < kChunk * kChunk / 8; i += threads) {
    const int row = i / (kChunk / 8), column = i % (kChunk / 8) * 8;
    cp_async16(to.t + swizzled<kChunk>(row, column), t + row * kChunk + column);
  }
#pragma unroll
  for (int i = threadIdx.x; i < kChunk * 2 * W; i += threads) {
    const int row = i / (2 * W), column = i % (2 * W) * 8;
    cp_async16(to.v + swizzled<16 * W>(row, column), v + row * D + column);
  }
  if (threadIdx.x < 2 * kChunk / 4) cp_async16(to.decay[0] + 4 * threadIdx.x, decay + 4 * threadIdx.x);
}

// The last three inputs become the convolution's state; each thread of the sequence's blocks has its own channels.
__device__ void shift_conv(const GatedDeltaParams& p, const Sequence& s, int dim) {
  const int num_channels = channels(p, dim);
  const size_t row_halves = num_channels + p.value_heads * dim;
  for (int c = blockIdx.x * blockDim.x + threadIdx.x; c < num_channels; c += gridDim.x * blockDim.x) {
    half* conv = static_cast<half*>(p.conv) + (size_t(s.slot) * num_channels + c) * (kConvTaps - 1);
    half input[kConvTaps - 1];
#pragma unroll
    for (int i = 0; i < kConvTaps - 1; ++i) {
      const int token = s.end - (kConvTaps - 1) + i, before = token - s.begin + kConvTaps - 1;
      input[i] = token >= s.begin ? static_cast<const half*>(p.qkvz)[token * row_halves + c]
                 : s.is_fresh     ? half(0.f)
                                  : conv[before];
    }
#pragma unroll
    for (int i = 0; i < kConvTaps - 1; ++i) conv[i] = input[i];
  }
}

template <int D, int W>
__device__ void carry(const GatedDeltaParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  Stage<D, W>* stages = reinterpret_cast<Stage<D, W>*>(memory);
  constexpr int blocks = D / (16 * W);  // of one head
  const int head = blockIdx.x / blocks, column0 = blockIdx.x % blocks * 16 * W;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const Sequence s = sequence(p, blockIdx.y);
  if (s.slot < 0 || s.begin >= s.end) return;
  const int place0 = first_place(s.begin, blockIdx.y), chunks = (s.end - s.begin + kChunk - 1) / kChunk;

#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < chunks) load_stage(p, stages[i], place0 + i, head, column0);
    cp_async_commit();
  }
  shift_conv(p, s, D);

  // state[n]: columns g, g + 8 of the tile (rows here), state rows 8n + 2q + {0, 1}.
  float* rec = p.rec + ((size_t(s.slot) * p.value_heads + head) * D + 2 * q) * D + column0 + 16 * warp + g;
  float state[D / 8][4];
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) state[n][e] = s.is_fresh ? 0.f : rec[(8 * n + e % 2) * D + e / 2 * 8];
  }

  for (int chunk = 0; chunk < chunks; ++chunk) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    if (chunk + kStages - 1 < chunks) {
      load_stage(p, stages[(chunk + kStages - 1) % kStages], place0 + chunk + kStages - 1, head, column0);
    }
    cp_async_commit();
    const Stage<D, W>& in = stages[chunk % kStages];
    const size_t tile = (size_t(place0 + chunk) * p.value_heads + head) * (D / 16) + column0 / 16 + warp;
    uint4* states = static_cast<uint4*>(p.states) + tile * (D / 16) * 32 + lane;
    uint4* deltas = static_cast<uint4*>(p.delta) + tile * (kChunk / 16) * 32 + lane;

    // S^T k^T
    float acc[kChunk / 8][4] = {};
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      uint32 a[4], b[2][2];
      to_operand(a, state[2 * step], state[2 * step + 1]);
      states[step * 32] = make_uint4(a[0], a[1], a[2], a[3]);
#pragma unroll
      for (int n = 0; n < kChunk / 16; ++n) {
        load_b_transposed<D>(b, in.k, 16 * n, 16 * step);
        mma(acc[2 * n], a, b[0]);
        mma(acc[2 * n + 1], a, b[1]);
      }
    }

    // r^T = v^T - exp(G) S^T k^T, as A operands
    uint32 r[kChunk / 16][4];
#pragma unroll
    for (int n = 0; n < kChunk / 16; ++n) {
      uint32 v[4];  // tokens 16n + 2q + {0, 1} (v[0], v[2]) and + 8 (v[1], v[3]); columns g and g + 8
      ldmatrix_x4_trans(v, in.v + swizzled<16 * W>(16 * n + lane % 16, 16 * warp + lane / 16 * 8));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 decay = *reinterpret_cast<const float2*>(&in.decay[0][16 * n + 8 * i + 2 * q]);
        const float2 low = unpack(v[i]), high = unpack(v[2 + i]);
        const float(&c)[4] = acc[2 * n + i];
        r[n][2 * i] = pack(low.x - decay.x * c[0], low.y - decay.y * c[1]);
        r[n][2 * i + 1] = pack(high.x - decay.x * c[2], high.y - decay.y * c[3]);
      }
    }

    // delta^T = r^T T^T, block row by block row of T; then decayed to the chunk's end, as A operands
    uint32 decayed[kChunk / 16][4];
#pragma unroll
    for (int n = 0; n < kChunk / 16; ++n) {
      float d[2][4] = {};
#pragma unroll
      for (int step = 0; step <= n; ++step) {
        uint32 b[2][2];
        load_b_transposed<kChunk>(b, in.t, 16 * n, 16 * step);
        mma(d[0], r[step], b[0]);
        mma(d[1], r[step], b[1]);
      }
      uint32 a[4];
      to_operand(a, d[0], d[1]);
      deltas[n * 32] = make_uint4(a[0], a[1], a[2], a[3]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 decay = *reinterpret_cast<const float2*>(&in.decay[1][16 * n + 8 * i + 2 * q]);
        d[i][0] *= decay.x, d[i][1] *= decay.y, d[i][2] *= decay.x, d[i][3] *= decay.y;
      }
      to_operand(decayed[n], d[0], d[1]);
    }

    // S^T = exp(G_last) S^T + delta^T k
    const float decay = in.decay[0][kChunk - 1];
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) state[2 * n][e] *= decay, state[2 * n + 1][e] *= decay;
#pragma unroll
      for (int step = 0; step < kChunk / 16; ++step) {
        uint32 b[2][2];
        load_b<D>(b, in.k, 16 * step, 16 * n);
        mma(state[2 * n], decayed[step], b[0]);
        mma(state[2 * n + 1], decayed[step], b[1]);
      }
    }
  }

#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) rec[(8 * n + e % 2) * D + e / 2 * 8] = state[n][e];
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32) gated_delta_state_64_1(GatedDeltaParams p) { carry<64, 1>(p); }
extern "C" __global__ void __launch_bounds__(64) gated_delta_state_64_2(GatedDeltaParams p) { carry<64, 2>(p); }
extern "C" __global__ void __launch_bounds__(128) gated_delta_state_64_4(GatedDeltaParams p) { carry<64, 4>(p); }
extern "C" __global__ void __launch_bounds__(32) gated_delta_state_128_1(GatedDeltaParams p) { carry<128, 1>(p); }
extern "C" __global__ void __launch_bounds__(64) gated_delta_state_128_2(GatedDeltaParams p) { carry<128, 2>(p); }
extern "C" __global__ void __launch_bounds__(128) gated_delta_state_128_4(GatedDeltaParams p) { carry<128, 4>(p); }
