// SPDX-License-Identifier: Apache-2.0
// Third of the chunked kernels (chunk.cuh): carries the state through a sequence's chunks. A warp owns 16 columns of one
// head's state for the whole sequence, transposed, in its accumulators: columns of S depend on no other columns, so warps
// never wait for each other's results, only for the tiles that the block loads two chunks ahead.
//
// Also moves the convolution's state on: `convolve` was its last reader.
#include "kernels/gated_delta/chunk.cuh"

using namespace orin;

namespace {

constexpr int kStages = 3;

template <int D, int W>
struct Stage {
  Tile<kChunk, D> k;
  Tile<kChunk, kChunk> t;
  Tile<kChunk, 16 * W> v;  // the block's columns
  float decay[2][kChunk];  // exp(G), exp(G_last - G)
};

template <int D, int W>
__device__ __forceinline__ void load_stage(const GatedDeltaParams& p, Stage<D, W>& to, int place, int head,
                                           int column0) {
  const int key_head = p.key_heads + head / (p.value_heads / p.key_heads), heads = conv_heads(p);
  to.k.template copy_from<D, 32 * W>(part<half>(p.qkv, place, heads, key_head, kChunk * D), threadIdx.x);
  to.t.template copy_from<kChunk, 32 * W>(part<half>(p.t, place, p.value_heads, head, kChunk * kChunk), threadIdx.x);
  to.v.template copy_from<D, 32 * W>(
      part<half>(p.qkv, place, heads, 2 * p.key_heads + head, kChunk * D) + column0, threadIdx.x);
  const float* decay = part<float>(p.decay, place, p.value_heads, head, 3 * kChunk) + kChunk;
  if (threadIdx.x < 2 * kChunk / 4) cp_async16(to.decay[0] + 4 * threadIdx.x, decay + 4 * threadIdx.x);
}

// The last three inputs become the convolution's state; each thread of the sequence's blocks has its own channels.
__device__ void shift_conv(const GatedDeltaParams& p, const Sequence& s, int dim) {
  constexpr int history = kConvTaps - 1;
  const int num_channels = conv_heads(p) * dim;
  const size_t row_halves = num_channels + p.value_heads * dim;
  for (int c = blockIdx.x * blockDim.x + threadIdx.x; c < num_channels; c += gridDim.x * blockDim.x) {
    half* conv = static_cast<half*>(p.conv) + (size_t(s.slot) * num_channels + c) * history;
    half input[history];
#pragma unroll
    for (int i = 0; i < history; ++i) {
      const int token = s.end - history + i;
      input[i] = token >= s.begin ? static_cast<const half*>(p.qkvz)[token * row_halves + c]
                 : s.is_fresh     ? half(0.f)
                                  : conv[token - s.begin + history];
    }
#pragma unroll
    for (int i = 0; i < history; ++i) conv[i] = input[i];
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

  const int tile = column0 / 16 + warp;
  uint4* states = part<uint4>(p.states, place0, p.value_heads, head, D * D / 8) + tile * (D / 16) * 32 + lane;
  uint4* deltas = part<uint4>(p.delta, place0, p.value_heads, head, kChunk * D / 8) + tile * (kChunk / 16) * 32 + lane;
  for (int chunk = 0, stage = 0; chunk < chunks; ++chunk) {
    cp_async_wait<kStages - 2>();
    __syncthreads();
    if (chunk + kStages - 1 < chunks) {
      load_stage(p, stages[stage == 0 ? kStages - 1 : stage - 1], place0 + chunk + kStages - 1, head, column0);
    }
    cp_async_commit();
    const Stage<D, W>& in = stages[stage];

    // S^T k^T
    float acc[kChunk / 8][4] = {};
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      uint32 a[4], b[2][2];
      to_operand(a, state[2 * step], state[2 * step + 1]);
      states[step * 32] = make_uint4(a[0], a[1], a[2], a[3]);
#pragma unroll
      for (int n = 0; n < kChunk / 16; ++n) {
        in.k.load_b_transposed(b, 16 * n, 16 * step);
        mma(acc[2 * n], a, b[0]);
        mma(acc[2 * n + 1], a, b[1]);
      }
    }

    // r^T = v^T - exp(G) S^T k^T, as A operands
    uint32 r[kChunk / 16][4];
#pragma unroll
    for (int n = 0; n < kChunk / 16; ++n) {
      uint32 v[2][2];  // [columns g or g + 8][tokens 16n + 2q + {0, 1} or + 8]
      in.v.load_b(v, 16 * n, 16 * warp);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 decay = *reinterpret_cast<const float2*>(&in.decay[0][16 * n + 8 * i + 2 * q]);
        const float2 low = unpack(v[0][i]), high = unpack(v[1][i]);
        const float(&c)[4] = acc[2 * n + i];
        r[n][2 * i] = pack(low.x - decay.x * c[0], low.y - decay.y * c[1]);
        r[n][2 * i + 1] = pack(high.x - decay.x * c[2], high.y - decay.y * c[3]);
      }
    }

    // delta^T = r^T T^T, as far as T is not zero; stored, then decayed to the chunk's end, as A operands
    float d[kChunk / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kChunk / 16; ++step) {
#pragma unroll
      for (int n = step; n < kChunk / 16; ++n) {
        uint32 b[2][2];
        in.t.load_b_transposed(b, 16 * n, 16 * step);
        mma(d[2 * n], r[step], b[0]);
        mma(d[2 * n + 1], r[step], b[1]);
      }
    }
    uint32 decayed[kChunk / 16][4];
#pragma unroll
    for (int n = 0; n < kChunk / 16; ++n) {
      uint32 a[4];
      to_operand(a, d[2 * n], d[2 * n + 1]);
      deltas[n * 32] = make_uint4(a[0], a[1], a[2], a[3]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 decay = *reinterpret_cast<const float2*>(&in.decay[1][16 * n + 8 * i + 2 * q]);
        float(&c)[4] = d[2 * n + i];
        c[0] *= decay.x, c[1] *= decay.y, c[2] *= decay.x, c[3] *= decay.y;
      }
      to_operand(decayed[n], d[2 * n], d[2 * n + 1]);
    }

    // S^T = exp(G_last) S^T + delta^T k
    const float decay = in.decay[0][kChunk - 1];
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) state[n][e] *= decay;
    }
