// SPDX-License-Identifier: Apache-2.0
// OrinInt4Gemm for 1..16 tokens with a norm in front: limited by reading W.
//
// A tile is two stripes (16 rows of W). A warp keeps one chunk of 128 columns of the tokens in registers, normalised,
// and walks over the block's tiles with it:
//
//   grid.x   the tiles of W in turn
//   block    32 x warps_k x warps_n: warp (i, j) takes the chunks i, i + warps_k, ... of every warps_n-th tile
//
//   tile of the block    0    1    2    3    4  ...     a warp leaves 16 sums per token and tile in shared memory, to
//   chunk 0: warp 0      |--->|--->|--->|--->|--->      which it adds those of its next chunk. Behind a barrier the
//   chunk 1: warp 1      |--->|--->|--->|--->|--->      block adds up its warps', always in their order. Where sums of
//   ...                                                 all tiles would not fit, this is done in rounds.
//
// RMSNorm needs no barrier: a warp divides its chunk by the chunk's own root mean square, which keeps float16 in range
// whatever the tokens' size, multiplies it back in float32, and the squares of all chunks are added up at the end.
// The tokens and the norm come before the weights: asked for together, they would queue behind them.
#include "kernels/int4_gemm/few.cuh"

using namespace orin;

namespace {

template <int kGroup, int kTokens, bool kZeros, bool kRagged, bool kPhases, int kAhead>
class FewNorm {
  using Part = Piece<kGroup>;
  using Slot = Weights<kGroup, kZeros, 2>;
  static constexpr int kGroups = Part::kGroups;
  static constexpr int kWords = 4 / kGroups;   // of a lane in a group
  static constexpr int kTilesN = kTokens / 8;  // n8 tiles
  static constexpr int kRows = 2 * kStripeRows;

  // Tiles that the warp has before it with one chunk, in one round.
  struct Run {
    int tile, end;  // counted from the warp's first
    int chunk;
    int round_end;
  };

 public:
  __device__ explicit FewNorm(const Int4GemmParams& params)
      : p(params), lane(threadIdx.x), first_tile(blockIdx.x * blockDim.z + threadIdx.z), step(gridDim.x * blockDim.z) {}

  __device__ void run() {
    const int first_chunk = threadIdx.y;
    load_tokens(first_chunk);
    count = p.warp_tiles - (first_tile + (p.warp_tiles - 1) * step >= p.tiles);
    const bool is_skipped = p.rows && all_skipped(p);
    Run now = {0, is_skipped ? 0 : min(count, p.round_tiles), first_chunk, p.round_tiles};
    measure_tokens(first_chunk, threadIdx.z == 0);
    Slot slots[kAhead];
    point(now);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) fetch(slots[j], now, j);
    prepare_tokens();
    if (kPhases) load_tokens(chunk_after(first_chunk));
    int round = 0;
#pragma unroll 1
    while (true) {
      const Run next = after(now, is_skipped);
      multiply_run(slots, now, next, round);
      if (next.round_end != now.round_end) {
        __syncthreads();
        add_warps(round);
        if (++round == p.rounds) break;
      }
      if (kPhases && next.chunk != now.chunk) {
        measure_tokens(next.chunk, threadIdx.z == 0 && round == 0);
        prepare_tokens();
        load_tokens(chunk_after(next.chunk));
      }
      now = next;
    }
  }

 private:
  __device__ int chunk_after(int chunk) const {
    return chunk + int(blockDim.y) < p.chunks ? chunk + int(blockDim.y) : int(threadIdx.y);
  }

  __device__ Run after(const Run& run, bool is_skipped) const {
    if (run.tile + kAhead < run.end) return {run.tile + kAhead, run.end, run.chunk, run.round_end};
    const int chunk = run.chunk + int(blockDim.y);
    if (kPhases && chunk < p.chunks) return {run.round_end - p.round_tiles, run.end, chunk, run.round_end};
    const int end = run.round_end + p.round_tiles;
    return {run.round_end, is_skipped ? 0 : min(count, end), int(threadIdx.y), end};
  }

