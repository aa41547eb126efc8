// SPDX-License-Identifier: Apache-2.0
// First of the chunked kernels (chunk.cuh): a block makes q, k, v, G and T of one chunk and value head. A warp convolves
// 8 tokens, a lane D/32 neighbouring channels. q and k belong to a key head: the first of its value heads stores them,
// all of them need k.
//
// T is inverted in 16x16 blocks: warp j substitutes in the diagonal block j in float32, one lane a column, then walks
// down block column j in registers, transposed, T_ij^T = -(sum_m T_mj^T L_im^T) T_ii^T.
#include "kernels/gated_delta/chunk.cuh"

using namespace orin;

namespace {

constexpr int kWarps = 8;
constexpr int kRows = kChunk / kWarps;  // of one warp

template <int D>
struct alignas(16) Prepare {
  half k[kChunk * D];
  half l[kChunk * kChunk];              // L below the diagonal blocks; T's diagonal blocks on them
  half t[kChunk * kChunk];              // T diag(beta)
  half diagonal_t[4][16 * 16];          // transposes of T's diagonal blocks
  float diagonal[4][16][16];            // transposes of L's diagonal blocks
  float sum[kChunk];                    // G
  float beta[kChunk];
};

// silu of the convolution of 8 tokens from `row0` on, for N channels; zero beyond the chunk.
template <int N>
__device__ void convolve(const GatedDeltaParams& p, const Chunk& at, int dim, int channel, int row0,
                         float (&out)[kRows][N]) {
  const int num_channels = channels(p, dim);
  const size_t row_halves = num_channels + p.value_heads * dim;
  const half* in = static_cast<const half*>(p.qkvz) + channel;
  float x[kRows + kConvTaps - 1][N];
#pragma unroll
  for (int i = 0; i < kRows + kConvTaps - 1; ++i) {
    const int row = row0 + i - (kConvTaps - 1);
#pragma unroll
    for (int n = 0; n < N; ++n) x[i][n] = 0;
    if (row < at.count && (row >= 0 || !at.is_first)) {
      load_halves(in + (at.token + row) * row_halves, x[i]);
    } else if (row < 0 && !at.is_fresh) {
      const half* before = static_cast<const half*>(p.conv) +
                           (size_t(at.slot) * num_channels + channel) * (kConvTaps - 1) + kConvTaps - 1 + row;
#pragma unroll
      for (int n = 0; n < N; ++n) x[i][n] = __half2float(before[n * (kConvTaps - 1)]);
    }
  }
#pragma unroll
  for (int n = 0; n < N; ++n) {
    float tap[kConvTaps];
    load_halves(static_cast<const half*>(p.conv_weight) + (channel + n) * kConvTaps, tap);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float c = tap[0] * x[i][n] + tap[1] * x[i + 1][n] + tap[2] * x[i + 2][n] + tap[3] * x[i + 3][n];
      out[i][n] = row0 + i < at.count ? silu(c) : 0.f;
    }
  }
}

template <int N>
__device__ void normalise(float (&x)[kRows][N]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    float squares = 0;
#pragma unroll
    for (int n = 0; n < N; ++n) squares += x[i][n] * x[i][n];
    const float scale = rsqrtf(sum_over(squares) + kL2Eps);
#pragma unroll
    for (int n = 0; n < N; ++n) x[i][n] *= scale;
  }
}

// One warp: lane l has tokens l and l + 32. Tokens beyond the chunk neither decay nor write.
__device__ void make_gates(const GatedDeltaParams& p, const Chunk& at, int head, float* sums, float* betas) {
  const int lane = threadIdx.x % 32;
  float sum[2], beta[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = lane + 32 * i;
    const Gates gate = row < at.count ? gates(p, at.token + row, head) : Gates{0.f, 0.f};
    sum[i] = fmaxf(gate.log_decay, kMinLogDecay), beta[i] = gate.beta;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const float before = __shfl_up_sync(~0u, sum[i], step);
      if (lane >= step) sum[i] += before;
    }
  }
  sum[1] += __shfl_sync(~0u, sum[0], 31);
  const float last = __shfl_sync(~0u, sum[1], 31);
  float* decay = p.decay + (size_t(at.place) * p.value_heads + head) * 3 * kChunk;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = lane + 32 * i;
    sums[row] = sum[i], betas[row] = beta[i];
    decay[row] = sum[i], decay[kChunk + row] = expf(sum[i]), decay[2 * kChunk + row] = expf(last - sum[i]);
  }
}

// Block (i, j) of L = beta_row exp(G_row - G_column) k_row . k_column, row > column.
template <int D>
__device__ void make_l(Prepare<D>& shared, int i, int j) {
  const int lane = threadIdx.x % 32;
  float acc[2][4] = {};
#pragma unroll
  for (int step = 0; step < D; step += 16) {
    uint32 a[4], b[2][2];
    load_a<D>(a, shared.k, 16 * i, step);
    load_b_transposed<D>(b, shared.k, 16 * j, step);
    mma(acc[0], a, b[0]);
    mma(acc[1], a, b[1]);
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int r = lane / 4 + e / 2 * 8, c = 8 * n + lane % 4 * 2 + e % 2, row = 16 * i + r, column = 16 * j + c;
      const float l =
          row > column ? shared.beta[row] * __expf(shared.sum[row] - shared.sum[column]) * acc[n][e] : 0.f;
      if (i == j) {
        shared.diagonal[i][c][r] = l;
      } else {
        shared.l[swizzled<kChunk>(row, column)] = __float2half(l);
      }
    }
  }
}

