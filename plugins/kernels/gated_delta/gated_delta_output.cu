// SPDX-License-Identifier: Apache-2.0
// Last of the chunked kernels (chunk.cuh): outputs of one chunk and value head, normalised and gated. A warp owns 16
// tokens and all D columns, so the norm stays inside it.
#include "kernels/gated_delta/chunk.cuh"

using namespace orin;

namespace {

constexpr int kWarps = kChunk / 16;

template <int D>
struct Shared {
  Tile<kChunk, D> k;  // then z, then y
  Tile<kChunk, D> q;  // then delta, in fragment order
  half state[D * D];  // fragment order
  float sum[kChunk];  // G
  float norm[D];
};

template <int D>
__device__ void zero_rows(const GatedDeltaParams& p, const Chunk& at, int head) {
  half* y = static_cast<half*>(p.y) + (size_t(at.token) * p.value_heads + head) * D;
  for (unsigned i = threadIdx.x; i < unsigned(at.count * D / 8); i += 32 * kWarps) {
    *reinterpret_cast<uint4*>(y + size_t(i / (D / 8)) * p.value_heads * D + i % (D / 8) * 8) = uint4{};
  }
}

// Starts the copies of what is wanted first: q, k, G and the norm's weight; then, in a group of its own, the state.
template <int D>
__device__ __forceinline__ void load_tiles(const GatedDeltaParams& p, int place, int head, int key_head,
                                           Shared<D>& to) {
  constexpr int threads = 32 * kWarps;
  const unsigned thread = threadIdx.x;
  to.k.template copy_from<D, threads>(part<half>(p.qkv, place, conv_heads(p), p.key_heads + key_head, kChunk * D),
                                      thread);
  to.q.template copy_from<D, threads>(part<half>(p.qkv, place, conv_heads(p), key_head, kChunk * D), thread);
  const float* sum = part<float>(p.decay, place, p.value_heads, head, 3 * kChunk);
  if (thread < kChunk / 4) cp_async16(to.sum + 4 * thread, sum + 4 * thread);
  if (thread < D / 4) cp_async16(to.norm + 4 * thread, p.norm + 4 * thread);
  cp_async_commit();
  const half* state = part<half>(p.states, place, p.value_heads, head, D * D) + 8 * thread;
#pragma unroll
  for (int i = 0; i < D * D; i += 8 * threads) cp_async16(to.state + 8 * thread + i, state + i);
  cp_async_commit();
}

// A warp's 16 rows between its part of a tile and rows of the op's tensors, 16 bytes a lane: z in, y out.
template <int D, typename Move>
__device__ __forceinline__ void move_rows(int row0, int count, Move move) {
  constexpr int vectors = D / 8;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 16; i += 32 / vectors) {
    const int row = row0 + i + lane / vectors;
    move(row, lane % vectors * 8, row < count);
  }
}

// o / sqrt(D) normalised over the row, weighed, gated by silu(z), in place of z. Rows: lane/4 and + 8 of the warp's 16.
template <int D>
__device__ __forceinline__ void finish(Shared<D>& shared, int row0, float eps, const float (&o)[D / 8][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float squares = 0;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) squares += o[n][2 * i] * o[n][2 * i] + o[n][2 * i + 1] * o[n][2 * i + 1];
    const float scale = rsqrtf(sum_over<4>(squares) / D + eps * D);  // the factor 1 / sqrt(D) of q cancels
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const int column = 8 * n + lane % 4 * 2;
      const float2 norm = *reinterpret_cast<const float2*>(shared.norm + column);
      half* at = shared.k.at(row0 + lane / 4 + 8 * i, column);
      float gate[2];
      widen(load_halves<2>(at), gate);
      const float out[2] = {o[n][2 * i] * scale * norm.x * silu(gate[0]),
                            o[n][2 * i + 1] * scale * norm.y * silu(gate[1])};
      store_halves(at, out);
    }
  }
}

