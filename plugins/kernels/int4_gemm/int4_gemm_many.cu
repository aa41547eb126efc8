// SPDX-License-Identifier: Apache-2.0
// OrinInt4Gemm for more than 16 tokens: tiles of tokens x rows of W on the tensor cores.
//
// A stage is one chunk (128 columns): the tile's tokens as float16 and its stripes of W as nibbles in the kernel
// layout, copied by cp.async kStages deep. W is the m16 operand of m16n8k16 (two stripes), the tokens the n8 operand:
// W comes out of arithmetic, which may write any register, while the tokens come 16 bytes at a time and n8 takes them
// in pairs of registers just as they lie. A lane dequantises a word (8 columns of one row; a warp has 32 columns of 8
// rows: two steps of m16n8k16), times the scale rounded to float16, and uses it for all tokens of its warp.
//
// While a warp multiplies a step of 32 columns it converts W for its next step, into registers of their own, and has
// the tokens of its next products under way; so it needs the next chunk before it has finished with this one:
//
//   step     0         1         2         3          0                     of kSteps that a warp has of a chunk
//   multiply c.0       c.1       c.2       c.3        c+1.0
//   convert  c.1       c.2       c.3       c+1.0      c+1.1
//                                  |                                        wait for chunk c+1, barrier
//
// Where tiles are too few to give a scheduler several warps, kWarpsK warps share rows of W and each takes its part of
// every chunk's columns; they add up in shared memory.
//
// Tokens in shared memory: rows of 16 units of 16 bytes. An operand load takes units 4w..4w+3 of two neighbouring rows
// per phase, so odd rows swap each half of 8 units for the other: unit u of row r lies at u ^ 4 (r & 1).
#include "kernels/int4_gemm/int4.cuh"

using namespace orin;

namespace {

// Volatile: loaded where it stands, or the compiler would load all of a stage at once.
__device__ __forceinline__ uint2 load_words(uint32 shared) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];\n" : "=r"(v.x), "=r"(v.y) : "r"(shared));
  return v;
}

__device__ __forceinline__ uint4 load_tokens(uint32 shared) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(shared));
  return v;
}

__device__ __forceinline__ half load_half(uint32 shared) {
  unsigned short v;
  asm volatile("ld.shared.u16 %0, [%1];\n" : "=h"(v) : "r"(shared));
  return __ushort_as_half(v);
}

__device__ __forceinline__ uint32 load_byte(uint32 shared) {
  uint32 v;
  asm volatile("ld.shared.u8 %0, [%1];\n" : "=r"(v) : "r"(shared));
  return v;
}

template <int kM, int kN, int kWarpsM, int kWarpsN, int kWarpsK, int kStages, int kGroup, bool kZeros>
class Many {
  using Part = Piece<kGroup>;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarpsK * 32;
  static constexpr int kSteps = 4 / kWarpsK;         // of 32 columns that a warp has of a chunk
  static constexpr int kTilesM = kM / kWarpsM / 8;   // n8 tiles of a warp: 8 tokens each
  static constexpr int kTilesN = kN / kWarpsN / 16;  // m16 tiles of a warp: two stripes each
  static constexpr int kStripes = kN / kStripeRows;
  static constexpr int kRowBytes = 2 * kChunkColumns;
  static constexpr int kXBytes = kM * kRowBytes;
  static constexpr int kWeightBytes = kStripes * 512;
  static constexpr int kScaleBytes = kStripes * Part::kGroups * 16;
  static constexpr int kZeroBytes = kStripes * Part::kZeroPairs * 8;
  static constexpr int kStageBytes = kXBytes + kWeightBytes + kScaleBytes + kZeroBytes;
  static constexpr int kAhead = 2;  // n8 tiles of tokens whose products alternate; as many more are under way
  static constexpr int kRing = 2 * kAhead;
  static constexpr int kOutStride = kN + 4;  // floats; 4 spread a warp's stores over all banks
  static_assert(kStageBytes % kSectorBytes == 0, "copies begin there");
  static_assert(kM * kOutStride * 4 <= kStages * kStageBytes, "the output is staged there");

