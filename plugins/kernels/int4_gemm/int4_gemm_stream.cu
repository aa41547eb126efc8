// SPDX-License-Identifier: Apache-2.0
// OrinInt4Gemm for one token, or for up to 16 with a norm in front: W passes by once, at the speed of memory.
//
// A unit is one or two stripes of W (8 or 16 rows); a block takes every gridDim.x-th. A piece is a chunk of 128 columns
// of it; for one token, where a unit is one stripe, two chunks: rows 8 to 15 of the m16 operand are then the second
// one, which meets its own part of the token in the odd columns of the n8 operand. The pieces of all units of a block
// lie in one row, of which each warp takes an equal part, whatever the shape:
//
//   units of the block   |     0     |     1     |     2     |   a warp keeps the sums of a unit in registers and
//   leaves chunks               |0 1 2 3 4 5|0 1 2 3 4 5|0 1 2 3 4 5|   them in shared memory where the unit, or its
//   part of it, warps                |---0---|---1---|---2---|---3---|---|   ends. Behind a barrier they are added in
//   order of warps.
//
// A warp's pieces come through a ring in shared memory of its own: what is in flight is then a matter of the ring and
// not of how many scoreboards a warp has. Tokens go to shared memory once, in the order of the operand, while the first
// pieces are on their way; they are asked for first, because they would queue behind W. RMSNorm needs no sum over the
// row before the products: a chunk is divided by its own root mean square, which keeps float16 in range whatever the
// tokens' size, multiplied back in float32, and the squares of all chunks are added up at the end.
//
// A few rows of another matrix with float16 weights, of the same normed token, can be computed beside (the gates of a
// gated-delta layer): a thread multiplies the columns that it has in registers anyway, and what would be a launch of
// its own hides behind W.
#include "kernels/int4_gemm/few.cuh"

using namespace orin;

namespace {

// By a divisor whose magic is ceil(2^32 / divisor), 0 for 1; exact as long as value * divisor < 2^32.
__device__ __forceinline__ int divide(int value, uint32 magic) { return magic ? __umulhi(value, magic) : value; }

template <int kBytes>
__device__ __forceinline__ void copy(void* to, const void* from) {
  if (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;\n" ::"r"(shared_address(to)), "l"(from)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;\n" ::"r"(shared_address(to)), "l"(from), "n"(kBytes)
                 : "memory");
  }
}

__device__ __forceinline__ void end_of_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
  __syncwarp();
}

__device__ __forceinline__ void wait_for_all_copies() { asm volatile("cp.async.wait_all;\n" ::: "memory"); }

// The rows of the product beside that this block computes. Blocks are counted from the last, which has fewest units.
class Beside {
 public:
  __device__ explicit Beside(const Int4StreamParams& params) : p(params), vectors(p.chunks * (kChunkColumns / 8)) {}

  // The first row's weights, as soon as the tokens are asked for.
  __device__ void load() {
    if (has_row(0) && has_columns()) first = load_x(weight(0));
  }

  // Sums of each warp, of x times the norm's weight.
  __device__ void multiply(const uint4& x, const uint4 (&norm)[2]) {
#pragma unroll 1
    for (int i = 0; has_row(i); ++i) {
      if (i && has_columns()) first = load_x(weight(i));
      const float sum = warp_sum(has_columns() ? dot(first, x, norm) : 0.f);
      if (threadIdx.x % kWarp == 0) sums()[i * kStreamWarps + threadIdx.x / kWarp] = sum;
    }
  }