// T's diagonal block j: lane c has column c of the inverse.
template <int D>
__device__ void invert_diagonal(Prepare<D>& shared, int j) {
  const int lane = threadIdx.x % 32;
  if (lane >= 16) return;
  float x[16];
#pragma unroll
  for (int r = 0; r < 16; ++r) x[r] = r == lane;
#pragma unroll
  for (int c = 0; c < 15; ++c) {
#pragma unroll
    for (int r = c + 1; r < 16; ++r) x[r] -= shared.diagonal[j][c][r] * x[c];
  }
  const float beta = shared.beta[16 * j + lane];
#pragma unroll
  for (int r = 0; r < 16; ++r) {
    const half h = __float2half(x[r]);
    shared.diagonal_t[j][swizzled<16>(lane, r)] = h;
    shared.l[swizzled<kChunk>(16 * j + r, 16 * j + lane)] = h;
    shared.t[swizzled<kChunk>(16 * j + r, 16 * j + lane)] = __float2half(x[r] * beta);
  }
}

// The blocks of T below diagonal block j.
template <int D>
__device__ void invert_column(Prepare<D>& shared, int j) {
  const int lane = threadIdx.x % 32;
  uint32 t[3][4], b[2][2];
  load_a<16>(t[0], shared.diagonal_t[j], 0, 0);
#pragma unroll
  for (int down = 1; down < 4; ++down) {
    const int i = j + down;
    if (i == 4) return;
    float m[2][4] = {}, x[2][4] = {};
#pragma unroll
    for (int k = 0; k < down; ++k) {
      load_b_transposed<kChunk>(b, shared.l, 16 * i, 16 * (j + k));
      mma(m[0], t[k], b[0]);
      mma(m[1], t[k], b[1]);
    }
    uint32 a[4];
    to_operand(a, m[0], m[1]);
    load_b_transposed<kChunk>(b, shared.l, 16 * i, 16 * i);
    mma(x[0], a, b[0]);
    mma(x[1], a, b[1]);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        x[n][e] = -x[n][e];
        const int column = 16 * j + lane / 4 + e / 2 * 8, row = 16 * i + 8 * n + lane % 4 * 2 + e % 2;
        shared.t[swizzled<kChunk>(row, column)] = __float2half(x[n][e] * shared.beta[column]);
      }
    }
    if (down < 3) to_operand(t[down], x[0], x[1]);
  }
}

template <int D>
__device__ void prepare(const GatedDeltaParams& p) {
  constexpr int N = D / 32;
  __shared__ Prepare<D> shared;
  const Chunk at = chunk_at(p, blockIdx.x);
  if (at.count == 0 || at.slot < 0) return;
  const int head = blockIdx.y, repeat = p.value_heads / p.key_heads, key_head = head / repeat;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row0 = kRows * warp, column = N * lane;
  const bool is_owner = head % repeat == 0;

  if (warp == kWarps - 1) make_gates(p, at, head, shared.sum, shared.beta);
  for (int i = threadIdx.x; i < kChunk * kChunk / 8; i += blockDim.x) reinterpret_cast<uint4*>(shared.t)[i] = uint4{};
  float x[kRows][N];
  convolve(p, at, D, (p.key_heads + key_head) * D + column, row0, x);
  normalise(x);
  half* k = part<D>(p.k, at.place, p.key_heads, key_head, kChunk * D) + column;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    store_halves(shared.k + swizzled<D>(row0 + i, column), x[i]);
    if (is_owner) store_halves(k + (row0 + i) * D, x[i]);
  }
  if (is_owner) {
    convolve(p, at, D, key_head * D + column, row0, x);
    normalise(x);
    half* q = part<D>(p.q, at.place, p.key_heads, key_head, kChunk * D) + column;
#pragma unroll
    for (int i = 0; i < kRows; ++i) store_halves(q + (row0 + i) * D, x[i]);
  }
  convolve(p, at, D, (2 * p.key_heads + head) * D + column, row0, x);
  half* v = part<D>(p.v, at.place, p.value_heads, head, kChunk * D) + column;
#pragma unroll
  for (int i = 0; i < kRows; ++i) store_halves(v + (row0 + i) * D, x[i]);
  __syncthreads();

  // Ten blocks of L for eight warps: the diagonal first, then the rest.
  for (int block = warp; block < 10; block += kWarps) {
    make_l(shared, 0x3323213210ull >> 4 * block & 15, 0x0102103210ull >> 4 * block & 15);
  }
  __syncthreads();
  if (warp < 4) invert_diagonal(shared, warp);
  __syncthreads();
  if (warp < 3) invert_column(shared, warp);
  __syncthreads();
  half* t = part<D>(p.t, at.place, p.value_heads, head, kChunk * kChunk);
  for (int i = threadIdx.x; i < kChunk * kChunk / 8; i += blockDim.x) {
    reinterpret_cast<uint4*>(t)[i] =
        *reinterpret_cast<const uint4*>(shared.t + swizzled<kChunk>(i / (kChunk / 8), i % (kChunk / 8) * 8));
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(256) gated_delta_prepare_64(GatedDeltaParams p) { prepare<64>(p); }
extern "C" __global__ void __launch_bounds__(256) gated_delta_prepare_128(GatedDeltaParams p) { prepare<128>(p); }
