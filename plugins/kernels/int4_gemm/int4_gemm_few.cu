// SPDX-License-Identifier: Apache-2.0
// OrinInt4Gemm for 1..16 tokens: limited by reading W, so W goes straight from memory to the tensor cores, once.
//
// W is the m16 operand of m16n8k16 and the tokens the n8 operand. 8 rows of W (a stripe) are the grain of work, since
// they spread evenly over many SMs. They fill m16 by a trick that costs nothing: a word of 8 columns gives 4 registers
//
//     a0 = columns 0 1, a1 = columns 4 5, a2 = columns 2 3, a3 = columns 6 7     of row lane / 4
//
// where a0 and a2 are rows 0..7 of the operand, a1 and a3 rows 8..15. Multiplied with columns 0..3 of the tokens rows
// 0..7 of the result are right, multiplied with columns 4..7 rows 8..15 are; the other halves are not used. The two
// right halves of the two results lie in the same lane, which adds them.
//
//   grid.x   ranges of stripes, one per SM      grid.y   splits of the columns
//   block    warps_n x warps_k warps: warp (i, j) takes the stripes i, i + warps_n, ... of the block's range and of
//            each the chunks j, j + warps_k, ... of 128 columns
//
// Each lane copies its own 16 bytes of a chunk by cp.async into a ring of its own: no barrier is needed to read them
// back, and kDepth - 1 chunks per warp are in flight before the tokens have even arrived. While they fly the block
// copies the tokens, normalises them in float32 and leaves them in shared memory as float16.
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
  using Part = Piece<kGroup>;

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
    ragged_stripe = p.n % kStripeRows ? stripes - 1 : -1;
    ragged_chunk = p.k % kChunkColumns ? chunks - 1 : -1;
    slot_bytes = blockDim.x * (16 + 4 * Part::kGroups + (p.zeros ? 4 * Part::kZeroPairs : 0));
    ring = shared + p.ring_at;
    // Tokens beyond the last are columns of n8 of their own: whatever they hold reaches no other and is not stored.
    my_x = shared + min(lane / 4, p.tokens - 1) * p.x_stride + lane % 4 * 16;
    my_x_next = (min(lane / 4 + 8, p.tokens - 1) - min(lane / 4, p.tokens - 1)) * p.x_stride;
    my_token = lane % 4 * 2 + lane / 4 % 2;
    start_stripe(stripe_begin + warp_n);
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
      float2 pair[kTokens / 8];