  // By all lanes of one warp, behind a barrier. `scale`: one over the root mean square of x.
  __device__ void store(float scale) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll 1
    for (int i = 0; has_row(i); ++i) {
      const float total = warp_sum(lane < blockDim.x / kWarp ? sums()[i * kStreamWarps + lane] : 0.f);
      if (lane == 0) static_cast<half*>(p.beside_y)[row(i)] = __float2half_rn(total * scale);
    }
  }

  __device__ bool has_row(int i) const { return row(i) < p.beside_rows; }

 private:
  __device__ int row(int i) const { return gridDim.x - 1 - blockIdx.x + i * gridDim.x; }
  __device__ bool has_columns() const { return threadIdx.x < vectors; }

  __device__ const char* weight(int i) const {
    return static_cast<const char*>(p.beside) + (size_t(row(i)) * vectors + threadIdx.x) * 16;
  }

  static __device__ float dot(const uint4& w, const uint4& x, const uint4 (&norm)[2]) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 a = __half22float2(halves((&w.x)[i])), b = __half22float2(halves((&x.x)[i]));
      const uint4& n = norm[i / 2];
      sum += a.x * (b.x * __uint_as_float(i % 2 ? n.z : n.x)) + a.y * (b.y * __uint_as_float(i % 2 ? n.w : n.y));
    }
    return sum;
  }

  static __device__ float* sums() {
    __shared__ float v[kBesideRows * kStreamWarps];
    return v;
  }

  const Int4StreamParams& p;
  const int vectors;
  uint4 first;
};

template <int kGroup, int kTokens, bool kZeros, bool kNorm, int kStripes>
class Streamed {
  static constexpr int kGroups = Piece<kGroup>::kGroups;
  static constexpr int kChunks = kTokens == 1 ? 2 / kStripes : 1;  // of a piece
  static constexpr int kHalves = kStripes * kChunks;               // of a piece: stripes or chunks
  static constexpr int kZeroPairs = kZeros ? stream_zero_pairs(kChunks, kGroups) : 0;
  static constexpr int kWords = 4 / kGroups;                          // of a lane in a group
  static constexpr int kEights = (kTokens + 7) / 8;                   // of tokens: an operand each
  static constexpr int kLaneTokens = kTokens == 1 ? 1 : 2 * kEights;  // 2t and 2t + 1 of each
  static constexpr int kRows = kStripes * kStripeRows;                // of a unit
  static constexpr int kVectors = kTokens > 1 ? 2 : kNorm ? 1 : 3;    // of eight columns, of a thread at a time
  static constexpr bool kHasBeside = kNorm && kTokens == 1;
  static constexpr int kChunkVectors = kChunkColumns / 8;
  static constexpr int kScalesAt = kHalves * 512;  // in a stage of the ring: W, scales, zero points
  static constexpr int kZerosAt = kScalesAt + kHalves * kGroups * 16;
  static constexpr int kStageBytes = stream_stage_bytes(kStripes, kChunks, kGroups, kZeros);

  struct Sums {
    float v[kStripes][kLaneTokens];
  };

  // A pair of rows of one token.
  struct Item {
    int unit, token, row;  // row of the unit
  };

 public:
  __device__ explicit Streamed(const Int4StreamParams& params)
      : p(params),
        thread(threadIdx.x),
        lane(threadIdx.x % kWarp),
        warp(threadIdx.x / kWarp),
        num_tokens(kTokens == 1 ? 1 : params.tokens),
        chunks(params.chunks),
        unit_pieces(params.chunks / kChunks) {}

