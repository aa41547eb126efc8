// SPDX-License-Identifier: Apache-2.0
// OrinInt4Gemm for 1..16 tokens without a norm in front: limited by reading W, and where W is small by latency.
//
//   grid.x   stripes of W (8 rows) in turn
//   block    32 x warps_k x warps_n: warp (i, j) takes the i-th of warps_k shares of the columns of every warps_n-th
//            stripe of the block
//
// Nothing stands between a warp and its first product but its own loads: W and the tokens come straight to registers,
// in the order of the operands, kAhead chunks of 128 columns at a time. A stripe fills rows 0..7 of m16; rows 8..15 are
// ones, so that the same products give the sum of the tokens' columns, which the zero points need. Behind one barrier
// the block adds up what its warps have of each stripe, always in their order.
//
// A launch lasts a few microseconds, and an instruction of 16 warps takes 4 cycles of it: hence the short code before
// the loads, with few conditions and no divisions.
#include "kernels/int4_gemm/few.cuh"

using namespace orin;

namespace {

template <int kGroup, int kTokens, bool kZeros, bool kRagged, int kAhead>
class Few {
  using Part = Piece<kGroup>;
  static constexpr int kGroups = Part::kGroups;
  static constexpr int kWords = 4 / kGroups;      // of a lane in a group
  static constexpr int kTilesN = kTokens / 8;     // n8 tiles
  static constexpr int kPairs = kStripeRows / 2;  // of rows of a stripe
  static constexpr int kMaxWarps = 16;

  // What a lane holds of a chunk: W, and tokens lane / 4 and lane / 4 + 8 in the operand's order.
  struct Slot {
    Weights<kGroup, kZeros, 1> weights;
    uint4 x[kTilesN][4];
  };

 public:
  __device__ explicit Few(const Int4GemmParams& params)
      : p(params),
        lane(threadIdx.x),
        first_stripe(blockIdx.x * blockDim.z + threadIdx.z),
        step(gridDim.x * blockDim.z),
        chunk_begin(threadIdx.y * p.warp_chunks + min(int(threadIdx.y), p.more_chunks)),
        chunk_count(p.warp_chunks + (int(threadIdx.y) < p.more_chunks)) {}

