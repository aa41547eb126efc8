// SPDX-License-Identifier: Apache-2.0
// OrinInt4Gemm for more than 16 tokens: tiles of tokens x rows of W on the tensor cores.
//
// A stage is one chunk (128 columns): the tile's tokens as float16 and its stripes of W as nibbles in the kernel
// layout, copied by cp.async kStages deep. W is the m16 operand of m16n8k16 (two stripes), the tokens the n8 operand:
// W comes out of arithmetic, which may write any register, while the tokens come 16 bytes at a time and n8 takes them
// in pairs of registers just as they lie. A lane dequantises a word (8 columns of one row; a warp has 32 columns of 8
// rows: two steps of m16n8k16), times the scale rounded to float16, and uses it for all tokens of its warp.
//
// Tokens in shared memory: rows of 16 units of 16 bytes. An operand load takes units 4w..4w+3 of two neighbouring rows
// per phase, so odd rows swap each half of 8 units for the other: unit u of row r lies at u ^ 4 (r & 1).
#include "kernels/int4_gemm/int4.cuh"

using namespace orin;

namespace {

// Volatile, or the compiler would load both halves of a stage at once.
__device__ __forceinline__ uint2 load_words(const char* shared) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];\n" : "=r"(v.x), "=r"(v.y) : "r"(shared_address(shared)));
  return v;
}