  // Where the weights and scales of a run begin for this lane.
  __device__ void point(const Run& run) {
    const uint32 stripe = (first_tile + run.tile * step) * 2;
    weight = static_cast<const char*>(p.weight) + (stripe * p.stripe_bytes + uint32(run.chunk * 512 + lane * 16));
    scales = static_cast<const char*>(p.scales) +
             (stripe * p.stripe_scale_bytes + uint32(run.chunk * (16 * kGroups) + lane / 4 * 2));
    if (kZeros) {
      zeros = static_cast<const char*>(p.zeros) +
              (stripe * p.stripe_zero_bytes + uint32(run.chunk * kGroups / 2 * kStripeRows + lane / 4));
    }
  }

  // Ask for the j-th tile of a run; to be called for each in turn.
  __device__ void fetch(Slot& slot, const Run& run, int j) {
    if (run.tile + j >= run.end) return;
    if (kRagged) {
      slot.load_ragged(p, (first_tile + (run.tile + j) * step) * 2, run.chunk);
      return;
    }
    slot.load(p, weight, scales, zeros);
    weight += p.tile_step_bytes, scales += p.tile_step_scale_bytes;
    if (kZeros) zeros += 2 * step * p.stripe_zero_bytes;
  }

  // Lane (g, t) holds columns 8t..8t+7 of every 32 of token g, and of token g + 8. Tokens beyond the last are columns
  // of n8 of their own: whatever they hold reaches no other and is not stored.
  __device__ void load_tokens(int chunk) {
    const int words = kRagged && chunk == p.short_chunk ? p.k / 32 % 4 : 4;
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) {
      const char* from = static_cast<const char*>(p.x) + (size_t(row_of_x(p, lane / 4 + 8 * j) * p.row_bytes) +
                                                          uint32(chunk * (2 * kChunkColumns) + lane % 4 * 16));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (kRagged) raw[j][i] = uint4{0, 0, 0, 0};
        if (i < words) raw[j][i] = load_x(from + 64 * i);
      }
    }
    const char* from = reinterpret_cast<const char*>(p.norm) + (chunk * (4 * kChunkColumns) + lane % 4 * 32);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (kRagged) norm[i][0] = norm[i][1] = uint4{0, 0, 0, 0};
      if (i < words) norm[i][0] = load_x(from + 128 * i), norm[i][1] = load_x(from + 128 * i + 16);
    }
  }

  // x x^T has the sums of squares on its diagonal: that of token g is element g % 2 of lane (g, g / 2).
  __device__ void measure_tokens(int chunk, bool keeps_squares) {
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) {
      float front[4], back[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint4 v = raw[j][i];
        if (i == 0) {
          mma_first(front, {v.x, 0, v.y, 0}, {v.x, v.y});
          mma_first(back, {v.z, 0, v.w, 0}, {v.z, v.w});
        } else {
          mma(front, {v.x, 0, v.y, 0}, {v.x, v.y});
          mma(back, {v.z, 0, v.w, 0}, {v.z, v.w});
        }
      }
      const float found = lane & 4 ? front[1] + back[1] : front[0] + back[0];
      const float square = __shfl_sync(0xffffffffu, found, (lane & 28) + lane / 8);
      const float mean = square * (1.f / kChunkColumns) + 1e-30f;  // zeros stay zeros
      inverse[j] = rsqrtf(mean);
      if (lane % 4 == 0 && keeps_squares) squares()[chunk * kTokens + 8 * j + lane / 4] = square;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        factor[j][e] = __shfl_sync(0xffffffffu, mean * inverse[j], lane % 4 * 8 + 4 * e);
      }
    }
  }

  // The operand of the products, and its sums: products with ones.
  __device__ void prepare_tokens() {
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 w[2] = {as_floats(norm[i][0]), as_floats(norm[i][1])};
        x[j][i] = normalised(raw[j][i], inverse[j], w);
      }
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        float front[4], back[4];
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
          const uint4 v = x[j][g * kWords + i];
          if (i == 0) {
            mma_first(front, {kOnes, kOnes, kOnes, kOnes}, {v.x, v.y});
            mma_first(back, {kOnes, kOnes, kOnes, kOnes}, {v.z, v.w});
          } else {
            mma(front, {kOnes, kOnes, kOnes, kOnes}, {v.x, v.y});
            mma(back, {kOnes, kOnes, kOnes, kOnes}, {v.z, v.w});
          }
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) offset[j][g][e] = (front[e] + back[e]) * (kZeros ? -1.f : -8.f);
      }
    }
  }

  static __device__ float4 as_floats(const uint4& v) {
    return {__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)};
  }

  // The products of a run; meanwhile the next is asked for.
  __device__ void multiply_run(Slot (&slots)[kAhead], const Run& now, const Run& next, int round) {
    const int tile_floats = int(blockDim.z) * int(blockDim.y) * p.tokens * kRows;
    const bool adds = kPhases && now.chunk >= int(blockDim.y);
    float* to = sums(round, now.tile - round * p.round_tiles) + lane % 4 * (2 * kRows) + lane / 4;
    if (next.tile < next.end) {
      point(next);
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (now.tile + j < now.end) multiply(slots[j], now.chunk, to, adds);
        to += tile_floats;
        fetch(slots[j], next, j);
      }
    } else if (now.tile + kAhead <= now.end) {  // without conditions, so that the tiles overlap
#pragma unroll
      for (int j = 0; j < kAhead; ++j) multiply(slots[j], now.chunk, to + j * tile_floats, adds);
    } else {
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (now.tile + j < now.end) multiply(slots[j], now.chunk, to, adds);
        to += tile_floats;
      }
    }
  }

  // W x of one chunk: lane (g, t) has row g of each stripe, tokens 2t and 2t + 1, and 8 + 2t and 9 + 2t.
  __device__ void multiply(const Slot& slot, int chunk, float* to, bool adds) const {
    float sum[kTilesN][4];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      float low[kTilesN][4], high[kTilesN][4];
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        uint32 a[4], b[4];
        nibbles(slot.word[0][g * kWords + i], a);
        nibbles(slot.word[1][g * kWords + i], b);
#pragma unroll
        for (int j = 0; j < kTilesN; ++j) {
          const uint4 v = x[j][g * kWords + i];
          if (i == 0) {
            const float* c = offset[j][g];
            const float za = kZeros ? slot.zero_of(0, g, chunk) : 1.f, zb = kZeros ? slot.zero_of(1, g, chunk) : 1.f;
            mma_from(low[j], {a[0], b[0], a[1], b[1]}, v.x, v.y, c[0] * za, c[1] * za, c[0] * zb, c[1] * zb);
            mma_first(high[j], {a[2], b[2], a[3], b[3]}, {v.z, v.w});
          } else {
            mma(low[j], {a[0], b[0], a[1], b[1]}, {v.x, v.y});
            mma(high[j], {a[2], b[2], a[3], b[3]}, {v.z, v.w});
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float v = (high[j][e] * (1.f / 16) + low[j][e]) * slot.scale_of(e / 2, g);
          sum[j][e] = g ? sum[j][e] + v : v;
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kTilesN; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (8 * j + lane % 4 * 2 + e >= p.tokens) continue;
        float* at = to + (8 * j + e) * kRows;
        at[0] = sum[j][e] * factor[j][e] + (adds ? at[0] : 0.f);
        at[kStripeRows] = sum[j][2 + e] * factor[j][e] + (adds ? at[kStripeRows] : 0.f);
      }
    }
  }

  // Sums in shared memory: [tile of the warp][warp side by side][warp along k][token][row], in two buffers, so that one
  // barrier per round is enough.
  __device__ float* sums(int round, int tile) const {
    const int warp = (tile * int(blockDim.z) + int(threadIdx.z)) * int(blockDim.y) + int(threadIdx.y);
    return reinterpret_cast<float*>(shared() + (round & 1 ? p.buffer_bytes : 0)) + warp * p.tokens * kRows;
  }

  __device__ float* squares() const { return reinterpret_cast<float*>(shared() + p.squares_at); }

  // A lane takes a pair of rows of tokens lane / 8, + 4, ...
  __device__ void add_warps(int round) const {
    const int begin = round * p.round_tiles, tiles = min(p.round_tiles, count - begin);
    const int token_floats = p.tokens * kRows;
#pragma unroll 1
    for (int i = threadIdx.y; i < tiles; i += blockDim.y) {
      const int row = (first_tile + (begin + i) * step) * kRows + lane % 8 * 2;
      if (kRagged && row >= p.n) continue;
#pragma unroll 1
      for (int token = lane / 8; token < p.tokens; token += 4) {
        const float2 residual = residual_of(p, token, row);
        const float* from = sums(round, i) - threadIdx.y * token_floats + token * kRows + lane % 8 * 2;
        float2 total = {0.f, 0.f};
#pragma unroll 4
        for (int j = 0; j < int(blockDim.y); ++j) {
          const float2 v = *reinterpret_cast<const float2*>(from + j * token_floats);
          total.x += v.x;
          total.y += v.y;
        }
        const float scale = norm_of(token) * (1.f / kUnit);
        finish(p, token, row, total.x * scale, total.y * scale, residual);
      }
    }
  }

  __device__ float norm_of(int token) const {
    float total = 0.f;
#pragma unroll 4
    for (int chunk = 0; chunk < p.chunks; ++chunk) total += squares()[chunk * kTokens + token];
    return rsqrtf(total * p.inverse_k + p.norm_eps);
  }

  static __device__ char* shared() {
    extern __shared__ __align__(kSectorBytes) char bytes[];
    return bytes;
  }

  const Int4GemmParams& p;
  const int lane, first_tile, step;
  int count;  // tiles of the warp
  const char* weight;
  const char* scales;
  const char* zeros;
  uint4 raw[kTilesN][4];                       // tokens as they come, of the chunk that is next
  uint4 norm[4][2];                            // float32, of the same
  uint4 x[kTilesN][4];                         // operand: tokens * inverse * norm
  float offset[kTilesN][kGroups][2];           // -8 sum(x) or, with zero points, -sum(x), of tokens 2t and 2t + 1
  float inverse[kTilesN], factor[kTilesN][2];  // of tokens g; of tokens 2t and 2t + 1: what inverse took off
};

}  // namespace