template <int D>
__device__ void output(const GatedDeltaParams& p) {
  begin_in_turn();
  extern __shared__ __align__(16) unsigned char memory[];
  Shared<D>& shared = *reinterpret_cast<Shared<D>*>(memory);
  const Chunk at = chunk_at(p, blockIdx.x);
  const int head = blockIdx.y, key_head = head / (p.value_heads / p.key_heads);
  if (at.count == 0) return;
  if (at.slot < 0) return zero_rows<D>(p, at, head);
  load_tiles(p, at.place, head, key_head, shared);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row0 = 16 * warp, g = lane / 4, c = lane % 4 * 2;
  cp_async_wait<1>();
  __syncthreads();
  uint32 q[D / 16][4];
#pragma unroll
  for (int step = 0; step < D / 16; ++step) shared.q.load_a(q[step], row0, 16 * step);

  // tril(q k^T * E), as A operands; blocks right of the diagonal do not exist
  const float sum[2] = {shared.sum[row0 + g], shared.sum[row0 + g + 8]};
  float acc[kChunk / 8][4] = {};
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
#pragma unroll
    for (int n = 0; n < kWarps; ++n) {
      if (n > warp) break;
      uint32 b[2][2];
      shared.k.load_b_transposed(b, 16 * n, 16 * step);
      mma(acc[2 * n], q[step], b[0]);
      mma(acc[2 * n + 1], q[step], b[1]);
    }
  }
  uint32 qk[kWarps][4];
#pragma unroll
  for (int n = 0; n < kWarps; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = 16 * n + 8 * i + c;
      const float2 other = *reinterpret_cast<const float2*>(shared.sum + column);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool is_seen = column + e % 2 <= row0 + g + e / 2 * 8;
        const float decayed = acc[2 * n + i][e] * fast_exp(sum[e / 2] - (e % 2 ? other.y : other.x));
        acc[2 * n + i][e] = is_seen ? decayed : 0.f;
      }
    }
    to_operand(qk[n], acc[2 * n], acc[2 * n + 1]);
  }
  cp_async_wait<0>();
  __syncthreads();  // the state is there, nobody reads q and k any more

  uint4* delta = reinterpret_cast<uint4*>(shared.q.data);
  const uint4* deltas = part<uint4>(p.delta, at.place, p.value_heads, head, kChunk * D / 8);
#pragma unroll
  for (int i = 0; i < kChunk * D / 8; i += 32 * kWarps) cp_async16(delta + i + threadIdx.x, deltas + i + threadIdx.x);
  const int row_halves = (conv_heads(p) + p.value_heads) * D;
  const half* z = static_cast<const half*>(p.qkvz) + size_t(at.token) * row_halves + (conv_heads(p) + head) * D;
  move_rows<D>(row0, at.count, [&](int row, int column, bool is_token) {
    cp_async16(shared.k.at(row, column), z + size_t(row) * row_halves + column, is_token);
  });
  cp_async_commit();

  float o[D / 8][4] = {};
  const uint4* state = reinterpret_cast<const uint4*>(shared.state) + lane;
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
  cp_async_wait<0>();
  __syncthreads();
#pragma unroll
  for (int step = 0; step < kWarps; ++step) {
    if (step > warp) break;
#pragma unroll
    for (int tile = 0; tile < D / 16; ++tile) {
      const uint4 f = delta[(tile * (kChunk / 16) + step) * 32 + lane];
      mma(o[2 * tile], qk[step], {f.x, f.z});
      mma(o[2 * tile + 1], qk[step], {f.y, f.w});
    }
  }

  finish(shared, row0, p.norm_eps, o);
  __syncwarp();
  half* y = static_cast<half*>(p.y) + (size_t(at.token) * p.value_heads + head) * D;
  move_rows<D>(row0, at.count, [&](int row, int column, bool is_token) {
    if (!is_token) return;
    *reinterpret_cast<uint4*>(y + size_t(row) * p.value_heads * D + column) =
        *reinterpret_cast<const uint4*>(shared.k.at(row, column));
  });
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128) gated_delta_output_64(GatedDeltaParams p) { output<64>(p); }
extern "C" __global__ void __launch_bounds__(128) gated_delta_output_128(GatedDeltaParams p) { output<128>(p); }