template <int kM, int kN, int kWarpsM, int kWarpsN, int kStages, int kGroup, bool kZeros>
class Many {
  using Part = Piece<kGroup>;
  static constexpr int kThreads = kWarpsM * kWarpsN * 32;
  static constexpr int kTilesM = kM / kWarpsM / 8;   // n8 tiles of a warp: 8 tokens each
  static constexpr int kTilesN = kN / kWarpsN / 16;  // m16 tiles of a warp: two stripes each
  static constexpr int kStripes = kN / kStripeRows;
  static constexpr int kRowBytes = 2 * kChunkColumns;
  static constexpr int kXBytes = kM * kRowBytes;
  static constexpr int kWeightBytes = kStripes * 512;
  static constexpr int kScaleBytes = kStripes * Part::kGroups * 16;
  static constexpr int kZeroBytes = kStripes * Part::kZeroPairs * 8;
  static constexpr int kStageBytes = kXBytes + kWeightBytes + kScaleBytes + kZeroBytes;
  static constexpr int kOutStride = kN + 4;  // floats; 4 spread a warp's stores over all banks
  // Half of the registers are sums: scales are read again for each step, and copies are not started between products.
  static constexpr bool kIsTight = kTilesM * kTilesN >= 32;
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
    is_ragged = (stripe_begin + kStripes) * kStripeRows > p.n;
    ragged_chunk = p.k % kChunkColumns ? chunks - 1 : -1;
    const int row = token_begin + threadIdx.x / 16;
    my_rows = p.tokens - row;
    const uint32 groups = p.k / kGroup;
    my_x = uint32(row) * 2 * p.k + threadIdx.x % 16 * 16;
    my_weight = (stripe_begin + threadIdx.x / 32) * 4 * p.k + 16 * lane;
    my_scales = (stripe_begin + threadIdx.x / Part::kGroups) * 16 * groups + threadIdx.x % Part::kGroups * 16;
    my_zeros =
        (stripe_begin + threadIdx.x / Part::kZeroPairs) * 8 * ((groups + 1) / 2) + threadIdx.x % Part::kZeroPairs * 8;
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
      multiply(chunk, stage);
    }
    cp_async_wait<0>();
    __syncthreads();
    leave_sums();
    __syncthreads();
    if (p.splits == 1) {
      store();
      return;
    }
    const float* sums = reinterpret_cast<const float*>(shared);
    for_each_pair(
        [&](int token, int column, int at) { keep_partial(p, blockIdx.y, token, column, sums[at], sums[at + 1]); });
    if (is_last_split(p, blockIdx.x)) add_splits();
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
      if (is_ragged || chunk == ragged_chunk) {
        fetch_ragged(chunk, to + kXBytes);
      } else {
        fetch_whole(chunk, to + kXBytes);
      }
    }
    cp_async_commit();
  }

  __device__ void fetch_tokens(int chunk, char* to) const {
    const int unit = threadIdx.x % 16, row = threadIdx.x / 16;
    const bool is_inside = chunk != ragged_chunk || chunk * kChunkColumns + 8 * unit < p.k;
    const char* from = static_cast<const char*>(p.x) + (my_x + chunk * (2 * kChunkColumns));
    to += row * kRowBytes + (unit ^ (row & 1) * 4) * 16;
#pragma unroll
    for (int i = 0; i < kM; i += kThreads / 16) {
      cp_async16(to + i * kRowBytes, from + size_t(i * 2) * p.k, is_inside && i < my_rows);
    }
  }

  __device__ void fetch_whole(int chunk, char* to) const {
    const char* weight = static_cast<const char*>(p.weight) + (my_weight + chunk * 512);
#pragma unroll
    for (int i = 0; i < kStripes; i += kThreads / 32) {
      cp_async16(to + i * 512 + 16 * threadIdx.x, weight + size_t(i * 4) * p.k);
    }
    to += kWeightBytes;
    if (threadIdx.x < kStripes * Part::kGroups) {  // [stripe][group][row]
      cp_async16(to + 16 * threadIdx.x,
                 static_cast<const char*>(p.scales) + (my_scales + chunk * (16 * Part::kGroups)));
    }
    if (kZeros && threadIdx.x < kStripes * Part::kZeroPairs) {  // [stripe][pair of groups][row]
      cp_async<8>(to + kScaleBytes + 8 * threadIdx.x,
                  static_cast<const char*>(p.zeros) + (my_zeros + chunk * Part::kGroups / 2 * 8));
    }
  }

  // The same where stripes or the chunk are short; what is absent is zero.
  __device__ void fetch_ragged(int chunk, char* to) const {
    for (int i = threadIdx.x / 32; i < kStripes; i += kThreads / 32) {
      const Part piece(p, stripe_begin + i, chunk);
      *reinterpret_cast<uint4*>(to + i * 512 + 16 * lane) = piece.ragged_weight(lane);
    }
    to += kWeightBytes;
    for (int i = threadIdx.x; i < kStripes * Part::kGroups * kStripeRows; i += kThreads) {
      const Part piece(p, stripe_begin + i / kStripeRows / Part::kGroups, chunk);
      reinterpret_cast<half*>(to)[i] = piece.ragged_scale(i / kStripeRows % Part::kGroups, i % kStripeRows);
    }
    to += kScaleBytes;
    for (int i = threadIdx.x; kZeros && i < kStripes * Part::kZeroPairs * kStripeRows; i += kThreads) {
      const Part piece(p, stripe_begin + i / kStripeRows / Part::kZeroPairs, chunk);
      to[i] = piece.ragged_zeros(i / kStripeRows % Part::kZeroPairs, i % kStripeRows);
    }
  }

  // Add one chunk. The next copy is started once the tensor cores have work, or at once where its addresses would not
  // fit beside the operands.
  __device__ void multiply(int chunk, int number) {
    const char* stage = shared + number * kStageBytes;
    const int row = lane / 4, unit = lane % 4;
    const char* x = stage + (warp_m * kTilesM * 8 + row) * kRowBytes + unit * 16;
    const int stripe = warp_n * kTilesN * 2;
    const char* weight = stage + kXBytes + stripe * 512 + lane * 16;
    const half* scales = reinterpret_cast<const half*>(stage + kXBytes + kWeightBytes) + row;
    const unsigned char* zeros =
        reinterpret_cast<const unsigned char*>(stage + kXBytes + kWeightBytes + kScaleBytes) + row;
    if (kIsTight) fetch(chunk + kStages - 1, number == 0 ? kStages - 1 : number - 1);
    uint2 words[2 * kTilesN];  // of half of a stage: all would not fit beside the sums of a large tile
    half2 scale[kTilesN];      // of the two stripes of an m16 tile
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if (w % 2 == 0) {
#pragma unroll
        for (int i = 0; i < 2 * kTilesN; ++i) words[i] = load_words(weight + i * 512 + 4 * w);
      }
      uint4 v[kTilesM];
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
        v[m] = *reinterpret_cast<const uint4*>(x + m * 8 * kRowBytes + (w ^ (row & 1)) * 64);
      }
      const int group = w * 32 / kGroup;
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
        uint32 b[2][4];
        if (kIsTight || w * 32 % kGroup == 0) {
          const half* from = scales + ((stripe + 2 * n) * Part::kGroups + group) * 8;
          scale[n] = __halves2half2(from[0], from[8 * Part::kGroups]);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int s = 2 * n + i;
          const half2 both = i ? __high2half2(scale[n]) : __low2half2(scale[n]);
          ZeroPoint zero;
          if (kZeros) {
            const uint32 pair = zeros[((stripe + s) * Part::kZeroPairs + group / 2) * 8];
            zero = ZeroPoint(pair >> ((Part::kGroups == 1 ? chunk : group) % 2 * 4) & 15);
          }
          dequantise(w % 2 ? words[s].y : words[s].x, zero, b[i]);
#pragma unroll
          for (int j = 0; j < 4; ++j) b[i][j] = bits(__hmul2(halves(b[i][j]), both));
        }
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) mma(sum[m][n], {b[0][0], b[1][0], b[0][1], b[1][1]}, {v[m].x, v[m].y});
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) mma(sum[m][n], {b[0][2], b[1][2], b[0][3], b[1][3]}, {v[m].z, v[m].w});
      }
      if (w == 0 && !kIsTight) fetch(chunk + kStages - 1, number == 0 ? kStages - 1 : number - 1);
    }
  }

  // The tile in float32 through shared memory, so that a warp stores neighbouring columns.
  __device__ void leave_sums() const {
    float* to = reinterpret_cast<float*>(shared) + (warp_m * kTilesM * 8 + lane % 4 * 2) * kOutStride +
                warp_n * kTilesN * 16 + lane / 4;
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
        float* at = to + m * 8 * kOutStride + n * 16;
        at[0] = sum[m][n][0];
        at[kOutStride] = sum[m][n][1];
        at[8] = sum[m][n][2];
        at[kOutStride + 8] = sum[m][n][3];
      }
    }
  }

  __device__ void store() const {
    constexpr int kEights = kN / 8;
#pragma unroll 2
    for (int i = threadIdx.x; i < kM * kEights; i += kThreads) {
      const int row = i / kEights, column = 8 * (i % kEights);
      if (token_begin + row >= p.tokens) return;
      const float4* from = reinterpret_cast<const float4*>(shared + (row * kOutStride + column) * 4);
      const float4 low = from[0], high = from[1];
      float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      finish_eight(p, token_begin + row, stripe_begin * kStripeRows + column, v);
    }
  }

  // Eight pairs of a thread at once: what limits this is the latency of L2.
  __device__ void add_splits() const {
    constexpr int kPairs = kN / 2, kAtOnce = 8;
    static_assert(kM * kPairs % (kAtOnce * kThreads) == 0, "");
    if (p.n % 2) {
      for_each_pair([&](int token, int column, int) { finish_splits(p, token, column); });
      return;
    }
#pragma unroll 1
    for (int first = threadIdx.x; first < kM * kPairs; first += kAtOnce * kThreads) {
      float2 total[kAtOnce] = {};
#pragma unroll 2
      for (int split = 0; split < p.splits; ++split) {
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          const int i = first + j * kThreads, token = token_begin + i / kPairs;
          const int column = stripe_begin * kStripeRows + 2 * (i % kPairs);
          if (token >= p.tokens || column >= p.n) continue;
          const float* from = p.partials + (size_t(split) * p.tokens + token) * p.n + column;
          const float2 v = __ldcg(reinterpret_cast<const float2*>(from));
          total[j].x += v.x;
          total[j].y += v.y;
        }
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = first + j * kThreads, token = token_begin + i / kPairs;
        if (token < p.tokens) {
          finish(p, token, stripe_begin * kStripeRows + 2 * (i % kPairs), total[j].x, total[j].y);
        }
      }
    }
  }

  template <typename Body>
  __device__ void for_each_pair(Body body) const {
    constexpr int kPairs = kN / 2;
#pragma unroll 1
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
  bool is_ragged;                               // the tile ends beyond the last row of W
  int ragged_chunk;                             // shorter than others; -1 = none
  int my_rows;                                  // tokens from the first that this thread copies
  uint32 my_x, my_weight, my_scales, my_zeros;  // bytes to what this thread copies, at chunk 0; 4 GiB are enough
  float sum[kTilesM][kTilesN][4] = {};
};

}  // namespace