 public:
  __device__ explicit Many(const Int4GemmParams& params)
      : p(params),
        lane(threadIdx.x % 32),
        warp_m(threadIdx.x / 32 % kWarpsM),
        warp_n(threadIdx.x / 32 / kWarpsM % kWarpsN),
        warp_k(threadIdx.x / 32 / (kWarpsM * kWarpsN)) {
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
    is_whole = token_begin + kM <= p.tokens;
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
    constexpr int kFirst = kStages == 2 ? 2 : kStages - 1;
    for (int i = 0; i < kFirst; ++i) fetch(chunk_begin + i, i);
    cp_async_wait<kFirst - 1>();
    __syncthreads();
    begin();
    for (int chunk = chunk_begin, stage = 0; chunk < chunk_end; ++chunk, stage = after(stage)) multiply(chunk, stage);
    cp_async_wait<0>();
    if (p.splits > 1) {
      keep_sums();
      if (!is_last_split(p, blockIdx.x)) return;
      add_splits();
    }
    __syncthreads();
    leave_sums();
    store();
  }

 private:
  __device__ bool is_wanted() const {
    int any = 0;
    for (int i = threadIdx.x; i < kM; i += kThreads) any |= token_begin + i < p.tokens && p.rows[token_begin + i] >= 0;
    return __syncthreads_or(any);
  }

  // Start copying a chunk into a stage. With two stages that takes a barrier of its own.
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

  // What differs between copies of a thread is the same in all threads: it is added to the base, not to the offset.
  __device__ void fetch_tokens(int chunk, char* to) const {
    const int row = threadIdx.x / 16, unit = threadIdx.x % 16;
    const char* from = static_cast<const char*>(p.x) + size_t(chunk) * (2 * kChunkColumns);
    const size_t step = size_t(kThreads / 16 * 2) * p.k;
    to += row * kRowBytes + (unit ^ (row & 1) * 4) * 16;
    if (is_whole && chunk != ragged_chunk) {
#pragma unroll
      for (int i = 0; i < kM / (kThreads / 16); ++i) {
        cp_async16(to + i * (kThreads / 16 * kRowBytes), from + i * step + my_x);
      }
      return;
    }
    const bool is_inside = chunk != ragged_chunk || chunk * kChunkColumns + 8 * unit < p.k;
    const int rows = is_inside ? p.tokens - token_begin - row : 0;
#pragma unroll 1
    for (int i = 0; i < kM; i += kThreads / 16) {
      cp_async16(to + i * kRowBytes, from + size_t(i * 2) * p.k + my_x, i < rows);
    }
  }

