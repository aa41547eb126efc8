// SPDX-License-Identifier: Apache-2.0
// Third of the chunked kernels (chunk.cuh): carries the state through a sequence's chunks. A block of four warps owns M
// tiles of 16 columns of one head's state, transposed, in its accumulators, for the whole sequence: columns of S depend
// on no other columns. All that is sequential is here, so it is cut for the shortest way through one chunk: warp w has
//
//   rows w D/4 and following of S          of the 64 tokens, 16 w and following
//   S as float16 -> all warps       P = S^T k^T, r -> all warps       delta -> all warps       S += delta^T k
//
// and what goes to all warps passes through shared memory in fragment order. Tiles are loaded two chunks ahead.
//
// Also moves the convolution's state on: `convolve` was its last reader.
#include "kernels/gated_delta/chunk.cuh"

using namespace orin;

namespace {

constexpr int kStages = 3;

constexpr int kWarps = kChunk / 16;
constexpr int kThreads = 32 * kWarps;

template <int D, int M>
struct Stage {
  Tile<kChunk, D> k;
  Tile<kChunk, kChunk> t;
  Tile<kChunk, 16 * M> v;  // the block's columns
  float decay[2][kChunk];  // exp(G), exp(G_last - G)
};

template <int D, int M>
struct Shared {
  Stage<D, M> stages[kStages];
  uint4 state[M][D / 16][32];     // A fragments: by tile, contraction step, lane
  uint4 residual[M][kWarps][32];  // r^T
  uint4 decayed[M][kWarps][32];   // (exp(G_last - G) delta)^T
};

template <int D, int M>
__device__ __forceinline__ void load_stage(const GatedDeltaParams& p, Stage<D, M>& to, int place, int head,
                                           int column0) {
  const int key_head = p.key_heads + head / (p.value_heads / p.key_heads), heads = conv_heads(p);
  to.k.template copy_from<D, kThreads>(part<half>(p.qkv, place, heads, key_head, kChunk * D), threadIdx.x);
  to.t.template copy_from<kChunk, kThreads>(part<half>(p.t, place, p.value_heads, head, kChunk * kChunk), threadIdx.x);
  to.v.template copy_from<D, kThreads>(part<half>(p.qkv, place, heads, 2 * p.key_heads + head, kChunk * D) + column0,
                                       threadIdx.x);
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

__device__ __forceinline__ uint4 as_vector(const uint32 (&a)[4]) { return make_uint4(a[0], a[1], a[2], a[3]); }
__device__ __forceinline__ void load_fragment(uint32 (&a)[4], const uint4& from) {
  const uint4 v = from;
  a[0] = v.x, a[1] = v.y, a[2] = v.z, a[3] = v.w;
}

template <int D, int M>
__device__ void carry(const GatedDeltaParams& p) {
  begin_in_turn();
  extern __shared__ __align__(16) unsigned char memory[];
  Shared<D, M>& shared = *reinterpret_cast<Shared<D, M>*>(memory);
  constexpr int blocks = D / (16 * M);        // of one head
  constexpr int own_steps = D / 16 / kWarps;  // 16-row steps of a warp's rows of S
  const int head = blockIdx.x / blocks, column0 = blockIdx.x % blocks * 16 * M;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  const Sequence s = sequence(p, blockIdx.y);
  if (s.slot < 0 || s.begin >= s.end) return;
  const int place0 = first_place(s.begin, blockIdx.y), chunks = (s.end - s.begin + kChunk - 1) / kChunk;

#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < chunks) load_stage(p, shared.stages[i], place0 + i, head, column0);
    cp_async_commit();
  }
  shift_conv(p, s, D);

  // state[m][n]: columns g, g + 8 of tile m (rows here), state rows row0 + 8n + 2q + {0, 1}.
  const int row0 = warp * (D / kWarps);
  float* rec = p.rec + ((size_t(s.slot) * p.value_heads + head) * D + row0 + 2 * q) * D + column0 + g;
  float state[M][2 * own_steps][4];
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < 2 * own_steps; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        state[m][n][e] = s.is_fresh ? 0.f : rec[(8 * n + e % 2) * D + 16 * m + e / 2 * 8];
      }
    }
  }

  const int tile0 = column0 / 16;
  uint4* states = part<uint4>(p.states, place0, p.value_heads, head, D * D / 8) + tile0 * (D / 16) * 32 + lane;
  uint4* deltas = part<uint4>(p.delta, place0, p.value_heads, head, kChunk * D / 8) + tile0 * kWarps * 32 + lane;
  cp_async_wait<kStages - 2>();
  __syncthreads();
  for (int chunk = 0, stage = 0; chunk < chunks; ++chunk) {
    const Stage<D, M>& in = shared.stages[stage];
    // Operands that do not depend on other warps are read before each barrier, to be there behind it.
    uint32 k[D / 16][2][2];
#pragma unroll
    for (int step = 0; step < D / 16; ++step) in.k.load_b_transposed(k[step], 16 * warp, 16 * step);
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int i = 0; i < own_steps; ++i) {
        uint32 a[4];
        to_operand(a, state[m][2 * i], state[m][2 * i + 1]);
        const int step = warp * own_steps + i;
        shared.state[m][step][lane] = as_vector(a);
        states[(m * (D / 16) + step) * 32] = as_vector(a);
      }
    }
    __syncthreads();
    if (chunk + kStages - 1 < chunks) {
      const int ahead = stage == 0 ? kStages - 1 : stage - 1;
      load_stage(p, shared.stages[ahead], place0 + chunk + kStages - 1, head, column0);
    }
    cp_async_commit();

    // S^T k^T for the warp's tokens; odd and even steps apart, so that sums wait less for each other
    float acc[M][2][2][4] = {};
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
        uint32 a[4];
        load_fragment(a, shared.state[m][step][lane]);
        mma(acc[m][step % 2][0], a, k[step][0]);
        mma(acc[m][step % 2][1], a, k[step][1]);
      }
    }
    uint32 t[kWarps][2][2];