  __device__ void run() {
    const int vectors = num_tokens * chunks * kChunkVectors;
    Beside beside(p);
    const auto load_weights = [&] {
      load_norms(thread, vectors);
      if (kHasBeside && p.has_beside) beside.load();
    };
    if (!kStartsEarly) load_tokens(thread, vectors), load_weights();
    const int units = p.block_units + (blockIdx.x < p.more_units);
    const int begin = warp * p.warp_pieces;
    const int count = min(int(p.warp_pieces), units * unit_pieces - begin);
    int unit = divide(begin, p.unit_magic);
    int piece = begin - unit * unit_pieces;
    point(unit, piece);
    char* const ring = shared() + p.ring_at + warp * (kStreamStages * kStageBytes);
    const auto ask = [&](int stage, int end) {
      if (stage < end) fetch(ring + stage * kStageBytes);
      end_of_copies();
    };
    // Who starts early asks for no more than a piece of W in front of the wait, for tokens would queue behind more.
    const bool leads = kStartsEarly && p.leads;
    if (leads) ask(0, count);
    if (kStartsEarly) load_weights();
    begin_in_turn();
    if (kStartsEarly) load_tokens(thread, vectors);
    const int pieces = p.has_rows && all_skipped(p.gemm) ? 0 : count;
#pragma unroll
    for (int j = 0; j < kStreamStages; ++j) {
      if (j > 0 || !leads) ask(j, kStartsEarly ? count : pieces);  // to wait for the rows costs 0.5 % of a decode step
    }
    // The last warps add up: they have fewest pieces, and are here first.
    const int slot = blockDim.x - kWarp * (warp + 1) + lane;
    const Item item = item_of(slot);
    // Not to a register: the warp would wait for it, which comes behind W, where it waits for the tokens.
    if (kTokens == 1 && has_residual() && item.unit < units) copy<4>(first_residual(), residual_at(item));
    prepare_tokens(thread, vectors);
    if (kHasBeside && p.has_beside) beside.multiply(raw[0], norm[0]);
    // Whole warps: lanes add up, and a chunk's vectors are half a warp's.
#pragma unroll 1
    for (int first = thread + kVectors * blockDim.x; first - lane < vectors; first += kVectors * blockDim.x) {
      load_tokens(first, vectors);
      load_norms(first, vectors);
      prepare_tokens(first, vectors);
    }
    __syncthreads();
    const float scale = item.unit < units ? scale_of(item.token) : 0.f;
    Sums sums = {};
    int stage = 0;
#pragma unroll 1
    for (int left = pieces; left > 0; --left) {
      wait_for_copies<kStreamStages - 1>();
      multiply(ring + stage * kStageBytes, piece * kChunks, sums);
      __syncwarp();  // a piece's scales are read by other lanes than those that will ask for the next ones
      if (left > kStreamStages) fetch(ring + stage * kStageBytes);
      end_of_copies();
      if (++stage == kStreamStages) stage = 0;
      if (++piece == unit_pieces) {
        piece = 0;
        leave(sums, unit++);
        sums = {};
      }
    }
    if (piece && pieces > 0) leave(sums, unit);
    const Parts left = item.unit < units ? parts_of(item) : Parts{};
    wait_for_all_copies();
    __syncthreads();
    if (kHasBeside && p.has_beside && warp == 0 && beside.has_row(0)) {
      beside.store(scale_of(0) * kUnit);
    }
    if (item.unit < units) add_up(units, p.has_rows && all_skipped(p.gemm), slot, item, left, scale);
  }

 private:
  __device__ uint32 stripe_bytes() const { return chunks * 512; }
  __device__ uint32 stripe_scale_bytes() const { return chunks * (16 * kGroups); }

  // To the pieces from `piece` of a unit of the block on: W by lane, scales by half and group, zero points by stripe.
  __device__ void point(int unit, int piece) {
    const int chunk = piece * kChunks;
    const uint32 stripe = (blockIdx.x + unit * gridDim.x) * kStripes;
    next_piece = piece;
    weight = static_cast<const char*>(p.weight) + (size_t(stripe) * stripe_bytes() + uint32(chunk * 512 + lane * 16));
    constexpr int kStripeScales = kGroups * kChunks;
    const uint32 of_scales = lane / kStripeScales % kStripes * stripe_scale_bytes() + lane % kStripeScales * 16;
    scales = static_cast<const char*>(p.scales) +
             (size_t(stripe) * stripe_scale_bytes() + uint32(chunk * (16 * kGroups)) + of_scales);
    if (kZeros) {
      constexpr int kPairs = kZeros ? kZeroPairs : 1;
      const uint32 of_zeros = lane / kPairs % kStripes * p.gemm.stripe_zero_bytes + lane % kPairs * 8;
      zeros = static_cast<const char*>(p.gemm.zeros) + (size_t(stripe) * p.gemm.stripe_zero_bytes + of_zeros);
    }
  }

