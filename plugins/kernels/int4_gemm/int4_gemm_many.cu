// SPDX-License-Identifier: Apache-2.0
// OrinInt4Gemm for more than 16 tokens: tiles of tokens x rows of W on the tensor cores.
//
// A stage is one chunk (128 columns): the tile's tokens as float16 and its stripes of W as nibbles in the kernel
// layout, copied by cp.async kStages deep. A lane reads the nibbles of one row for the whole stage with one 16-byte
// load, dequantises a word (32 columns: two steps of m16n8k16) at a time into operand registers, times the scale
// rounded to float16, and uses it for all of its warp's tokens.
//
// Tokens in shared memory: rows of 16 units of 16 bytes. An operand load takes units 4w..4w+3 of two neighbouring rows
// per phase, so odd rows swap each half of 8 units for the other: unit u of row r lies at u ^ 4 (r & 1).
#include "kernels/int4_gemm/int4.cuh"

using namespace orin;

namespace {

template <int kM, int kN, int kWarpsM, int kWarpsN, int kStages, int kGroup, bool kZeros>
class Many {
  using Part = Piece<kGroup>;
  static constexpr int kThreads = kWarpsM * kWarpsN * 32;
  static constexpr int kTilesM = kM / kWarpsM / 16;  // m16 tiles of a warp
  static constexpr int kTilesN = kN / kWarpsN / 8;   // n8 tiles (stripes) of a warp
  static constexpr int kStripes = kN / kStripeRows;
  static constexpr int kRowBytes = 2 * kChunkColumns;
  static constexpr int kXBytes = kM * kRowBytes;
  static constexpr int kWeightBytes = kStripes * 512;
  static constexpr int kScaleBytes = kStripes * Part::kGroups * 16;
  static constexpr int kZeroBytes = kStripes * Part::kZeroPairs * 8;
  static constexpr int kStageBytes = kXBytes + kWeightBytes + kScaleBytes + kZeroBytes;
  static constexpr int kOutStride = kN + 8;  // floats; 8 keep the warps' float2 stores apart
  static_assert(kStageBytes % 16 == 0 && kM * kOutStride * 4 <= kStages * kStageBytes, "the output is staged there");

 public:
  __device__ explicit Many(const Int4GemmParams& params)
      : p(params), lane(threadIdx.x % 32), warp_m(threadIdx.x / 32 % kWarpsM), warp_n(threadIdx.x / 32 / kWarpsM) {
    // Tiles that run together share tokens and rows of W in L2: group_m tiles along the tokens, then the next rows.
    const int tiles_m = (p.tokens + kM - 1) / kM, tiles_n = (p.n + kN - 1) / kN;
    const int group = blockIdx.x / (p.group_m * tiles_n);
    const int inside = blockIdx.x - group * p.group_m * tiles_n;
    const int height = min(p.group_m, tiles_m - group * p.group_m);
    token_begin = (group * p.group_m + inside % height) * kM;
    stripe_begin = inside / height * kStripes;
    const int chunks = (p.k + kChunkColumns - 1) / kChunkColumns;
    chunk_begin = chunks * blockIdx.y / gridDim.y;
    chunk_end = chunks * (blockIdx.y + 1) / gridDim.y;
  }

