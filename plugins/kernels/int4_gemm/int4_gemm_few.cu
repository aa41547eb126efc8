// SPDX-License-Identifier: Apache-2.0
// OrinInt4Gemm for 1..16 tokens: limited by reading W, so W goes straight from memory to the tensor cores, once.
//
// W is the m16 operand of m16n8k16 and the tokens the n8 operand. 8 rows of W (a stripe) are the grain of work, since
// they spread evenly over many SMs. Where an SM has many, a warp takes two at a time, which fill m16. Where it has one,
// the stripe does so alone by a trick that costs nothing: a word of 8 columns gives 4 registers
//
//     a0 = columns 0 1, a1 = columns 4 5, a2 = columns 2 3, a3 = columns 6 7     of row lane / 4
//
// where a0 and a2 are rows 0..7 of the operand, a1 and a3 rows 8..15. Multiplied with columns 0..3 of the tokens rows
// 0..7 of the result are right, multiplied with columns 4..7 rows 8..15 are; the other halves are not used. The two
// right halves of the two results lie in the same lane, which adds them.
//
//   grid.x   ranges of stripes, one or two per SM      grid.y   splits of the columns
//   block    warps_n x warps_k warps: warp (i, j) takes the stripes i, i + warps_n, ... of the block's range and of
//            each the j-th of warps_k shares of the chunks of 128 columns
//
// A lane keeps its 16 bytes of the next kAhead chunks in registers and asks for a chunk as soon as it has used the one
// before it in the same place, so that kAhead chunks per warp are always in flight, the first ones before anything
// else is done. Meanwhile the block copies the tokens, normalises them in float32 and leaves them in shared memory as
// float16. Scales multiply float32 sums of a group; a group's products are exact in the tensor core.
//
// The executed path is kept short: no divisions, no inlined copies. A launch lasts a few microseconds, and instructions
// of a warp that are not loads or products would be a good part of it.
#include "kernels/int4_gemm/int4.cuh"

using namespace orin;

namespace {

constexpr int kWarp = 32;
constexpr int kMaxWarps = 16;
constexpr int kSegment = 256;  // columns of a token that one warp sums

__device__ __forceinline__ uint32 load_u16(const void* pointer) {
  unsigned short v;
  asm volatile("ld.global.nc.u16 %0, [%1];\n" : "=h"(v) : "l"(pointer));
  return v;
}

__device__ __forceinline__ uint32 load_u8(const void* pointer) {
  uint32 v;
  asm volatile("ld.global.nc.u8 %0, [%1];\n" : "=r"(v) : "l"(pointer));
  return v;
}

template <int kGroup, int kTokens, bool kZeros, int kAhead, int kStripes>
class Few {
  using Part = Piece<kGroup>;

  static constexpr int kSums = kTokens / 4;  // of a lane, per stripe

  struct Slot {
    uint4 weight;
    uint32 scale[Part::kGroups];
    uint32 zeros[kZeros ? Part::kZeroPairs : 1];
  };

  // A run of whole chunks of one stripe, for this lane.
  struct Run {
    int stripe;
    int chunks;  // that are left, 0 or less when there are none
    int chunk;
    int rows;  // of the stripe, or of all of the kStripes
    const char* weight;
    const char* scales;
    const char* zeros;
  };

 public:
  __device__ explicit Few(const Int4GemmParams& params)
      : p(params), lane(threadIdx.x % kWarp), warp_n(threadIdx.x / kWarp), warp_k(threadIdx.y) {
    const int block = blockIdx.x, first_share = blockIdx.y * p.warps_k;
    stripe_begin = block * p.stripes + min(block, p.more_stripes);
    stripe_end = stripe_begin + p.stripes + (block < p.more_stripes);
    const int share = first_share + warp_k;
    chunk_begin = share * p.chunks + min(share, p.more_chunks);
    chunk_count = p.chunks + (share < p.more_chunks);
    has_short_chunk = p.has_short_chunk && share == p.splits * p.warps_k - 1;
    split_begin = first_share * p.chunks + min(first_share, p.more_chunks);
  }