  // Ask for the next piece.
  __device__ void fetch(char* stage) {
    if (lane < kHalves * kGroups) copy<16>(stage + kScalesAt + lane * 16, scales);
    if (kZeros && lane < kStripes * kZeroPairs) {
      copy<8>(stage + kZerosAt + lane * 8, zeros + next_piece * kChunks * kGroups / 2 * kStripeRows);
    }
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      copy<16>(stage + h * 512 + lane * 16, weight + (kChunks == 2 ? h * 512 : h * stripe_bytes()));
    }
    weight += 512 * kChunks, scales += 16 * kGroups * kChunks;
    if (++next_piece == unit_pieces) {
      next_piece = 0;
      weight += size_t(gridDim.x * kStripes - 1) * stripe_bytes();
      scales += size_t(gridDim.x * kStripes - 1) * stripe_scale_bytes();
      if (kZeros) zeros += size_t(gridDim.x) * kStripes * p.gemm.stripe_zero_bytes;
    }
  }

  // Vectors of eight columns: first, first + blockDim.x, ... of all tokens one behind the other.
  __device__ void load_tokens(int first, int vectors) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int vector = first + i * blockDim.x;
      if (vector >= vectors) continue;
      const int token = token_of(vector), column = vector - token * chunks * kChunkVectors;
      const char* x = static_cast<const char*>(p.x) + column * 16;
      if (kTokens > 1 || p.has_rows) x += size_t(row_of_x(p.gemm, token)) * (chunks * 2 * kChunkColumns);
      raw[i] = load_x(x);
    }
  }

  // The norm's weights of the same columns.
  __device__ void load_norms(int first, int vectors) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int vector = first + i * blockDim.x;
      if (!kNorm || vector >= vectors) continue;
      const int column = vector - token_of(vector) * chunks * kChunkVectors;
      const char* from = static_cast<const char*>(p.norm) + column * 32;
      norm[i][0] = load_x(from), norm[i][1] = load_x(from + 16);
    }
  }

  __device__ int token_of(int vector) const { return kTokens == 1 ? 0 : divide(vector / kChunkVectors, p.unit_magic); }

  // To shared memory, with what the products need of each chunk.
  __device__ void prepare_tokens(int first, int vectors) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int vector = first + i * blockDim.x;
      if (vector - lane >= vectors) continue;
      const int token = token_of(vector), column = vector - token * chunks * kChunkVectors;
      const int chunk = column / kChunkVectors;
      const bool is_there = vector < vectors;
      uint4 v = is_there ? raw[i] : uint4{0, 0, 0, 0};
      if (kNorm) {
        const float square = sum_of<kChunkVectors>(squares_of(v));
        const float mean = square * (1.f / kChunkColumns) + 1e-30f;  // zeros stay zeros
        const float inverse = rsqrtf(mean);
        const float4 w[2] = {as_floats(norm[i][0]), as_floats(norm[i][1])};
        if (is_there) v = normalised(v, inverse, w);
        if (is_there && lane % kChunkVectors == 0) {
          factors()[chunk * kTokens + token] = mean * inverse;
          squares()[token * chunks + chunk] = square;
        }
      }
      const float sum = sum_of<kGroup / 8>(values_of(v));
      if (!is_there) continue;
      tokens()[((column / 4) * num_tokens + token) * 4 + column % 4] = v;
      if (lane % (kGroup / 8) == 0) {
        offsets()[(column / (kGroup / 8)) * kTokens + token] = sum * (kZeros ? -kUnit : -8.f * kUnit);
      }
    }
  }

  // Over kLanes neighbouring lanes; the same in all of them.
  template <int kLanes>
  static __device__ float sum_of(float v) {
#pragma unroll
    for (int step = kLanes / 2; step; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
  }

  static __device__ float squares_of(const uint4& v) {
    float2 sum[2] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 f = __half22float2(halves((&v.x)[i]));
      sum[i % 2].x += f.x * f.x, sum[i % 2].y += f.y * f.y;
    }
    return (sum[0].x + sum[0].y) + (sum[1].x + sum[1].y);
  }

  static __device__ float values_of(const uint4& v) {
    const float2 a = __half22float2(halves(v.x)), b = __half22float2(halves(v.y));
    const float2 c = __half22float2(halves(v.z)), d = __half22float2(halves(v.w));
    return ((a.x + a.y) + (b.x + b.y)) + ((c.x + c.y) + (d.x + d.y));
  }

  static __device__ float4 as_floats(const uint4& v) {
    return {__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)};
  }

  // The products of a piece that begins with `chunk`: lane (g, t) has row g of each half, tokens 2t and 2t + 1, or,
  // where halves are chunks, the products of both with the token's part of the first one, and of the second one.
  __device__ void multiply(const char* stage, int chunk, Sums& sums) const {
    uint4 w[kHalves];
    float scale[kHalves][kGroups], zero[kHalves][kGroups];
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      w[h] = *reinterpret_cast<const uint4*>(stage + h * 512 + lane * 16);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        scale[h][g] =
            __half2float(*reinterpret_cast<const half*>(stage + kScalesAt + (h * kGroups + g) * 16 + lane / 4 * 2));
        if (kZeros) {
          const int group = kChunks == 2 ? h * kGroups + g : g, stripe = kChunks == 2 ? 0 : h;
          const unsigned pair = *reinterpret_cast<const unsigned char*>(
              stage + kZerosAt + (stripe * kZeroPairs + group / 2) * 8 + lane / 4);
          zero[h][g] = static_cast<float>(pair >> ((kGroups * kChunks == 1 ? chunk : group) % 2 * 4) & 15);
        }
      }
    }
    uint4 x[kEights][4];