  __device__ void run() {
    if (p.rows && !is_wanted()) {
      if (blockIdx.y == 0) for_each_pair([&](int token, int column, int) { finish(p, token, column, 0.f, 0.f); });
      return;
    }
    for (int i = 0; i < kStages - 1; ++i) fetch(chunk_begin + i, i);
    for (int chunk = chunk_begin, stage = 0; chunk < chunk_end; ++chunk, stage = stage + 1 == kStages ? 0 : stage + 1) {
      cp_async_wait<kStages - 2>();
      __syncthreads();
      fetch(chunk + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
      multiply(chunk, shared + stage * kStageBytes);
    }
    cp_async_wait<0>();
    __syncthreads();
    leave_sums();
    __syncthreads();
    const float* sums = reinterpret_cast<const float*>(shared);
    if (p.splits == 1) {
      for_each_pair([&](int token, int column, int at) { finish(p, token, column, sums[at], sums[at + 1]); });
      return;
    }
    for_each_pair([&](int token, int column, int at) {
      keep_partial(p, blockIdx.y, token, column, sums[at], sums[at + 1]);
    });
    if (is_last_split(p, blockIdx.x)) {
      for_each_pair([&](int token, int column, int) { finish_splits(p, token, column); });
    }
  }

 private:
  __device__ bool is_wanted() const {
    int any = 0;
    for (int i = threadIdx.x; i < kM; i += kThreads) any |= token_begin + i < p.tokens && p.rows[token_begin + i] >= 0;
    return __syncthreads_or(any);
  }

  // Start copying a chunk into a stage.
  __device__ void fetch(int chunk, int stage) const {
    if (chunk < chunk_end) {
      char* to = shared + stage * kStageBytes;
      fetch_tokens(chunk, to);
      fetch_weight(chunk, to + kXBytes);
      fetch_scales(chunk, to + kXBytes + kWeightBytes);
      if (kZeros) fetch_zeros(chunk, to + kXBytes + kWeightBytes + kScaleBytes);
    }
    cp_async_commit();
  }

  __device__ void fetch_tokens(int chunk, char* to) const {
    const int unit = threadIdx.x % 16, row = threadIdx.x / 16;
    const int column = chunk * kChunkColumns + 8 * unit;
    const half* from = static_cast<const half*>(p.x) + size_t(token_begin + row) * p.k + column;
    to += row * kRowBytes + (unit ^ (row & 1) * 4) * 16;
#pragma unroll
    for (int i = 0; i < kM; i += kThreads / 16) {
      const bool is_there = token_begin + row + i < p.tokens && column < p.k;
      cp_async16(to + i * kRowBytes, is_there ? from + size_t(i) * p.k : p.x, is_there);
    }
  }

  __device__ void fetch_weight(int chunk, char* to) const {
#pragma unroll
    for (int i = 0; i < kStripes; i += kThreads / 32) {
      const int stripe = i + threadIdx.x / 32;
      const Part piece(p, stripe_begin + stripe, chunk);
      char* at = to + stripe * 512 + lane * 16;
      if (piece.is_whole() || piece.rows <= 0) {
        cp_async16(at, piece.rows > 0 ? piece.weight + 16 * lane : p.weight, piece.rows > 0);
      } else {
        *reinterpret_cast<uint4*>(at) = piece.ragged_weight(lane);
      }
    }
  }

  // [stripe][group][row]
  __device__ void fetch_scales(int chunk, char* to) const {
    for (int i = threadIdx.x; i < kStripes * Part::kGroups; i += kThreads) {
      const int group = i % Part::kGroups;
      const Part piece(p, stripe_begin + i / Part::kGroups, chunk);
      if (piece.is_whole()) {
        cp_async16(to + 16 * i, piece.scales + 16 * group);
      } else {
        for (int row = 0; row < kStripeRows; ++row) {
          reinterpret_cast<half*>(to + 16 * i)[row] = piece.ragged_scale(group, row);
        }
      }
    }
  }

  // [stripe][pair of groups][row]
  __device__ void fetch_zeros(int chunk, char* to) const {
    for (int i = threadIdx.x; i < kStripes * Part::kZeroPairs; i += kThreads) {
      const int pair = i % Part::kZeroPairs;
      const Part piece(p, stripe_begin + i / Part::kZeroPairs, chunk);
      if (piece.is_whole()) {
        cp_async<8>(to + 8 * i, piece.zeros + 8 * pair);
      } else {
        for (int row = 0; row < kStripeRows; ++row) to[8 * i + row] = piece.ragged_zeros(pair, row);
      }
    }
  }

  __device__ void multiply(int chunk, const char* stage) {
    const int row = lane / 4, unit = lane % 4;
    const char* x = stage + (warp_m * kTilesM * 16 + row) * kRowBytes + unit * 16;
    const int stripe = warp_n * kTilesN;
    uint2 weight[kTilesN];  // half of a stage: the whole would not fit beside the sums of the largest tile
    const half* scales = reinterpret_cast<const half*>(stage + kXBytes + kWeightBytes) + row;
    const unsigned char* zeros =
        reinterpret_cast<const unsigned char*>(stage + kXBytes + kWeightBytes + kScaleBytes) + row;
    half2 scale[kTilesN];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if (w % 2 == 0) {
#pragma unroll
        for (int n = 0; n < kTilesN; ++n) {
          weight[n] = *reinterpret_cast<const uint2*>(stage + kXBytes + (stripe + n) * 512 + lane * 16 + 4 * w);
        }
      }
      uint4 a[kTilesM][2];
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
        const char* at = x + m * 16 * kRowBytes + (w ^ (row & 1)) * 64;
        a[m][0] = *reinterpret_cast<const uint4*>(at);
        a[m][1] = *reinterpret_cast<const uint4*>(at + 8 * kRowBytes);
      }
      const int group = w * 32 / kGroup;
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
        if (w * 32 % kGroup == 0) scale[n] = __half2half2(scales[((stripe + n) * Part::kGroups + group) * 8]);
        ZeroPoint zero;
        if (kZeros) {
          const uint32 pair = zeros[((stripe + n) * Part::kZeroPairs + group / 2) * 8];
          zero = ZeroPoint(pair >> ((Part::kGroups == 1 ? chunk : group) % 2 * 4) & 15);
        }
        uint32 b[4];
        dequantise(w % 2 ? weight[n].y : weight[n].x, zero, b);
#pragma unroll
        for (int i = 0; i < 4; ++i) b[i] = bits(__hmul2(halves(b[i]), scale[n]));
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) {
          mma(sum[m][n], {a[m][0].x, a[m][1].x, a[m][0].y, a[m][1].y}, {b[0], b[1]});
        }
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) {
          mma(sum[m][n], {a[m][0].z, a[m][1].z, a[m][0].w, a[m][1].w}, {b[2], b[3]});
        }
      }
    }
  }

  // The tile in float32 through shared memory, so that a warp stores neighbouring columns.
  __device__ void leave_sums() const {
    float* to = reinterpret_cast<float*>(shared) + (warp_m * kTilesM * 16 + lane / 4) * kOutStride +
                warp_n * kTilesN * 8 + 2 * (lane % 4);
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
        float* at = to + m * 16 * kOutStride + n * 8;
        *reinterpret_cast<float2*>(at) = make_float2(sum[m][n][0], sum[m][n][1]);
        *reinterpret_cast<float2*>(at + 8 * kOutStride) = make_float2(sum[m][n][2], sum[m][n][3]);
      }
    }
  }

  template <typename Body>
  __device__ void for_each_pair(Body body) const {
    constexpr int kPairs = kN / 2;
    for (int i = threadIdx.x; i < kM * kPairs; i += kThreads) {
      const int row = i / kPairs, column = 2 * (i % kPairs);
      if (token_begin + row >= p.tokens) return;
      body(token_begin + row, stripe_begin * kStripeRows + column, row * kOutStride + column);
    }
  }

  static __device__ char* dynamic_shared() {
    extern __shared__ __align__(16) char bytes[];
    return bytes;
  }

  const Int4GemmParams& p;
  char* const shared = dynamic_shared();
  const int lane, warp_m, warp_n;
  int token_begin, stripe_begin, chunk_begin, chunk_end;
  float sum[kTilesM][kTilesN][4] = {};
};

}  // namespace

// Tiles as in select.h.
#define ORIN_TILE(group, tile, threads, has_zeros, name, ...)                                        \
  extern "C" __global__ void __launch_bounds__(threads, 1) int4_gemm_many_##group##_##tile##name(    \
      Int4GemmParams p) {                                                                            \
    Many<__VA_ARGS__, group, has_zeros>(p).run();                                                    \
  }
#define ORIN_INSTANTIATE(group, has_zeros, name)                           \
  ORIN_TILE(group, 32x64, 128, has_zeros, name, 32, 64, 1, 4, 4)           \
  ORIN_TILE(group, 64x64, 128, has_zeros, name, 64, 64, 2, 2, 4)           \
  ORIN_TILE(group, 128x128, 256, has_zeros, name, 128, 128, 2, 4, 3)       \
  ORIN_TILE(group, 128x256, 256, has_zeros, name, 128, 256, 2, 4, 3)

ORIN_INSTANTIATE(32, false, )
ORIN_INSTANTIATE(64, false, )
ORIN_INSTANTIATE(128, false, )
ORIN_INSTANTIATE(32, true, _zeros)
ORIN_INSTANTIATE(64, true, _zeros)
ORIN_INSTANTIATE(128, true, _zeros)