#define ORIN_NORM(group, tokens, has_zeros, is_ragged, has_phases, threads, ahead, name) \
  extern "C" __global__ void __launch_bounds__(threads, 1)                               \
      int4_gemm_few_norm_##group##_##tokens##name(Int4GemmParams p) {                    \
    begin_in_turn();                                                                     \
    FewNorm<group, tokens, has_zeros, is_ragged, has_phases, ahead>(p).run();            \
  }
// Where there is a warp for each chunk they are many; else fewer warps with more registers take several chunks in turn.
// Threads as in select.h; chunks ahead: what fits in their registers.
#define ORIN_NORM_ALL(group, tokens, threads, ahead, zeros_ahead, phase_threads, phase_ahead) \
  ORIN_NORM(group, tokens, false, false, false, threads, ahead, )                             \
  ORIN_NORM(group, tokens, true, false, false, threads, zeros_ahead, _zeros)                  \
  ORIN_NORM(group, tokens, false, false, true, phase_threads, phase_ahead, _phases)           \
  ORIN_NORM(group, tokens, true, false, true, phase_threads, phase_ahead, _zeros_phases)      \
  ORIN_NORM(group, tokens, false, true, true, 256, 1, _ragged)                                \
  ORIN_NORM(group, tokens, true, true, true, 256, 1, _zeros_ragged)

ORIN_NORM_ALL(32, 8, 512, 1, 1, 256, 2)
ORIN_NORM_ALL(32, 16, 256, 1, 1, 256, 1)
ORIN_NORM_ALL(64, 8, 512, 2, 2, 256, 3)
ORIN_NORM_ALL(64, 16, 512, 1, 1, 256, 2)
ORIN_NORM_ALL(128, 8, 512, 4, 3, 320, 4)
ORIN_NORM_ALL(128, 16, 512, 2, 2, 256, 3)