  __device__ void fetch_whole(int chunk, char* to) const {
    const char* weight = static_cast<const char*>(p.weight) + size_t(chunk) * 512;
    const size_t step = size_t(kThreads / 32 * 4) * p.k;
#pragma unroll
    for (int i = 0; i < kStripes / (kThreads / 32); ++i) {
      cp_async16(to + i * (kThreads * 16) + 16 * threadIdx.x, weight + i * step + my_weight);
    }
    to += kWeightBytes;
    if (threadIdx.x < kStripes * Part::kGroups) {  // [stripe][group][row]
      cp_async16(to + 16 * threadIdx.x,
                 static_cast<const char*>(p.scales) + size_t(chunk) * (16 * Part::kGroups) + my_scales);
    }
    if (kZeros && threadIdx.x < kStripes * Part::kZeroPairs) {  // [stripe][pair of groups][row]
      cp_async<8>(to + kScaleBytes + 8 * threadIdx.x,
                  static_cast<const char*>(p.zeros) + size_t(chunk * Part::kGroups / 2) * 8 + my_zeros);
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

  static __device__ int after(int stage) { return stage + 1 == kStages ? 0 : stage + 1; }
  static __device__ int before(int stage) { return stage == 0 ? kStages - 1 : stage - 1; }

  __device__ uint32 stage_at(int stage) const { return shared_address(shared) + stage * kStageBytes; }

  // Tokens 8 m.. of the warp at its step j of a chunk.
  __device__ __forceinline__ void take_tokens(uint32 stage, int j, int m) {
    const int row = lane / 4;
    const uint32 x = stage + (warp_m * kTilesM * 8 + row) * kRowBytes + lane % 4 * 16 + warp_k * kSteps * 64;
    v[m % kRing] = load_tokens(((j ^ (row & 1)) * 64 + x) + m * 8 * kRowBytes);
  }

  // The operand of stripe i of the warp at its step j. Words of two steps are loaded at once.
  __device__ __forceinline__ void convert(uint32 stage, int j, int i, int chunk) {
    const int row = lane / 4, stripe = warp_n * kTilesN * 2;
    const uint32 weight = stage + kXBytes + stripe * 512 + lane * 16 + warp_k * kSteps * 4;
    const uint32 scales =
        stage + kXBytes + kWeightBytes + (stripe * Part::kGroups + warp_k * kSteps * 32 / kGroup) * 16;
    uint32 word = later[i];
    if (j % 2 == 0) {
      const uint2 words = load_words(weight + i * 512 + 4 * j);
      word = words.x, later[i] = words.y;
    }
    const half2 scale = __half2half2(load_half(scales + (i * Part::kGroups + j * 32 / kGroup) * 16 + 2 * row));
    ZeroPoint zero;
    if (kZeros) {
      const int group = (warp_k * kSteps + j) * 32 / kGroup;
      const uint32 zeros = stage + kXBytes + kWeightBytes + kScaleBytes + row;
      const uint32 pair = load_byte(zeros + ((stripe + i) * Part::kZeroPairs + group / 2) * 8);
      zero = ZeroPoint(pair >> ((Part::kGroups == 1 ? chunk : group) % 2 * 4) & 15);
    }
    uint32 out[4];
    dequantise(word, zero, out);
#pragma unroll
    for (int q = 0; q < 4; ++q) b[j % 2][i / 2][q / 2][q % 2 * 2 + i % 2] = bits(__hmul2(halves(out[q]), scale));
  }

  // What the first step of the first chunk needs.
  __device__ void begin() {
#pragma unroll
    for (int i = 0; i < 2 * kTilesN; ++i) convert(stage_at(0), 0, i, chunk_begin);
#pragma unroll
    for (int m = 0; m < kAhead; ++m) take_tokens(stage_at(0), 0, m);
  }

  // Add one chunk. Two products with the same sums are kAhead kTilesN products apart, longer than one takes.
  __device__ void multiply(int chunk, int number) {
    const uint32 stage = stage_at(number), next = stage_at(after(number));
#pragma unroll
    for (int j = 0; j < kSteps; ++j) {
      const bool is_last = j == kSteps - 1;
      if (is_last) {
        cp_async_wait<(kStages > 3 ? kStages - 3 : 0)>();
        __syncthreads();
        if (kStages > 2) fetch(chunk + kStages - 1, before(number));
      }
      const uint32 source = is_last ? next : stage;
#pragma unroll
      for (int m0 = 0; m0 < kTilesM; m0 += kAhead) {
#pragma unroll
        for (int m = m0 + kAhead; m < m0 + 2 * kAhead; ++m) {
          if (m < kTilesM) {
            take_tokens(stage, j, m);
          } else {
            take_tokens(source, (j + 1) % kSteps, m - kTilesM);
          }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int m = m0; m < m0 + kAhead; ++m) {
#pragma unroll
            for (int n = 0; n < kTilesN; ++n) {
              if (half == 0) {
                mma(sum[m][n], b[j % 2][n][0], {v[m % kRing].x, v[m % kRing].y});
              } else {
                mma(sum[m][n], b[j % 2][n][1], {v[m % kRing].z, v[m % kRing].w});
              }
            }
          }
        }
#pragma unroll
        for (int i = m0 * 2 * kTilesN / kTilesM; i < (m0 + kAhead) * 2 * kTilesN / kTilesM; ++i) {
          convert(source, (j + 1) % kSteps, i, chunk + is_last);
        }
      }
    }
    if (kStages == 2) {
      __syncthreads();
      fetch(chunk + 2, number);
    }
  }

  // Where this thread leaves its sums for the block that adds up the splits: each thread for itself.
  __device__ float4* partial(int split) const {
    constexpr int kSums = kThreads * kTilesM * kTilesN;
    return reinterpret_cast<float4*>(p.partials) + (size_t(split) * gridDim.x + blockIdx.x) * kSums + threadIdx.x;
  }

  __device__ void keep_sums() const {
    float4* to = partial(blockIdx.y);
#pragma unroll
    for (int i = 0; i < kTilesM * kTilesN; ++i) {
      const float (&d)[4] = sum[i / kTilesN][i % kTilesN];
      to[i * kThreads] = make_float4(d[0], d[1], d[2], d[3]);
    }
  }

  // Always in the order of the splits, so that the result does not depend on who comes last.
  __device__ void add_splits() {
#pragma unroll 1
    for (int split = 0; split < p.splits; ++split) {
      const float4* from = partial(split);
#pragma unroll
      for (int i = 0; i < kTilesM * kTilesN; ++i) {
        const float4 v = __ldcg(from + i * kThreads);
        float (&d)[4] = sum[i / kTilesN][i % kTilesN];
        d[0] = (split ? d[0] : 0.f) + v.x;
        d[1] = (split ? d[1] : 0.f) + v.y;
        d[2] = (split ? d[2] : 0.f) + v.z;
        d[3] = (split ? d[3] : 0.f) + v.w;
      }
    }
  }

  // The tile in float32 through shared memory, so that a warp stores neighbouring columns. Warps that share rows but
  // not columns add up there, one after another.
  __device__ void leave_sums() const {
    float* to = reinterpret_cast<float*>(shared) + (warp_m * kTilesM * 8 + lane % 4 * 2) * kOutStride +
                warp_n * kTilesN * 16 + lane / 4;
#pragma unroll
    for (int turn = 0; turn < kWarpsK; ++turn) {
      if (turn == warp_k) {
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
          for (int n = 0; n < kTilesN; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              float& at = to[(m * 8 + i % 2) * kOutStride + n * 16 + i / 2 * 8];
              at = turn ? at + sum[m][n][i] : sum[m][n][i];
            }
          }
        }
      }
      __syncthreads();
    }
  }

  __device__ void store() const {
    constexpr int kEights = kN / 8, kStep = kThreads / kEights;
    static_assert(kThreads % kEights == 0 && kM % kStep == 0, "a thread stays in its eight columns");
    if (p.n % 8) {
      const float* sums = reinterpret_cast<const float*>(shared);
      for_each_pair([&](int token, int column, int at) { finish(p, token, column, sums[at], sums[at + 1]); });
      return;
    }
    const int row = threadIdx.x / kEights, column = 8 * (threadIdx.x % kEights);
    const int n = stripe_begin * kStripeRows + column, rows = n < p.n ? p.tokens - token_begin - row : 0;
    const float4* from = reinterpret_cast<const float4*>(shared + (row * kOutStride + column) * 4);
#pragma unroll 4
    for (int i = 0; i < kM; i += kStep) {
      const float4 low = from[i * kOutStride / 4], high = from[i * kOutStride / 4 + 1];
      float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      if (i < rows) finish_eight(p, token_begin + row + i, n, v);
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
    extern __shared__ __align__(kSectorBytes) char bytes[];
    return bytes;
  }

  const Int4GemmParams& p;
  char* const shared = dynamic_shared();
  const int lane, warp_m, warp_n, warp_k;
  int token_begin, stripe_begin, chunk_begin, chunk_end;
  bool is_ragged;                               // the tile ends beyond the last row of W
  int ragged_chunk;                             // shorter than others; -1 = none
  bool is_whole;                                // all tokens of the tile exist
  uint32 my_x, my_weight, my_scales, my_zeros;  // bytes to what this thread copies, at chunk 0; 4 GiB are enough
  float sum[kTilesM][kTilesN][4] = {};
  uint32 b[2][kTilesN][2][4];  // operands of this step and of the next
  uint32 later[2 * kTilesN];   // words of the step after the next
  uint4 v[kRing];
};

}  // namespace