  __device__ void run() {
    if (p.rows && all_skipped()) {
      write_zeros();
      return;
    }
    Run now = begin_stripe(stripe_begin + kStripes * warp_n);
    Slot slots[kAhead][kStripes];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) fetch(slots[j], now, j);
    copy_tokens();
    // The residual of the first round, before anything is waited for.
    const float2 residual = residual_of(p, lane / 4, (stripe_begin + warp()) * kStripeRows + lane % 4 * 2);
    if (p.norm) {
      normalise();
    } else {
      cp_async_wait<0>();
    }
    __syncthreads();
    // Tokens beyond the last are columns of n8 of their own: whatever they hold reaches no other and is not stored.
    const int token = min(lane / 4, p.tokens - 1), next_token = min(lane / 4 + 8, p.tokens - 1);
    const char* x = shared + token * p.x_stride + lane % 4 * 16;
    x_next = (next_token - token) * p.x_stride;
#pragma unroll 1
    for (int first = stripe_begin, round = 0; first < stripe_end; first += kStripes * p.warps_n, ++round) {
      float sum[kStripes][kSums] = {};
      if (now.stripe < stripe_end) {
        const int stripe = now.stripe;
#pragma unroll 1
        do {
          const Run next = after(now);
          const char* at = x + (now.chunk - split_begin) * (2 * kChunkColumns);
#pragma unroll
          for (int j = 0; j < kAhead; ++j) {
            if (j < now.chunks) multiply(slots[j], now.chunk + j, at + j * (2 * kChunkColumns), sum);
            fetch(slots[j], next, j);
          }
          now = next;
        } while (now.stripe == stripe);
        if (has_short_chunk) multiply_short(stripe, x, sum);
      }
      if (p.warps_k > 1) {
        add_warps(first, round, sum, residual);
      } else {
#pragma unroll
        for (int i = 0; i < kStripes; ++i) {
          const int stripe = first + kStripes * warp_n + i;
          if (stripe < stripe_end) store(stripe, sum[i]);
        }
      }
    }
    if (p.splits > 1 && is_last_split(p, blockIdx.x)) {
      for_each_pair([&](int token, int column) { finish_splits(p, token, column); });
    }
  }

