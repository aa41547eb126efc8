// SPDX-License-Identifier: Apache-2.0
// OrinInt4Gemm for 1..16 tokens: limited by reading W, so W goes straight from memory to the tensor cores, once.
//
// Stripes of 8 rows of W are the n8 operand of m16n8k16 and the tokens the m16 operand, so one kernel serves 1..16
// tokens (up to 8 leave half of m16 empty), and 8 rows are a grain that spreads over any number of SMs.
//
//   grid.x   ranges of stripes, one per SM      grid.y   splits of the columns
//   block    warps_n x warps_k warps: warp (i, j) takes the stripes i, i + warps_n, ... of the block's range and of
//            each the chunks j, j + warps_k, ... of 128 columns
//
// Each lane copies its own 16 bytes of a chunk (two 8-byte runs of... one row) by cp.async into a ring of its own: no
// barrier is needed to read them back, and kDepth chunks per warp are in flight before the tokens have even arrived.
// While they fly the block copies the tokens, normalises them in float32 and leaves them in shared memory as float16.
// Scales multiply float32 sums of a group; a group's products are exact in the tensor core.
#include "kernels/int4_gemm/int4.cuh"

using namespace orin;

namespace {

constexpr int kDepth = 8;
constexpr int kWarp = 32;
constexpr int kSegment = 256;  // columns of a token that one warp sums

struct Task {  // 8 columns of one token for each lane of a warp
  int token, segment, column;
  bool is_inside;  // of the block's columns
};

template <int kGroup, int kTokens>
class Few {
 public:
  __device__ explicit Few(const Int4GemmParams& params)
      : p(params), lane(threadIdx.x % kWarp), warp(threadIdx.x / kWarp), warps(blockDim.x / kWarp) {
    const int stripes = (p.n + kStripeRows - 1) / kStripeRows;
    const int chunks = (p.k + kChunkColumns - 1) / kChunkColumns;
    stripe_begin = static_cast<int>(static_cast<long long>(stripes) * blockIdx.x / gridDim.x);
    stripe_end = static_cast<int>(static_cast<long long>(stripes) * (blockIdx.x + 1) / gridDim.x);
    chunk_begin = chunks * blockIdx.y / gridDim.y;
    chunk_end = chunks * (blockIdx.y + 1) / gridDim.y;
    warp_n = warp % p.warps_n;
    warp_k = warp / p.warps_n;
    fetch_stripe = stripe_begin + warp_n;
    fetch_chunk = chunk_begin + warp_k;
  }

  __device__ void run() {
    if (p.rows && all_skipped()) {
      write_zeros();
      return;
    }
    copy_tokens();
    cp_async_commit();
#pragma unroll
    for (int i = 0; i < kDepth - 1; ++i) fetch();
    cp_async_wait<kDepth - 1>();
    if (p.norm) normalise();
    __syncthreads();
    for (int first = stripe_begin, round = 0; first < stripe_end; first += p.warps_n, ++round) {
      float sum[4] = {};
      const int stripe = first + warp_n;
      if (stripe < stripe_end) {
        for (int chunk = chunk_begin + warp_k; chunk < chunk_end; chunk += p.warps_k) {
          cp_async_wait<kDepth - 2>();
          fetch();
          multiply(chunk, sum);
        }
      }
      if (p.warps_k > 1) {
        add_warps(first, round & 1, sum);
      } else if (stripe < stripe_end) {
        const int column = stripe * kStripeRows + 2 * (lane % 4);
        emit(lane / 4, column, sum[0], sum[1]);
        if (kTokens > 8) emit(lane / 4 + 8, column, sum[2], sum[3]);
      }
    }
    cp_async_wait<0>();
    if (p.splits > 1 && is_last_split(p, blockIdx.x)) {
      const int pairs = (stripe_end - stripe_begin) * kStripeRows / 2;
      for (int i = threadIdx.x; i < pairs * p.tokens; i += blockDim.x) {
        finish_splits(p, i / pairs, stripe_begin * kStripeRows + 2 * (i % pairs));
      }
    }
  }

 private:
  __device__ bool all_skipped() const {
    for (int token = 0; token < p.tokens; ++token) {
      if (p.rows[token] >= 0) return false;
    }
    return true;
  }

  __device__ void write_zeros() const {
    if (blockIdx.y) return;
    const int pairs = (stripe_end - stripe_begin) * kStripeRows / 2;
    for (int i = threadIdx.x; i < pairs * p.tokens; i += blockDim.x) {
      finish(p, i / pairs, stripe_begin * kStripeRows + 2 * (i % pairs), 0.f, 0.f);
    }
  }

  // The block's columns of a token in units of 8; a segment is the part of them that one warp handles at a time. The
  // sum of squares is cut the same way for any number of tokens, so a token's result does not depend on the others.
  template <typename Body>
  __device__ void for_each_task(Body body) const {
    const int width = (chunk_end - chunk_begin) * kChunkColumns;
    const int segments = (width + kSegment - 1) / kSegment;
    for (int task = warp; task < segments * p.tokens; task += warps) {
      const int token = task / segments;
      const int segment = task - token * segments;
      const int column = segment * kSegment + 8 * lane;
      body(Task{token, segment, column, column < width});
    }
  }