// Tiles as in select.h: tokens x rows x warps that share rows. With zero points those of the most registers would
// spill, so they do not exist.
#define ORIN_TILE(group, tile, threads, blocks, has_zeros, name, ...) \
  extern "C" __global__ void __launch_bounds__(threads, blocks)       \
      int4_gemm_many_##group##_##tile##name(Int4GemmParams p) {       \
    begin_in_turn();                                                  \
    Many<__VA_ARGS__, group, has_zeros>(p).run();                     \
  }
#define ORIN_TILES(group, has_zeros, name)                                                 \
  ORIN_TILE(group, 32x64x2, 256, 1, has_zeros, name, 32, 64, 1, 4, 2, 4)                   \
  ORIN_TILE(group, 32x128x1, 128, 1, has_zeros, name, 32, 128, 1, 4, 1, 3)                 \
  ORIN_TILE(group, 64x128x1, 128, has_zeros ? 2 : 3, has_zeros, name, 64, 128, 1, 4, 1, 3) \
  ORIN_TILE(group, 64x128x2, 256, 1, has_zeros, name, 64, 128, 1, 4, 2, 3)
#define ORIN_GROUP(group)         \
  ORIN_TILES(group, false, )      \
  ORIN_TILES(group, true, _zeros) \
  ORIN_TILE(group, 64x256x1, 128, 1, false, , 64, 256, 1, 4, 1, 2)

ORIN_GROUP(32)
ORIN_GROUP(64)
ORIN_GROUP(128)