#pragma unroll
      for (int j = 0; j < kTokens / 8; ++j) pair[j] = pair_rows(sum[2 * j], sum[2 * j + 1]);
      if (p.warps_k > 1) {
        add_warps(first, round & 1, pair);
      } else if (stripe < stripe_end) {
#pragma unroll
        for (int j = 0; j < kTokens / 8; ++j) {
          emit(my_token + 8 * j, stripe * kStripeRows + lane / 8 * 2, pair[j].x, pair[j].y);
        }
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
      const int row = p.rows && !p.x_is_gathered ? p.rows[task.token] : task.token;
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

  // Start copying this warp's next chunk. Ring: kDepth slots of [lanes of the block][16 bytes of weights], then per
  // group the scales of this lane's row and its neighbour, then zero points of four rows.
  __device__ void fetch() {
    if (fetch_stripe < stripe_end) {
      char* to = ring + fetch_at;
      const int threads = blockDim.x;
      if (fetch_stripe == ragged_stripe || fetch_chunk == ragged_chunk) {
        fetch_ragged(to);
      } else {
        cp_async16(to + 16 * threadIdx.x, fetch_weight);
        to += 16 * threads + 4 * threadIdx.x;
#pragma unroll
        for (int i = 0; i < Part::kGroups; ++i) cp_async<4>(to + i * 4 * threads, fetch_scales + 16 * i);
        if (p.zeros) {
          to += Part::kGroups * 4 * threads;
          const char* from = fetch_zeros + fetch_chunk * Part::kGroups / 2 * 8;
#pragma unroll
          for (int i = 0; i < Part::kZeroPairs; ++i) cp_async<4>(to + i * 4 * threads, from + 8 * i);
        }
      }
      fetch_chunk += p.warps_k;
      fetch_weight += p.warps_k * 512;
      fetch_scales += p.warps_k * (16 * Part::kGroups);
      if (fetch_chunk >= chunk_end) start_stripe(fetch_stripe + p.warps_n);
    }
    cp_async_commit();
    fetch_at = fetch_at + slot_bytes == kDepth * slot_bytes ? 0 : fetch_at + slot_bytes;
  }

  __device__ void start_stripe(int stripe) {
    fetch_stripe = stripe;
    fetch_chunk = chunk_begin + warp_k;
    const Part piece(p, stripe, fetch_chunk);
    fetch_weight = piece.weight + 16 * lane;
    fetch_scales = piece.scales + lane / 8 * 4;
    fetch_zeros = static_cast<const char*>(p.zeros) + size_t(stripe) * kStripeRows * ((p.k / kGroup + 1) / 2) +
                  lane / 16 * 4;
  }

  __device__ void fetch_ragged(char* to) const {
    const Part piece(p, fetch_stripe, fetch_chunk);
    const int row = lane / 4, even = row & ~1, threads = blockDim.x;
    *reinterpret_cast<uint4*>(to + 16 * threadIdx.x) = piece.ragged_weight(lane);
    uint32* words = reinterpret_cast<uint32*>(to + 16 * threads) + threadIdx.x;
    for (int i = 0; i < Part::kGroups; ++i) {
      words[i * threads] = bits(__halves2half2(piece.ragged_scale(i, even), piece.ragged_scale(i, even + 1)));
    }
    if (p.zeros) {
      for (int i = 0; i < Part::kZeroPairs; ++i) {
        words[(Part::kGroups + i) * threads] = uint32(piece.ragged_zeros(i, row)) << (row % 4 * 8);
      }
    }
  }

  // sum += W x of one chunk: lane (g, t) has row g of the stripe, tokens 2t and 2t + 1, and 8 + 2t and 9 + 2t.
  __device__ void multiply(int chunk, float (&sum)[4]) {
    const char* slot = ring + read_at;
    const int row = lane / 4, threads = blockDim.x;
    const uint4 weight = *reinterpret_cast<const uint4*>(slot + 16 * threadIdx.x);
    const uint32* words = reinterpret_cast<const uint32*>(slot + 16 * threads) + threadIdx.x;
    const char* x = my_x + (chunk - chunk_begin) * (2 * kChunkColumns);
#pragma unroll
    for (int group = 0; group < Part::kGroups; ++group) {
      ZeroPoint zero;
      if (p.zeros) {
        const uint32 pair = words[(Part::kGroups + group / 2) * threads] >> (row % 4 * 8);
        zero = ZeroPoint(pair >> ((Part::kGroups == 1 ? chunk : group) % 2 * 4) & 15);
      }
      constexpr int kWords = 4 / Part::kGroups;
      float upper[kTokens / 8][4], lower[kTokens / 8][4];
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const int word = group * kWords + i;
        uint32 b[4];
        dequantise((&weight.x)[word], zero, b);
        const uint32 a[4] = {b[0], b[2], b[1], b[3]};
#pragma unroll
        for (int j = 0; j < kTokens / 8; ++j) {
          const uint4 v = *reinterpret_cast<const uint4*>((j == 0 ? x : x + my_x_next) + 64 * word);
          if (i == 0) {
            mma_first(upper[j], a, {v.x, v.y});
            mma_first(lower[j], a, {v.z, v.w});
          } else {
            mma(upper[j], a, {v.x, v.y});
            mma(lower[j], a, {v.z, v.w});
          }
        }
      }
      const half2 scales = halves(words[group * threads]);
      const float scale = __half2float(row % 2 ? __high2half(scales) : __low2half(scales));
#pragma unroll
      for (int j = 0; j < kTokens / 8; ++j) {
        sum[2 * j] += (upper[j][0] + lower[j][2]) * scale;
        sum[2 * j + 1] += (upper[j][1] + lower[j][3]) * scale;
      }
    }
    read_at = read_at + slot_bytes == kDepth * slot_bytes ? 0 : read_at + slot_bytes;
  }

  // From rows g of two tokens to rows 2h, 2h + 1 of one: lanes of neighbouring rows exchange one of their two.
  __device__ float2 pair_rows(float first, float second) const {
    const bool is_odd = lane / 4 % 2;
    const float other = __shfl_xor_sync(0xffffffffu, is_odd ? first : second, 4);
    return is_odd ? make_float2(other, second) : make_float2(first, other);
  }

  // Add what the warps_k warps of each stripe have, always in their order. Two buffers, so one barrier per round.
  __device__ void add_warps(int first, int buffer, const float2 (&pair)[kTokens / 8]) const {
    float2* all = reinterpret_cast<float2*>(shared + p.partial_at) + buffer * warps * p.tokens * 4;
    float2* mine = all + warp * p.tokens * 4;  // [warp][token][pair of rows]
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
      if (my_token + 8 * j < p.tokens) mine[(my_token + 8 * j) * 4 + lane / 8] = pair[j];
    }
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
  int ragged_stripe, ragged_chunk;  // shorter than others; -1 = none
  int slot_bytes, fetch_at = 0, read_at = 0;
  char* ring;
  int fetch_stripe, fetch_chunk;
  const char *fetch_weight, *fetch_scales, *fetch_zeros;
  const char* my_x;  // this lane's token as operand
  int my_x_next;     // from there to the token 8 further
  int my_token;      // whose sums this lane has after pair_rows
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