#pragma unroll
    for (int step = 0; step < kWarps; ++step) in.t.load_b_transposed(t[step], 16 * warp, 16 * step);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      uint32 v[2][2], r[4];  // v: [columns g or g + 8][tokens 2q + {0, 1} or + 8]
      in.v.load_b(v, 16 * warp, 16 * m);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 decay = *reinterpret_cast<const float2*>(&in.decay[0][16 * warp + 8 * i + 2 * q]);
        const float2 low = unpack(v[0][i]), high = unpack(v[1][i]);
        const float (&even)[4] = acc[m][0][i];
        const float (&odd)[4] = acc[m][1][i];
        r[2 * i] = pack(low.x - decay.x * (even[0] + odd[0]), low.y - decay.y * (even[1] + odd[1]));
        r[2 * i + 1] = pack(high.x - decay.x * (even[2] + odd[2]), high.y - decay.y * (even[3] + odd[3]));
      }
      shared.residual[m][warp][lane] = as_vector(r);
    }
    __syncthreads();

    // delta^T = r^T T^T for the warp's tokens: T is lower triangular
    float delta[M][2][4] = {};
#pragma unroll
    for (int step = 0; step < kWarps; ++step) {
      if (step > warp) break;
#pragma unroll
      for (int m = 0; m < M; ++m) {
        uint32 a[4];
        load_fragment(a, shared.residual[m][step][lane]);
        mma(delta[m][0], a, t[step][0]);
        mma(delta[m][1], a, t[step][1]);
      }
    }
    uint32 rows[kWarps][own_steps][2][2];  // k again, the warp's rows of S now along n
#pragma unroll
    for (int step = 0; step < kWarps; ++step) {
#pragma unroll
      for (int n = 0; n < own_steps; ++n) in.k.load_b(rows[step][n], 16 * step, row0 + 16 * n);
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
      uint32 a[4];
      to_operand(a, delta[m][0], delta[m][1]);
      deltas[(m * kWarps + warp) * 32] = as_vector(a);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 decay = *reinterpret_cast<const float2*>(&in.decay[1][16 * warp + 8 * i + 2 * q]);
        float (&c)[4] = delta[m][i];
        c[0] *= decay.x, c[1] *= decay.y, c[2] *= decay.x, c[3] *= decay.y;
      }
      to_operand(a, delta[m][0], delta[m][1]);
      shared.decayed[m][warp][lane] = as_vector(a);
    }
    const float decay = in.decay[0][kChunk - 1];
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int n = 0; n < 2 * own_steps; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) state[m][n][e] *= decay;
      }
    }
    cp_async_wait<kStages - 2>();  // the next chunk's tiles
    __syncthreads();

    // S^T = exp(G_last) S^T + delta^T k for the warp's rows
#pragma unroll
    for (int step = 0; step < kWarps; ++step) {
#pragma unroll
      for (int m = 0; m < M; ++m) {
        uint32 a[4];
        load_fragment(a, shared.decayed[m][step][lane]);
#pragma unroll
        for (int n = 0; n < own_steps; ++n) {
          mma(state[m][2 * n], a, rows[step][n][0]);
          mma(state[m][2 * n + 1], a, rows[step][n][1]);
        }
      }
    }
    states += p.value_heads * (D * D / 8);
    deltas += p.value_heads * (kChunk * D / 8);
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }

#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < 2 * own_steps; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) rec[(8 * n + e % 2) * D + 16 * m + e / 2 * 8] = state[m][n][e];
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128, 1) gated_delta_carry_64_1(GatedDeltaParams p) { carry<64, 1>(p); }
extern "C" __global__ void __launch_bounds__(128, 1) gated_delta_carry_64_2(GatedDeltaParams p) { carry<64, 2>(p); }
extern "C" __global__ void __launch_bounds__(128, 1) gated_delta_carry_128_1(GatedDeltaParams p) { carry<128, 1>(p); }
extern "C" __global__ void __launch_bounds__(128, 1) gated_delta_carry_128_2(GatedDeltaParams p) { carry<128, 2>(p); }