 private:
  template <typename Body>
  __device__ void for_each_pair(Body body) const {
    const int pairs = (stripe_end - stripe_begin) * (kStripeRows / 2);
#pragma unroll 1
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < pairs * p.tokens; i += blockDim.x * blockDim.y) {
      body(i / pairs, stripe_begin * kStripeRows + 2 * (i % pairs));
    }
  }

  __device__ bool all_skipped() const {
#pragma unroll 1
    for (int token = 0; token < p.tokens; ++token) {
      if (p.rows[token] >= 0) return false;
    }
    return true;
  }

  __device__ void write_zeros() const {
    if (blockIdx.y) return;
    for_each_pair([&](int token, int column) { finish(p, token, column, 0.f, 0.f); });
  }

  __device__ Run begin_stripe(int stripe) const {
    Run run;
    run.stripe = stripe;
    run.chunk = chunk_begin;
    run.chunks = stripe < stripe_end ? chunk_count : 0;
    run.rows = min(kStripes * kStripeRows, min(stripe_end * kStripeRows, p.n) - stripe * kStripeRows);
    run.weight = static_cast<const char*>(p.weight) + size_t(uint32(stripe)) * p.stripe_bytes +
                 uint32(chunk_begin * 512 + 16 * lane);
    run.scales = static_cast<const char*>(p.scales) + size_t(uint32(stripe)) * p.stripe_scale_bytes +
                 uint32(chunk_begin * (16 * Part::kGroups) + lane / 4 * 2);
    if (kZeros) {
      run.zeros = static_cast<const char*>(p.zeros) + size_t(uint32(stripe)) * p.stripe_zero_bytes + uint32(lane / 4);
    }
    return run;
  }

  // The run of this warp that follows: further on in the stripe, or the start of the warp's next stripe.
  __device__ Run after(const Run& run) const {
    if (run.chunks <= kAhead) return begin_stripe(run.stripe + kStripes * p.warps_n);
    Run next = run;
    next.chunks -= kAhead;
    next.chunk += kAhead;
    next.weight += kAhead * 512;
    next.scales += kAhead * 16 * Part::kGroups;
    return next;
  }

  // Ask for chunk j of a run. Rows that are absent are zero.
  __device__ void fetch(Slot (&slot)[kStripes], const Run& run, int j) const {
    if (j >= run.chunks) return;
    if (run.rows == kStripes * kStripeRows) {
#pragma unroll
      for (int i = 0; i < kStripes; ++i) fetch_rows(slot[i], run, i, j, kStripeRows);
      return;
    }
#pragma unroll
    for (int i = 0; i < kStripes; ++i) {
      const int rows = min(kStripeRows, run.rows - i * kStripeRows);
      if (lane / 4 < rows) {
        fetch_rows(slot[i], run, i, j, rows);
      } else {
        slot[i] = {};
      }
    }
  }

  // `run` points to its first chunk in a stripe of 8 rows: where there are fewer, the chunks before it are shorter.
  __device__ void fetch_rows(Slot& slot, const Run& run, int i, int j, int rows) const {
    const int missing = kStripeRows - rows, chunk = run.chunk + j;
    slot.weight = load_streaming(run.weight + i * p.stripe_bytes - run.chunk * (64 * missing) + j * (64 * rows));
    const char* scales = run.scales + i * p.stripe_scale_bytes - run.chunk * (2 * Part::kGroups * missing) +
                         j * (2 * Part::kGroups * rows);
#pragma unroll
    for (int g = 0; g < Part::kGroups; ++g) slot.scale[g] = load_u16(scales + g * 2 * rows);
    if (kZeros) {
      const char* zeros = run.zeros + i * p.stripe_zero_bytes + chunk * Part::kGroups / 2 * rows;
#pragma unroll
      for (int g = 0; g < Part::kZeroPairs; ++g) slot.zeros[g] = load_u8(zeros + g * rows);
    }
  }

  // The last chunk of a stripe where it has fewer than 128 columns; rare, and so not prepared for.
  __device__ void multiply_short(int stripe, const char* x, float (&sum)[kStripes][kSums]) const {
    const int chunk = p.k / kChunkColumns;
    Slot slot[kStripes];
#pragma unroll
    for (int i = 0; i < kStripes; ++i) {
      slot[i] = {};
      if (stripe + i >= stripe_end) continue;
      const Part piece(p, stripe + i, chunk);
      slot[i].weight = piece.ragged_weight(lane);
#pragma unroll
      for (int g = 0; g < Part::kGroups; ++g) slot[i].scale[g] = __half_as_ushort(piece.ragged_scale(g, lane / 4));
#pragma unroll
      for (int g = 0; kZeros && g < Part::kZeroPairs; ++g) slot[i].zeros[g] = piece.ragged_zeros(g, lane / 4);
    }
    multiply(slot, chunk, x + (chunk - split_begin) * (2 * kChunkColumns), sum);
  }

  // sum += W x of one chunk: lane (g, t) has row g of each stripe, tokens 2t and 2t + 1, and 8 + 2t and 9 + 2t.
  __device__ void multiply(const Slot (&slot)[kStripes], int chunk, const char* x,
                           float (&sum)[kStripes][kSums]) const {
#pragma unroll
    for (int group = 0; group < Part::kGroups; ++group) {
      constexpr int kWords = 4 / Part::kGroups;
      float front[kTokens / 8][4], back[kTokens / 8][4];  // columns 0..3 and 4..7 of every 8
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const int word = group * kWords + i;
        uint32 b[kStripes][4];
#pragma unroll
        for (int s = 0; s < kStripes; ++s) {
          ZeroPoint zero;
          if (kZeros) {
            zero = ZeroPoint(slot[s].zeros[group / 2] >> ((Part::kGroups == 1 ? chunk : group) % 2 * 4) & 15);
          }
          dequantise((&slot[s].weight.x)[word], zero, b[s]);
        }
        // With two stripes m16 is full. With one, both products take the same operand and half of each is of use.
        constexpr int kOther = kStripes - 1;
        const uint32 a0[4] = {b[0][0], kOther ? b[kOther][0] : b[0][2], b[0][1], kOther ? b[kOther][1] : b[0][3]};
        const uint32 a1[4] = {kOther ? b[0][2] : b[0][0], b[kOther][2], kOther ? b[0][3] : b[0][1], b[kOther][3]};
#pragma unroll
        for (int j = 0; j < kTokens / 8; ++j) {
          const uint4 v = *reinterpret_cast<const uint4*>((j == 0 ? x : x + x_next) + 64 * word);
          if (i == 0) {
            mma_first(front[j], a0, {v.x, v.y});
            mma_first(back[j], a1, {v.z, v.w});
          } else {
            mma(front[j], a0, {v.x, v.y});
            mma(back[j], a1, {v.z, v.w});
          }
        }
      }
#pragma unroll
      for (int s = 0; s < kStripes; ++s) {
        const float scale = __half2float(__ushort_as_half(static_cast<unsigned short>(slot[s].scale[group])));
#pragma unroll
        for (int j = 0; j < kTokens / 8; ++j) {
          const int of_back = kStripes == 1 ? 2 : 2 * s;
          sum[s][2 * j] += (front[j][2 * s] + back[j][of_back]) * scale;
          sum[s][2 * j + 1] += (front[j][2 * s + 1] + back[j][of_back + 1]) * scale;
        }
      }
    }
  }

  // The block's columns of the tokens, 8 per lane at a time. 2^x_share warps share a token and take its segments of
  // 256 columns in turn. The sum of squares is cut the same way whatever the share, so that a token's result does not
  // depend on the other tokens.
  template <typename Body>
  __device__ void for_each_unit(Body body) const {
    const int split_width = width(), all = p.warps_n * p.warps_k;
    const bool is_one = p.tokens == 1;  // all warps share it
    const int share = is_one ? all : 1 << p.x_share, step = is_one ? 1 : all >> p.x_share;
    const int first = is_one ? 0 : warp() >> p.x_share;
    if (first >= step) return;
#pragma unroll 1
    for (int token = first; token < p.tokens; token += step) {
#pragma unroll 1
      for (int segment = first_segment(); segment * kSegment < split_width; segment += share) {
        const int column = segment * kSegment + 8 * lane;
        body(token, segment, column, column < split_width);
      }
    }
  }

  __device__ int first_segment() const { return p.tokens == 1 ? warp() : warp() & ((1 << p.x_share) - 1); }

  // Columns of the block's split, up to the end of the last chunk.
  __device__ int width() const {
    const int end_share = (blockIdx.y + 1) * p.warps_k;
    const int end = end_share * p.chunks + min(end_share, p.more_chunks);
    return (end - split_begin + (p.has_short_chunk && blockIdx.y == gridDim.y - 1)) * kChunkColumns;
  }

  __device__ int warp() const { return warp_k * p.warps_n + warp_n; }

  __device__ uint4* shared_x(int token, int column) const {
    return reinterpret_cast<uint4*>(shared + token * p.x_stride + 2 * column);
  }

  __device__ void copy_tokens() const {
    const int begin = split_begin * kChunkColumns;
    for_each_unit([&](int token, int, int column, bool is_inside) {
      if (!is_inside) return;
      const int row = p.rows && !p.x_is_gathered ? p.rows[token] : token;
      const bool is_there = row >= 0 && begin + column < p.k;
      const half* from = static_cast<const half*>(p.x) + (is_there ? size_t(row) * p.k + begin + column : 0);
      cp_async16(shared_x(token, column), from, is_there);
    });
    cp_async_commit();
  }

  // Only with all columns in the block. Each lane reads back what it copied itself.
  __device__ void normalise() const {
    float* sums = reinterpret_cast<float*>(shared + p.sums_at);
    // The weights of the first segment come from memory: asked for before the tokens are waited for.
    int known = first_segment() * kSegment + 8 * lane;
    float4 w[2] = {};
    if (known < p.k) {
      w[0] = *reinterpret_cast<const float4*>(p.norm + known);
      w[1] = *reinterpret_cast<const float4*>(p.norm + known + 4);
    }
    cp_async_wait<0>();
    for_each_unit([&](int token, int segment, int column, bool is_inside) {
      const uint4 x = is_inside ? *shared_x(token, column) : uint4{0, 0, 0, 0};
      const float sum = sum_of_squares(x);
      if (lane == 0) sums[token * kWarp + segment] = sum;
    });
    __syncthreads();
    for_each_unit([&](int token, int, int column, bool is_inside) {
      const float sum = warp_sum(lane * kSegment < p.k ? sums[token * kWarp + lane] : 0.f);
      const float scale = rsqrtf(sum * p.inverse_k + p.norm_eps);
      if (!is_inside || column >= p.k) return;
      if (column != known) {
        known = column;
        w[0] = *reinterpret_cast<const float4*>(p.norm + column);
        w[1] = *reinterpret_cast<const float4*>(p.norm + column + 4);
      }
      uint4* at = shared_x(token, column);
      *at = normalised(*at, scale, w);
    });
  }

  // A stripe of one warp. Lanes of neighbouring rows exchange one of their two tokens: a pair of rows of one is stored.
  __device__ void store(int stripe, const float (&sum)[kSums]) const {
    const bool is_odd = lane / 4 % 2;
    const int column = stripe * kStripeRows + lane / 8 * 2;
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
      const float other = __shfl_xor_sync(0xffffffffu, is_odd ? sum[2 * j] : sum[2 * j + 1], 4);
      const int token = 8 * j + lane % 4 * 2 + is_odd;
      if (token < p.tokens) {
        emit(token, column, is_odd ? other : sum[2 * j], is_odd ? sum[2 * j + 1] : other,
             residual_of(p, token, column));
      }
    }
  }

  __device__ void emit(int token, int column, float a, float b, float2 residual) const {
    if (p.splits > 1) {
      keep_partial(p, blockIdx.y, token, column, a, b);
    } else {
      finish(p, token, column, a, b, residual);
    }
  }

  // Add what the warps_k warps of each stripe have, always in their order, and store. Sums lie in shared memory as
  // [warp][token][row], in two buffers, so that one barrier per round is enough.
  __device__ void add_warps(int first, int round, const float (&sum)[kStripes][kSums], float2 first_residual) const {
    const int stripe_floats = p.tokens * kStripeRows, stripes = kStripes * p.warps_n;
    float* all = reinterpret_cast<float*>(shared + p.partial_at) + (round & 1) * stripes * p.warps_k * stripe_floats;
    float* mine = all + (warp_k * stripes + kStripes * warp_n) * stripe_floats + lane / 4;
#pragma unroll
    for (int s = 0; s < kStripes; ++s) {
#pragma unroll
      for (int j = 0; j < kSums; ++j) {
        const int token = j / 2 * 8 + lane % 4 * 2 + j % 2;
        if (token < p.tokens) mine[s * stripe_floats + token * kStripeRows] = sum[s][j];
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int i = warp(); i < min(stripes, stripe_end - first); i += p.warps_n * p.warps_k) {
      const float* from = all + i * stripe_floats + 2 * lane;  // lane / 4: token, lane % 4: pair of rows
      const int column = (first + i) * kStripeRows + lane % 4 * 2;
#pragma unroll 1
      for (int token = lane / 4; token < p.tokens; token += 8, from += 64) {
        const bool is_first = round == 0 && i == warp() && token < 8;
        const float2 residual = is_first ? first_residual : residual_of(p, token, column);
        float2 total = *reinterpret_cast<const float2*>(from);
#pragma unroll
        for (int j = 1; j < kMaxWarps; ++j) {  // not a loop: all loads at once
          const float2 v =
              j < p.warps_k ? *reinterpret_cast<const float2*>(from + j * stripes * stripe_floats) : float2{0.f, 0.f};
          total.x += v.x;
          total.y += v.y;
        }
        emit(token, column, total.x, total.y, residual);
      }
    }
  }

  static __device__ char* dynamic_shared() {
    extern __shared__ __align__(16) char bytes[];
    return bytes;
  }

  const Int4GemmParams& p;
  char* const shared = dynamic_shared();
  const int lane, warp_n, warp_k;
  int stripe_begin, stripe_end;
  int split_begin;               // first chunk of the block
  int chunk_begin, chunk_count;  // this warp's share of whole chunks
  bool has_short_chunk;
  int x_next;
};

}  // namespace

