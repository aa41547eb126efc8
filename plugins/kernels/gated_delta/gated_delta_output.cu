// SPDX-License-Identifier: Apache-2.0
// Last of the chunked kernels (chunk.cuh): outputs of one chunk and value head, normalised and gated. A warp owns 16
// tokens and all D columns, so the norm stays inside it.
#include "kernels/gated_delta/chunk.cuh"

using namespace orin;

namespace {

constexpr int kWarps = kChunk / 16;

template <int D>
struct alignas(16) Output {
  half k[kChunk * D];
  half delta[kChunk * D];  // fragment order
  half state[D * D];       // fragment order
};

template <int D>
__device__ void zero_rows(const GatedDeltaParams& p, const Chunk& at, int head) {
  half* y = static_cast<half*>(p.y) + (size_t(at.token) * p.value_heads + head) * D;
  for (int i = threadIdx.x; i < at.count * D / 8; i += blockDim.x) {
    *reinterpret_cast<uint4*>(y + size_t(i / (D / 8)) * p.value_heads * D + i % (D / 8) * 8) = uint4{};
  }
}

template <int D>
__device__ void load_tiles(const GatedDeltaParams& p, const Chunk& at, int head, int key_head, Output<D>& to) {
  const half* k = part<D>(p.k, at.place, p.key_heads, key_head, kChunk * D);
  for (int i = threadIdx.x; i < kChunk * D / 8; i += blockDim.x) {
    const int row = i / (D / 8), column = i % (D / 8) * 8;
    cp_async16(to.k + swizzled<D>(row, column), k + row * D + column);
  }
  cp_async_commit();
  const half* state = part<D>(p.states, at.place, p.value_heads, head, D * D);
  for (int i = threadIdx.x; i < D * D / 8; i += blockDim.x) cp_async16(to.state + 8 * i, state + 8 * i);
  const half* delta = part<D>(p.delta, at.place, p.value_heads, head, kChunk * D);
  for (int i = threadIdx.x; i < kChunk * D / 8; i += blockDim.x) cp_async16(to.delta + 8 * i, delta + 8 * i);
  cp_async_commit();
}

// o / sqrt(D) normalised over the row, weighed, gated by silu(z). Rows: lane/4 and + 8 of the warp's 16.
template <int D>
__device__ void finish(const GatedDeltaParams& p, const Chunk& at, int head, int row0, const float (&o)[D / 8][4]) {
  const int lane = threadIdx.x % 32;
  const int num_channels = channels(p, D);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float squares = 0;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) squares += o[n][2 * i] * o[n][2 * i] + o[n][2 * i + 1] * o[n][2 * i + 1];
    const float scale = rsqrtf(sum_over<4>(squares) / D + p.norm_eps * D);  // the factor 1 / sqrt(D) of q cancels
    const int row = row0 + lane / 4 + 8 * i;
    if (row >= at.count) continue;
    const size_t token = at.token + row;
    const half* z =
        static_cast<const half*>(p.qkvz) + token * (num_channels + p.value_heads * D) + num_channels + head * D;
    half* y = static_cast<half*>(p.y) + (token * p.value_heads + head) * D;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const int column = 8 * n + lane % 4 * 2;
      const float2 norm = *reinterpret_cast<const float2*>(p.norm + column);
      float gate[2];
      load_halves(z + column, gate);
      const float out[2] = {o[n][2 * i] * scale * norm.x * silu(gate[0]),
                            o[n][2 * i + 1] * scale * norm.y * silu(gate[1])};
      store_halves(y + column, out);
    }
  }
}

template <int D>
__device__ void output(const GatedDeltaParams& p) {
  extern __shared__ __align__(16) unsigned char memory[];
  Output<D>& in = *reinterpret_cast<Output<D>*>(memory);
  const Chunk at = chunk_at(p, blockIdx.x);
  const int head = blockIdx.y, key_head = head / (p.value_heads / p.key_heads);
  if (at.count == 0) return;
  if (at.slot < 0) return zero_rows<D>(p, at, head);
  load_tiles(p, at, head, key_head, in);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row0 = 16 * warp, g = lane / 4, c = lane % 4 * 2;
  const float* sums = p.decay + (size_t(at.place) * p.value_heads + head) * 3 * kChunk;
  const float sum[2] = {sums[row0 + g], sums[row0 + g + 8]};
  const half* own_q = part<D>(p.q, at.place, p.key_heads, key_head, kChunk * D) + (row0 + g) * D + c;
  uint32 q[D / 16][4];
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      q[step][e] = *reinterpret_cast<const uint32*>(own_q + e % 2 * 8 * D + 16 * step + e / 2 * 8);
    }
  }
  cp_async_wait<1>();
  __syncthreads();

  // tril(q k^T * E), as A operands; blocks right of the diagonal do not exist
  uint32 qk[kWarps][4];
#pragma unroll
  for (int n = 0; n < kWarps; ++n) {
    if (n > warp) break;
    float acc[2][4] = {};
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      uint32 b[2][2];
      load_b_transposed<D>(b, in.k, 16 * n, 16 * step);
      mma(acc[0], q[step], b[0]);
      mma(acc[1], q[step], b[1]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = 16 * n + 8 * i + c;
      const float2 other = *reinterpret_cast<const float2*>(sums + column);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool is_seen = column + e % 2 <= row0 + g + e / 2 * 8;
        acc[i][e] = is_seen ? acc[i][e] * __expf(sum[e / 2] - (e % 2 ? other.y : other.x)) : 0.f;
      }
    }
    to_operand(qk[n], acc[0], acc[1]);
  }
  cp_async_wait<0>();
  __syncthreads();

  float o[D / 8][4] = {};
  const uint4* state = reinterpret_cast<const uint4*>(in.state) + lane;
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
#pragma unroll
    for (int tile = 0; tile < D / 16; ++tile) {
      const uint4 f = state[(tile * (D / 16) + step) * 32];
      mma(o[2 * tile], q[step], {f.x, f.z});
      mma(o[2 * tile + 1], q[step], {f.y, f.w});
    }
  }
  const float decay[2] = {expf(sum[0]), expf(sum[1])};
#pragma unroll
  for (int n = 0; n < D / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) o[n][e] *= decay[e / 2];
  }
  const uint4* delta = reinterpret_cast<const uint4*>(in.delta) + lane;
#pragma unroll
  for (int step = 0; step < kWarps; ++step) {
    if (step > warp) break;
#pragma unroll
    for (int tile = 0; tile < D / 16; ++tile) {
      const uint4 f = delta[(tile * (kChunk / 16) + step) * 32];
      mma(o[2 * tile], qk[step], {f.x, f.z});
      mma(o[2 * tile + 1], qk[step], {f.y, f.w});
    }
  }
  finish<D>(p, at, head, row0, o);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128) gated_delta_output_64(GatedDeltaParams p) { output<64>(p); }
extern "C" __global__ void __launch_bounds__(128) gated_delta_output_128(GatedDeltaParams p) { output<128>(p); }