// Tiles as in select.h. With zero points those of the most registers would spill, so they do not exist.
#define ORIN_TILE(group, tile, threads, blocks, has_zeros, name, ...) \
  extern "C" __global__ void __launch_bounds__(threads, blocks)       \
      int4_gemm_many_##group##_##tile##name(Int4GemmParams p) {       \
    Many<__VA_ARGS__, group, has_zeros>(p).run();                     \
  }
#define ORIN_TILES(group, has_zeros, name)                            \
  ORIN_TILE(group, 32x64, 128, 1, has_zeros, name, 32, 64, 1, 4, 4)   \
  ORIN_TILE(group, 32x128, 128, 1, has_zeros, name, 32, 128, 1, 4, 3) \
  ORIN_TILE(group, 64x64, 128, 1, has_zeros, name, 64, 64, 2, 2, 4)   \
  ORIN_TILE(group, 64x128, 128, 1, has_zeros, name, 64, 128, 1, 4, 3)
#define ORIN_GROUP(group)         \
  ORIN_TILES(group, false, )      \
  ORIN_TILES(group, true, _zeros) \
  ORIN_TILE(group, 64x256, 128, 1, false, , 64, 256, 1, 4, 2)

ORIN_GROUP(32)
ORIN_GROUP(64)
ORIN_GROUP(128)