  __device__ uint4* shared_x(int token, int column) const {
    return reinterpret_cast<uint4*>(shared + token * p.x_stride + 2 * column);
  }

  __device__ void copy_tokens() const {
    const int first = chunk_begin * kChunkColumns;
    for_each_task([&](const Task& task) {
      if (!task.is_inside) return;
      const int row = p.rows ? p.rows[task.token] : task.token;
      const bool is_there = row >= 0 && first + task.column < p.k;
      const half* from = static_cast<const half*>(p.x) + (is_there ? size_t(row) * p.k + first + task.column : 0);
      cp_async16(shared_x(task.token, task.column), from, is_there);
    });
    if (p.norm) {
      for (int i = 4 * threadIdx.x; i < p.k; i += 4 * blockDim.x) cp_async16(shared + p.norm_at + 4 * i, p.norm + i);
    }
  }

  // Only with all columns in the block. Each lane reads back what it copied itself, so that one barrier suffices.
  __device__ void normalise() const {
    const int segments = ((chunk_end - chunk_begin) * kChunkColumns + kSegment - 1) / kSegment;
    float* sums = reinterpret_cast<float*>(shared + p.sums_at);
    for_each_task([&](const Task& task) {
      const uint4 x = task.is_inside ? *shared_x(task.token, task.column) : uint4{0, 0, 0, 0};
      float sum = 0.f;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 v = __half22float2(halves((&x.x)[i]));
        sum += v.x * v.x + v.y * v.y;
      }
      for (int step = 1; step < kWarp; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
      if (lane == 0) sums[task.token * segments + task.segment] = sum;
    });
    __syncthreads();
    const float* weight = reinterpret_cast<const float*>(shared + p.norm_at);
    for_each_task([&](const Task& task) {
      if (task.column >= p.k) return;
      float total = 0.f;
      for (int i = 0; i < segments; ++i) total += sums[task.token * segments + i];
      const float scale = rsqrtf(total / p.k + p.norm_eps);
      uint4* at = shared_x(task.token, task.column);
      uint4 x = *at;
      const float4 w0 = *reinterpret_cast<const float4*>(weight + task.column);
      const float4 w1 = *reinterpret_cast<const float4*>(weight + task.column + 4);
      const float w[8] = {w0.x, w0.y, w0.z, w0.w, w1.x, w1.y, w1.z, w1.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 v = __half22float2(halves((&x.x)[i]));
        (&x.x)[i] = bits(__floats2half2_rn(v.x * scale * w[2 * i], v.y * scale * w[2 * i + 1]));
      }
      *at = x;
    });
  }

  // Ring of this lane: kDepth times 16 bytes of weights, then the scales of rows 2t, 2t+1 per group, then zero points.
  __device__ uint4* ring_weight(int slot) const {
    return reinterpret_cast<uint4*>(shared + p.ring_at) + slot * blockDim.x + threadIdx.x;
  }
  __device__ uint32* ring_scale(int slot, int group) const {
    return reinterpret_cast<uint32*>(shared + p.ring_at + kDepth * blockDim.x * 16) +
           (slot * Piece<kGroup>::kGroups + group) * blockDim.x + threadIdx.x;
  }
  __device__ uint32* ring_zero(int slot, int pair) const {
    return ring_scale(kDepth, 0) + (slot * Piece<kGroup>::kZeroPairs + pair) * blockDim.x;
  }

  // Start copying this warp's next chunk.
  __device__ void fetch() {
    if (fetch_stripe < stripe_end) {
      const Piece<kGroup> piece(p, fetch_stripe, fetch_chunk);
      if (piece.is_whole()) {
        cp_async16(ring_weight(fetch_slot), piece.weight + 16 * lane);
#pragma unroll
        for (int i = 0; i < Piece<kGroup>::kGroups; ++i) {
          cp_async<4>(ring_scale(fetch_slot, i), piece.scales + 16 * i + 4 * (lane % 4));
        }
        if (p.zeros) {
#pragma unroll
          for (int i = 0; i < Piece<kGroup>::kZeroPairs; ++i) {
            cp_async<4>(ring_zero(fetch_slot, i), piece.zeros + 8 * i + lane / 16 * 4);
          }
        }
      } else {
        fetch_ragged(piece);
      }
      fetch_chunk += p.warps_k;
      if (fetch_chunk >= chunk_end) {
        fetch_chunk = chunk_begin + warp_k;
        fetch_stripe += p.warps_n;
      }
    }
    cp_async_commit();
    fetch_slot = (fetch_slot + 1) % kDepth;
  }

  __device__ void fetch_ragged(const Piece<kGroup>& piece) const {
    *ring_weight(fetch_slot) = piece.ragged_weight(lane);
    const int row = 2 * (lane % 4);
    for (int i = 0; i < Piece<kGroup>::kGroups; ++i) {
      *ring_scale(fetch_slot, i) = bits(__halves2half2(piece.ragged_scale(i, row), piece.ragged_scale(i, row + 1)));
    }
    if (p.zeros) {
      for (int i = 0; i < Piece<kGroup>::kZeroPairs; ++i) {
        *ring_zero(fetch_slot, i) = uint32(piece.ragged_zeros(i, lane / 4)) << (lane / 4 % 4 * 8);
      }
    }
  }