#pragma unroll
    for (int h = 0; h < kEights; ++h) {
      const int token = min(lane / 4 + 8 * h, num_tokens - 1);
      const int own_chunk = chunk + (kChunks == 2 ? lane / 4 % 2 : 0);
      const uint4* from = tokens() + (own_chunk * 4 * num_tokens + token) * 4 + lane % 4;
#pragma unroll
      for (int i = 0; i < 4; ++i) x[h][i] = from[i * 4 * num_tokens];
    }
    float piece[kHalves][kLaneTokens] = {};
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      float low[kEights][4], high[kEights][4];
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        uint32 a[4], b[4] = {0, 0, 0, 0};
        nibbles((&w[0].x)[g * kWords + i], a);
        if (kHalves == 2) nibbles((&w[kHalves - 1].x)[g * kWords + i], b);
#pragma unroll
        for (int h = 0; h < kEights; ++h) {
          const uint4 v = x[h][g * kWords + i];
          if (i == 0) {
            mma_first(low[h], {a[0], b[0], a[1], b[1]}, {v.x, v.y});
            mma_first(high[h], {a[2], b[2], a[3], b[3]}, {v.z, v.w});
          } else {
            mma(low[h], {a[0], b[0], a[1], b[1]}, {v.x, v.y});
            mma(high[h], {a[2], b[2], a[3], b[3]}, {v.z, v.w});
          }
        }
      }
#pragma unroll
      for (int e = 0; e < kLaneTokens; ++e) {
#pragma unroll
        for (int h = 0; h < kHalves; ++h) {
          const int of = chunk + (kChunks == 2 ? h : 0), at = kChunks == 2 ? 3 * h : 2 * h + e % 2;
          const float offset = offsets()[(of * kGroups + g) * kTokens + token_of_lane(e)];
          const float v = high[e / 2][at] * (1.f / 16) + low[e / 2][at];
          piece[h][e] += (kZeros ? offset * zero[h][g] + v : v + offset) * scale[h][g];
        }
      }
    }
