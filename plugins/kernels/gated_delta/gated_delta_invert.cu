// SPDX-License-Identifier: Apache-2.0
// Second of the chunked kernels (chunk.cuh): G and T of one chunk and value head, in 16x16 blocks. Warp i makes block
// row i of L. Warp j then inverts: it substitutes in the diagonal block j in float32, one lane a column, and walks down
// block column j in registers, transposed: T_ij^T = -(sum_m T_mj^T L_im^T) T_ii^T.
#include "kernels/gated_delta/chunk.cuh"

using namespace orin;

namespace {

constexpr int kBlocks = kChunk / 16;
constexpr float kMinLogDecay = -30.f;  // of one token: exp is then below 1e-13, and sums of g stay exact enough

template <int D>
struct Shared {
  Tile<kChunk, D> k;
  Tile<kChunk, kChunk> l;            // L below the diagonal blocks; on them, T
  Tile<kChunk, kChunk> t;            // T diag(beta)
  Tile<16, 16> transposed[kBlocks];  // T's diagonal blocks, transposed
  float diagonal[kBlocks][16][16];   // L's diagonal blocks, transposed
  float sum[kChunk];                 // G
  float beta[kChunk];
};

// One warp: lane l has tokens l and l + 32. Tokens beyond the chunk neither decay nor write.
__device__ void sum_gates(const GatedDeltaParams& p, const Chunk& at, int head, float* sums, float* betas) {
  const int lane = threadIdx.x % 32;
  const float a_log = p.a_log[head], dt_bias = p.dt_bias[head];
  half b[2], a[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const half* ba = gate_inputs(p, at.token + min(lane + 32 * i, at.count - 1), head);
    b[i] = ba[0], a[i] = ba[p.value_heads];
  }
  float sum[2], beta[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Gates gate = make_gates(a_log, dt_bias, b[i], a[i]);
    const bool is_token = lane + 32 * i < at.count;
    sum[i] = is_token ? fmaxf(gate.log_decay, kMinLogDecay) : 0.f, beta[i] = is_token ? gate.beta : 0.f;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const float before = __shfl_up_sync(~0u, sum[i], step);
      if (lane >= step) sum[i] += before;
    }
  }
  sum[1] += __shfl_sync(~0u, sum[0], 31);
  const float last = __shfl_sync(~0u, sum[1], 31);
  float* decay = part<float>(p.decay, at.place, p.value_heads, head, 3 * kChunk);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = lane + 32 * i;
    sums[row] = sum[i], betas[row] = beta[i];
    decay[row] = sum[i], decay[kChunk + row] = expf(sum[i]), decay[2 * kChunk + row] = expf(last - sum[i]);
  }
}

// Block row i of L = beta_row exp(G_row - G_column) k_row . k_column, row > column.
template <int D>
__device__ void make_row(Shared<D>& shared, int i) {
  const int lane = threadIdx.x % 32;
  float acc[kChunk / 8][4] = {};
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    uint32 a[4];
    shared.k.load_a(a, 16 * i, 16 * step);
#pragma unroll
    for (int j = 0; j < kBlocks; ++j) {
      if (j > i) break;
      uint32 b[2][2];
      shared.k.load_b_transposed(b, 16 * j, 16 * step);
      mma(acc[2 * j], a, b[0]);
      mma(acc[2 * j + 1], a, b[1]);
    }
  }
#pragma unroll
  for (int n = 0; n < kChunk / 8; ++n) {
    if (n / 2 > i) break;
    float l[4];
    const int column = 8 * n + lane % 4 * 2, row = 16 * i + lane / 4;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int r = row + e / 2 * 8, c = column + e % 2;
      const float value = shared.beta[r] * fast_exp(shared.sum[r] - shared.sum[c]) * acc[n][e];
      l[e] = r > c ? value : 0.f;
      if (n / 2 == i) shared.diagonal[i][c % 16][r % 16] = l[e];
    }
    if (n / 2 == i) continue;
    *reinterpret_cast<uint32*>(shared.l.at(row, column)) = pack(l[0], l[1]);
    *reinterpret_cast<uint32*>(shared.l.at(row + 8, column)) = pack(l[2], l[3]);
  }
}

// T's diagonal block j: lane c has column c of the inverse.
template <int D>
__device__ void invert_diagonal(Shared<D>& shared, int j) {
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
    *shared.transposed[j].at(lane, r) = h;
    *shared.l.at(16 * j + r, 16 * j + lane) = h;
    *shared.t.at(16 * j + r, 16 * j + lane) = __float2half(x[r] * beta);
  }
}

// The blocks of T below diagonal block j; above it T is zero.
template <int D>
__device__ void invert_column(Shared<D>& shared, int j) {
  const int lane = threadIdx.x % 32, row = lane / 2, half_row = lane % 2 * 8;
  for (int i = 0; i < j; ++i) *reinterpret_cast<uint4*>(shared.t.at(16 * i + row, 16 * j + half_row)) = uint4{};
  uint32 t[kBlocks - 1][4], b[2][2];
  shared.transposed[j].load_a(t[0], 0, 0);
#pragma unroll
  for (int down = 1; down < kBlocks; ++down) {
    const int i = j + down;
    if (i >= kBlocks) return;
    float m[2][4] = {}, x[2][4] = {};
#pragma unroll
    for (int k = 0; k < down; ++k) {
      shared.l.load_b_transposed(b, 16 * i, 16 * (j + k));
      mma(m[0], t[k], b[0]);
      mma(m[1], t[k], b[1]);
    }
    uint32 a[4];
    to_operand(a, m[0], m[1]);
    shared.l.load_b_transposed(b, 16 * i, 16 * i);
    mma(x[0], a, b[0]);
    mma(x[1], a, b[1]);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        x[n][e] = -x[n][e];
        const int column = 16 * j + lane / 4 + e / 2 * 8;
        *shared.t.at(16 * i + 8 * n + lane % 4 * 2 + e % 2, column) = __float2half(x[n][e] * shared.beta[column]);
      }
    }
    if (down < kBlocks - 1) to_operand(t[down], x[0], x[1]);
  }
}

template <int D>
__device__ void invert(const GatedDeltaParams& p) {
  begin_in_turn();
  __shared__ Shared<D> shared;
  const Chunk at = chunk_at(p, blockIdx.x);
  if (at.count == 0 || at.slot < 0) return;
  const int head = blockIdx.y, key_head = p.key_heads + head / (p.value_heads / p.key_heads), warp = threadIdx.x / 32;
  shared.k.template copy_from<D, 32 * kBlocks>(part<half>(p.qkv, at.place, conv_heads(p), key_head, kChunk * D),
                                               threadIdx.x);
  cp_async_commit();
  if (warp == 0) sum_gates(p, at, head, shared.sum, shared.beta);
  cp_async_wait<0>();
  __syncthreads();
  make_row(shared, warp);
  __syncthreads();
  invert_diagonal(shared, warp);
  __syncthreads();
  invert_column(shared, warp);
  __syncthreads();
  uint4* t = part<uint4>(p.t, at.place, p.value_heads, head, kChunk * kChunk / 8);
  for (unsigned i = threadIdx.x; i < kChunk * kChunk / 8; i += 32 * kBlocks) {
    t[i] = *reinterpret_cast<const uint4*>(shared.t.at(i / (kChunk / 8), i % (kChunk / 8) * 8));
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128) gated_delta_invert_64(GatedDeltaParams p) { invert<64>(p); }
extern "C" __global__ void __launch_bounds__(128) gated_delta_invert_128(GatedDeltaParams p) { invert<128>(p); }