  __device__ void run() {
    int stripe = first_stripe;
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) tokens[j] = row_of_x(p, lane / 4 + 8 * j) * p.row_bytes + lane % 4 * 16;
    int left = stripe < p.tiles ? chunk_count : 0;  // chunks up to the end of the stripe
    Slot slots[kAhead];
    point(stripe, chunk_begin);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) fetch(slots[j], stripe, j, left);
    // Before anything is waited for; not even converted.
    uint32 residual = 0;
    if (p.is_plain && p.residual && threadIdx.y * kWarp < p.warp_tiles * (kPairs * kTokens))
      residual = first_residual();
    if (p.rows && all_skipped(p)) left = 0;
    float* to = sums(0) + lane % 4 * (2 * kStripeRows) + lane / 4;
    float sum[kTilesN][2] = {};
#pragma unroll 1
    while (left > 0) {
      const int chunk = chunk_begin + chunk_count - left;
      int next = left - kAhead;  // chunks that follow in the stripe, or in the next
      if (next <= 0) {
        stripe += step;
        next = stripe < p.tiles ? chunk_count : 0;
      }
      if (next == 0) {
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          if (j < left) multiply(slots[j], chunk + j, sum);
        }
      } else {
        point(stripe, chunk_begin + chunk_count - next);
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          if (j < left) multiply(slots[j], chunk + j, sum);
          fetch(slots[j], stripe, j, next);
        }
      }
      if (left <= kAhead) {
        leave(to, sum);
        to += blockDim.z * blockDim.y * p.tokens * kStripeRows;
      }
      left = next;
    }
    __syncthreads();
    add_warps(residual);
  }

 private:
  // To chunk `chunk` of a stripe and the chunks behind it.
  __device__ void point(int stripe, int chunk) {
    chunk_now = chunk;
    weight = static_cast<const char*>(p.weight) + (uint32(stripe) * p.stripe_bytes + uint32(chunk * 512 + lane * 16));
    scales = static_cast<const char*>(p.scales) +
             (uint32(stripe) * p.stripe_scale_bytes + uint32(chunk * (16 * kGroups) + lane / 4 * 2));
    if (kZeros) zeros = static_cast<const char*>(p.zeros) + (uint32(stripe) * p.stripe_zero_bytes + uint32(lane / 4));
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) {
      x[j] = static_cast<const char*>(p.x) + (tokens[j] + uint32(chunk * (2 * kChunkColumns)));
      asm volatile("" : "+l"(x[j]));
    }
    asm volatile("" : "+l"(weight), "+l"(scales));  // or each load would work out its address by itself
  }

  __device__ void fetch(Slot& slot, int stripe, int j, int left) const {
    if (j >= left) return;
    const int chunk = chunk_now + j;
    if (kRagged) {
      slot.weights.load_ragged(p, stripe, chunk);
    } else {
      slot.weights.load(p, weight + 512 * j, scales + 16 * kGroups * j,
                        kZeros ? zeros + chunk * kGroups / 2 * kStripeRows : nullptr);
    }
    const int words = kRagged && chunk == p.short_chunk ? p.k / 32 % 4 : 4;
#pragma unroll
    for (int t = 0; t < kTilesN; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (kRagged) slot.x[t][i] = uint4{0, 0, 0, 0};
        if (i < words) slot.x[t][i] = load_x(x[t] + 2 * kChunkColumns * j + 64 * i);
      }
    }
  }

  // sum += W x of one chunk: lane (g, t) has row g, tokens 2t and 2t + 1, and 8 + 2t and 9 + 2t.
  __device__ void multiply(const Slot& slot, int chunk, float (&sum)[kTilesN][2]) const {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      float low[kTilesN][4], high[kTilesN][4];
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        uint32 a[4];
        nibbles(slot.weights.word[0][g * kWords + i], a);
#pragma unroll
        for (int j = 0; j < kTilesN; ++j) {
          const uint4 v = slot.x[j][g * kWords + i];
          if (i == 0) {
            mma_first(low[j], {a[0], kOnes, a[1], kOnes}, {v.x, v.y});
            mma_first(high[j], {a[2], kOnes, a[3], kOnes}, {v.z, v.w});
          } else {
            mma(low[j], {a[0], kOnes, a[1], kOnes}, {v.x, v.y});
            mma(high[j], {a[2], kOnes, a[3], kOnes}, {v.z, v.w});
          }
        }
      }
      const float scale = slot.weights.scale_of(0, g), zero = slot.weights.zero_of(0, g, chunk);
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          sum[j][e] += (high[j][e] * (1.f / 16) + low[j][e] - zero * (low[j][2 + e] + high[j][2 + e])) * scale;
        }
      }
    }
  }

  // Sums in shared memory: [stripe of the warp][warp side by side][warp along k][token][row].
  __device__ float* sums(int tile) const {
    extern __shared__ __align__(16) float shared[];
    return shared +
           ((tile * int(blockDim.z) + int(threadIdx.z)) * int(blockDim.y) + int(threadIdx.y)) * p.tokens * kStripeRows;
  }

  __device__ void leave(float* to, float (&sum)[kTilesN][2]) const {
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (8 * j + lane % 4 * 2 + e < p.tokens) to[(8 * j + e) * kStripeRows] = sum[j][e];
        sum[j][e] = 0.f;
      }
    }
  }

  // A pair of rows of one token.
  struct Item {
    int tile, token, row;
  };

  __device__ Item item(int i) const {
    const int tile = i / (kPairs * kTokens);
    return {tile, i / kPairs % kTokens, (first_stripe + tile * step) * kStripeRows + i % kPairs * 2};
  }

  __device__ uint32 first_residual() const {
    const Item at = item(threadIdx.y * kWarp + lane);
    if (at.tile >= p.warp_tiles || at.token >= p.tokens || at.row >= p.n) return 0;
    return *reinterpret_cast<const uint32*>(static_cast<const half*>(p.residual) + (at.token * p.n + at.row));
  }

  // The warps along k of a stripe share its pairs of rows.
  __device__ void add_warps(uint32 first_residual) const {
    const int items = p.warp_tiles * (kPairs * kTokens), first = threadIdx.y * kWarp + lane;
    const int token_floats = p.tokens * kStripeRows;
#pragma unroll 1
    for (int i = first; i < items; i += blockDim.y * kWarp) {
      const Item at = item(i);
      if (at.token >= p.tokens || at.row >= p.n) continue;
      const bool is_first = p.is_plain && i == first;
      const float2 residual = is_first ? __half22float2(halves(first_residual)) : residual_of(p, at.token, at.row);
      const float* from = sums(at.tile) - threadIdx.y * token_floats + at.token * kStripeRows + i % kPairs * 2;
      float2 total = {0.f, 0.f};
#pragma unroll
      for (int j = 0; j < kMaxWarps; ++j) {  // not a loop: all loads at once
        if (j < int(blockDim.y)) {
          const float2 v = *reinterpret_cast<const float2*>(from + j * token_floats);
          total.x += v.x;
          total.y += v.y;
        }
      }
      finish(p, at.token, at.row, total.x * (1.f / kUnit), total.y * (1.f / kUnit), residual);
    }
  }

  const Int4GemmParams& p;
  const int lane, first_stripe, step, chunk_begin, chunk_count;
  int chunk_now;
  const char* weight;
  const char* scales;
  const char* zeros;
  const char* x[kTilesN];
  uint32 tokens[kTilesN];  // bytes from x to what this lane has of its tokens
};

}  // namespace

#define ORIN_FEW(group, tokens, has_zeros, is_ragged, ahead, name)                                                \
  extern "C" __global__ void __launch_bounds__(512, 1) int4_gemm_few_##group##_##tokens##name(Int4GemmParams p) { \
    begin_in_turn();                                                                                              \
    Few<group, tokens, has_zeros, is_ragged, ahead>(p).run();                                                     \
  }
#define ORIN_FEW_ALL(group, tokens, ahead, zeros_ahead)     \
  ORIN_FEW(group, tokens, false, false, ahead, )            \
  ORIN_FEW(group, tokens, true, false, zeros_ahead, _zeros) \
  ORIN_FEW(group, tokens, false, true, 1, _ragged)          \
  ORIN_FEW(group, tokens, true, true, 1, _zeros_ragged)

// Chunks ahead: what fits in 128 registers.
ORIN_FEW_ALL(32, 8, 2, 2)
ORIN_FEW_ALL(32, 16, 1, 1)
ORIN_FEW_ALL(64, 8, 2, 2)
ORIN_FEW_ALL(64, 16, 1, 1)
ORIN_FEW_ALL(128, 8, 3, 3)
ORIN_FEW_ALL(128, 16, 2, 1)