#pragma unroll
    for (int e = 0; e < kLaneTokens; ++e) {
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        const int of = chunk + (kChunks == 2 ? h : 0);
        const float factor = kNorm ? factors()[of * kTokens + token_of_lane(e)] : 1.f;
        sums.v[kChunks == 2 ? 0 : h][e] += piece[h][e] * factor;
      }
    }
  }

  __device__ int token_of_lane(int e) const { return kTokens == 1 ? 0 : e / 2 * 8 + lane % 4 * 2 + e % 2; }

  // The warp's sums of a unit, which lie in shared memory as [unit][warp of the unit][token][row].
  __device__ void leave(const Sums& sums, int unit) const {
    const int part = unit * p.parts + warp - divide(unit * unit_pieces, p.pieces_magic);
    float* to = parts() + part * num_tokens * kRows + lane / 4;
#pragma unroll
    for (int e = 0; e < kLaneTokens; ++e) {
      const int token = e / 2 * 8 + lane % 4 * 2 + e % 2;
      if (token >= num_tokens) continue;
#pragma unroll
      for (int s = 0; s < kStripes; ++s) to[token * kRows + s * kStripeRows] = sums.v[s][e];
    }
  }

  __device__ Item item_of(int index) const {
    const int rest = index / (kRows / 2), unit = kTokens == 1 ? rest : divide(rest, p.tokens_magic);
    return {unit, rest - unit * num_tokens, index % (kRows / 2) * 2};
  }

  __device__ int row_of(const Item& item) const { return (blockIdx.x + item.unit * gridDim.x) * kRows + item.row; }

  __device__ const uint32* residual_at(const Item& item) const {
    const half* residual = static_cast<const half*>(p.residual);
    return reinterpret_cast<const uint32*>(residual + (item.token * p.n + row_of(item)));
  }

  __device__ bool has_residual() const { return p.end == kEndPlain && p.residual; }

  // The residual of a thread's first item.
  __device__ uint32* first_residual() const { return reinterpret_cast<uint32*>(shared() + p.ring_at) - 1 - thread; }

  // Where warps that have a part of a unit leave a pair of its sums, and how many they are.
  struct Parts {
    const float* from;
    int count;
  };

  __device__ Parts parts_of(const Item& item) const {
    const int first = item.unit * unit_pieces;
    return {parts() + (item.unit * p.parts * num_tokens + item.token) * kRows + item.row,
            divide(first + unit_pieces - 1, p.pieces_magic) - divide(first, p.pieces_magic) + 1};
  }

  __device__ float2 total_of(const Parts& left) const {
    constexpr int kAtOnce = 4;
    float2 total = {0.f, 0.f};
#pragma unroll 1
    for (int first = 0; first < left.count; first += kAtOnce) {
      float2 v[kAtOnce] = {};
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const float* from = left.from + (first + i) * (num_tokens * kRows);
        if (first + i < left.count) v[i] = *reinterpret_cast<const float2*>(from);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) total.x += v[i].x, total.y += v[i].y;
    }
    return total;
  }

  __device__ void add_up(int units, bool is_skipped, int slot, Item item, Parts left, float scale) const {
    uint32 residual = !has_residual() ? 0 : kTokens == 1 ? *first_residual() : *residual_at(item);
#pragma unroll 1
    while (true) {
      float2 total = total_of(left);
      if (is_skipped) total = {0.f, 0.f};
      const int row = row_of(item);
      if (p.end == kEndPlain) {
        const float2 r = __half22float2(halves(residual));
        half2* y = reinterpret_cast<half2*>(static_cast<half*>(p.y) + (item.token * p.n + row));
        *y = __floats2half2_rn(total.x * scale + r.x, total.y * scale + r.y);
      } else if (p.end == kEndGated) {
        half* y = static_cast<half*>(p.y) + (item.token * p.n + row) / 2;
        *y = __float2half_rn(silu(total.x * scale) * (total.y * scale));
      } else {
        finish(p.gemm, item.token, row, total.x * scale, total.y * scale);
      }
      slot += blockDim.x;
      item = item_of(slot);
      if (item.unit >= units) return;
      left = parts_of(item);
      if (kTokens > 1) scale = scale_of(item.token);
      if (has_residual()) residual = *residual_at(item);
    }
  }

  __device__ float scale_of(int token) const {
    if (!kNorm) return 1.f / kUnit;
    float total = 0.f;
#pragma unroll 8
    for (int i = 0; i < chunks; ++i) total += squares()[token * chunks + i];
    return rsqrtf(total * p.inverse_k + p.norm_eps) * (1.f / kUnit);
  }

  static __device__ char* shared() {
    extern __shared__ __align__(kSectorBytes) char bytes[];
    return bytes;
  }

  // [chunk][32 columns][token][8 columns], the order in which lanes (token, t) read.
  static __device__ uint4* tokens() { return reinterpret_cast<uint4*>(shared()); }
  // [chunk][group][token]: what the zero point is multiplied with.
  __device__ float* offsets() const { return reinterpret_cast<float*>(shared() + p.offsets_at); }
  // [chunk][token]: the root mean square of the chunk.
  __device__ float* factors() const { return reinterpret_cast<float*>(shared() + p.factors_at); }
  // [token][chunk]
  __device__ float* squares() const { return reinterpret_cast<float*>(shared() + p.squares_at); }
  __device__ float* parts() const { return reinterpret_cast<float*>(shared() + p.parts_at); }

  const Int4StreamParams& p;
  const int thread, lane, warp, num_tokens, chunks, unit_pieces;
  int next_piece;  // and what this lane asks for of it
  const char* weight;
  const char* scales;
  const char* zeros;
  uint4 raw[kVectors];  // tokens as they come
  uint4 norm[kVectors][2];
};

}  // namespace