#pragma unroll
    for (int step = 0; step < kChunk / 16; ++step) {
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        uint32 b[2][2];
        in.k.load_b(b, 16 * step, 16 * n);
        mma(state[2 * n], decayed[step], b[0]);
        mma(state[2 * n + 1], decayed[step], b[1]);
      }
    }
    states += p.value_heads * (D * D / 8);
    deltas += p.value_heads * (kChunk * D / 8);
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }

#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) rec[(8 * n + e % 2) * D + e / 2 * 8] = state[n][e];
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32, 1) gated_delta_carry_64_1(GatedDeltaParams p) { carry<64, 1>(p); }
extern "C" __global__ void __launch_bounds__(64, 1) gated_delta_carry_64_2(GatedDeltaParams p) { carry<64, 2>(p); }
extern "C" __global__ void __launch_bounds__(128, 1) gated_delta_carry_64_4(GatedDeltaParams p) { carry<64, 4>(p); }
extern "C" __global__ void __launch_bounds__(32, 1) gated_delta_carry_128_1(GatedDeltaParams p) { carry<128, 1>(p); }
extern "C" __global__ void __launch_bounds__(64, 1) gated_delta_carry_128_2(GatedDeltaParams p) { carry<128, 2>(p); }
extern "C" __global__ void __launch_bounds__(128, 1) gated_delta_carry_128_4(GatedDeltaParams p) { carry<128, 4>(p); }