  // sum += x W^T of one chunk: lane (g, t) has tokens g and g + 8, rows 2t and 2t + 1 of the stripe.
  __device__ void multiply(int chunk, float (&sum)[4]) {
    constexpr int kGroups = Piece<kGroup>::kGroups;
    const uint4 weight = *ring_weight(slot);
    const int row = lane / 4;
    // Tokens beyond the last are rows of m16 of their own: whatever they hold reaches no other row and is not stored.
    const int column = (chunk - chunk_begin) * kChunkColumns + 8 * (lane % 4);
    const uint4* x0 = shared_x(min(row, p.tokens - 1), column);
    const uint4* x1 = shared_x(min(row + 8, p.tokens - 1), column);
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      ZeroPoint zero;
      if (p.zeros) {
        const uint32 pair = *ring_zero(slot, group / 2) >> (row % 4 * 8);
        zero = ZeroPoint(pair >> ((kGroups == 1 ? chunk : group) % 2 * 4) & 15);
      }
      float even[4] = {}, odd[4] = {};  // two chains, so that one can start while the other's result is on its way
#pragma unroll
      for (int i = 0; i < 4 / kGroups; ++i) {
        const int word = group * (4 / kGroups) + i;
        uint32 b[4];
        dequantise((&weight.x)[word], zero, b);
        const uint4 v0 = x0[4 * word];
        const uint4 v1 = kTokens > 8 ? x1[4 * word] : uint4{0, 0, 0, 0};
        mma(even, {v0.x, v1.x, v0.y, v1.y}, {b[0], b[1]});
        mma(odd, {v0.z, v1.z, v0.w, v1.w}, {b[2], b[3]});
      }
      const float2 scale = __half22float2(halves(*ring_scale(slot, group)));
      sum[0] += (even[0] + odd[0]) * scale.x;
      sum[1] += (even[1] + odd[1]) * scale.y;
      if (kTokens > 8) {
        sum[2] += (even[2] + odd[2]) * scale.x;
        sum[3] += (even[3] + odd[3]) * scale.y;
      }
    }
    slot = (slot + 1) % kDepth;
  }

  // Add what the warps_k warps of each stripe have, always in their order. Two buffers, so one barrier per round.
  __device__ void add_warps(int first, int buffer, const float (&sum)[4]) const {
    float2* all = reinterpret_cast<float2*>(shared + p.partial_at) + buffer * warps * p.tokens * 4;
    float2* mine = all + warp * p.tokens * 4;  // [warp][token][pair of rows]
    const int row = lane / 4, pair = lane % 4;
    if (row < p.tokens) mine[row * 4 + pair] = make_float2(sum[0], sum[1]);
    if (kTokens > 8 && row + 8 < p.tokens) mine[(row + 8) * 4 + pair] = make_float2(sum[2], sum[3]);
    __syncthreads();
    const int stripes = min(p.warps_n, stripe_end - first);
    for (int i = threadIdx.x; i < stripes * p.tokens * 4; i += blockDim.x) {
      float a = 0.f, b = 0.f;
      for (int j = 0; j < p.warps_k; ++j) {
        const float2 v = all[j * p.warps_n * p.tokens * 4 + i];
        a += v.x;
        b += v.y;
      }
      const int stripe = i / (p.tokens * 4);
      emit(i / 4 - stripe * p.tokens, (first + stripe) * kStripeRows + 2 * (i % 4), a, b);
    }
  }

  __device__ void emit(int token, int column, float a, float b) const {
    if (token >= p.tokens) return;
    if (p.splits > 1) {
      keep_partial(p, blockIdx.y, token, column, a, b);
    } else {
      finish(p, token, column, a, b);
    }
  }

  static __device__ char* dynamic_shared() {
    extern __shared__ __align__(16) char bytes[];
    return bytes;
  }

  const Int4GemmParams& p;
  char* const shared = dynamic_shared();
  const int lane, warp, warps;
  int stripe_begin, stripe_end, chunk_begin, chunk_end;
  int warp_n, warp_k;
  int fetch_stripe, fetch_chunk, fetch_slot = 0;
  int slot = 0;
};

}  // namespace

#define ORIN_INSTANTIATE(group)                                                                              \
  extern "C" __global__ void __launch_bounds__(512, 1) int4_gemm_few_##group##_8(Int4GemmParams p) {            \
    Few<group, 8>(p).run();                                                                                  \
  }                                                                                                          \
  extern "C" __global__ void __launch_bounds__(512, 1) int4_gemm_few_##group##_16(Int4GemmParams p) {           \
    Few<group, 16>(p).run();                                                                                 \
  }

ORIN_INSTANTIATE(32)
ORIN_INSTANTIATE(64)
ORIN_INSTANTIATE(128)