#define ORIN_STREAM(group, tokens, has_zeros, has_norm, stripes, name)            \
  extern "C" __global__ void __launch_bounds__(32 * kStreamWarps, 1)              \
      int4_gemm_stream_##group##_##tokens##_##stripes##name(Int4StreamParams p) { \
    Streamed<group, tokens, has_zeros, has_norm, stripes>(p).run();               \
  }
#define ORIN_STREAM_GROUP(group)                     \
  ORIN_STREAM(group, 1, false, false, 1, )           \
  ORIN_STREAM(group, 1, false, false, 2, )           \
  ORIN_STREAM(group, 1, false, true, 1, _norm)       \
  ORIN_STREAM(group, 1, false, true, 2, _norm)       \
  ORIN_STREAM(group, 1, true, false, 1, _zeros)      \
  ORIN_STREAM(group, 1, true, false, 2, _zeros)      \
  ORIN_STREAM(group, 1, true, true, 1, _zeros_norm)  \
  ORIN_STREAM(group, 1, true, true, 2, _zeros_norm)  \
  ORIN_STREAM(group, 8, false, true, 1, _norm)       \
  ORIN_STREAM(group, 8, false, true, 2, _norm)       \
  ORIN_STREAM(group, 8, true, true, 1, _zeros_norm)  \
  ORIN_STREAM(group, 8, true, true, 2, _zeros_norm)  \
  ORIN_STREAM(group, 16, false, true, 1, _norm)      \
  ORIN_STREAM(group, 16, false, true, 2, _norm)      \
  ORIN_STREAM(group, 16, true, true, 1, _zeros_norm) \
  ORIN_STREAM(group, 16, true, true, 2, _zeros_norm)

ORIN_STREAM_GROUP(32)
ORIN_STREAM_GROUP(64)
ORIN_STREAM_GROUP(128)