#define ORIN_FEW(group, tokens, has_zeros, ahead, stripes, name)                               \
  extern "C" __global__ void __launch_bounds__(512, 1) int4_gemm_few_##group##_##tokens##name( \
      Int4GemmParams p) {                                                                      \
    Few<group, tokens, has_zeros, ahead, stripes>(p).run();                                    \
  }

// Chunks ahead: what fits in 128 registers; smaller groups have more scales to keep, more tokens more sums.
ORIN_FEW(32, 8, false, 2, 1, )
ORIN_FEW(32, 8, true, 2, 1, _zeros)
ORIN_FEW(32, 16, false, 1, 1, )
ORIN_FEW(32, 16, true, 1, 1, _zeros)
ORIN_FEW(64, 8, false, 4, 1, )
ORIN_FEW(64, 8, true, 4, 1, _zeros)
ORIN_FEW(64, 16, false, 4, 1, )
ORIN_FEW(64, 16, true, 2, 1, _zeros)
ORIN_FEW(128, 8, false, 4, 1, )
ORIN_FEW(128, 8, true, 4, 1, _zeros)
ORIN_FEW(128, 16, false, 4, 1, )
ORIN_FEW(128, 16, true, 4, 1, _zeros)
// Two stripes at a time.
ORIN_FEW(32, 8, false, 1, 2, _pair)
ORIN_FEW(32, 8, true, 1, 2, _pair_zeros)
ORIN_FEW(32, 16, false, 1, 2, _pair)
ORIN_FEW(32, 16, true, 1, 2, _pair_zeros)
ORIN_FEW(64, 8, false, 2, 2, _pair)
ORIN_FEW(64, 8, true, 2, 2, _pair_zeros)
ORIN_FEW(64, 16, false, 1, 2, _pair)
ORIN_FEW(64, 16, true, 1, 2, _pair_zeros)
ORIN_FEW(128, 8, false, 4, 2, _pair)
ORIN_FEW(128, 8, true, 2, 2, _pair_zeros)
ORIN_FEW(128, 16, false, 2, 2, _pair)
ORIN_FEW(128, 16, true, 2, 2, _pair_zeros)
