// SPDX-License-Identifier: Apache-2.0
// OrinAttention for at most 16 tokens per sequence, in one launch: norm, rotary, append, attention split over the GPU,
// reduction, gate.
//
// A block takes one share ("split") of the keys of one sequence, one KV head, and up to 8 or 16 query rows, which are
// all query heads of that KV head for all tokens of the step: row = token * group + head in group. So K and V are read
// once. The grid is sized for the longest sequence; each block finds on the device how many splits this one is worth
// and leaves at once if it is not needed.
//
// Inside a block every warp walks through its own tiles of 16 keys with its own ring in shared memory and meets no
// other warp until the end. The products are computed transposed, so that keys and not the few query rows fill the 16
// rows of mma.m16n8k16:
//
//   S^T [16 keys, rows] = K [16 keys, D] Q^T            A = K by ldmatrix,       B = Q^T by ldmatrix
//   O^T [D, rows]      += V^T [D, 16 keys] P^T          A = V^T by ldmatrix.trans, B = P^T by movmatrix from S^T
//
// S^T and O^T then have the same row in the same lane: lane l holds rows 2(l%4), 2(l%4)+1 of each eight.
//
// The new tokens' K and V are made by the last split from qkv and attended from shared memory as one more tile; nobody
// reads from the cache what this launch writes to it.
#include "kernels/attention/attention.cuh"

using namespace orin;

namespace {

// p.partials, by (sequence, KV head, row tile) and split: kRows * D sums, then kRows maxima, then kRows denominators.
template <int D, int kRows>
constexpr int kPartialFloats = kRows * (D + 2);

__device__ __forceinline__ uint32 transposed(uint32 matrix) {
  uint32 out;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(out) : "r"(matrix));
  return out;
}

// The part of the keys that one block attends to.
struct Share {
  int oldest;      // first position that any row of the block sees
  int first_tile;  // tiles count from `oldest`
  int last_tile;
  int active;  // splits that have work
  bool has_new;
};

template <int kWarps>
__device__ __forceinline__ Share share_of(const AttentionParams& p, const Sequence& s, int first_token, int split,
                                          int splits) {
  Share share;
  share.oldest = p.window ? max(s.oldest, s.past + first_token - p.window + 1) : s.oldest;
  const int tiles = (max(0, s.past - share.oldest) + kDecodeKeys - 1) / kDecodeKeys;
  share.active = min(splits, max(1, (tiles + kWarps - 1) / kWarps));
  share.first_tile = int(size_t(split) * tiles / share.active);
  share.last_tile = int(size_t(split + 1) * tiles / share.active);
  share.has_new = split == share.active - 1;
  return share;
}

// Zeros for the tokens of a sequence that is padding, and for tokens beyond every sequence: these are dealt out to the
// sequences in turn.
template <int D>
__device__ void write_zeros(const AttentionParams& p, const Sequence& s, int b, int h) {
  const int columns = p.heads / p.kv_heads * D / 8;
  const auto clear = [&](int token) {
    uint4* row = reinterpret_cast<uint4*>(static_cast<half*>(p.y) + (size_t(token) * p.heads * D)) + h * columns;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) row[i] = make_uint4(0, 0, 0, 0);
  };
  if (!s.is_live) {
    for (int t = 0; t < s.tokens; ++t) clear(s.begin + t);
  }
  for (int t = p.cu_seqlens[p.sequences] + b; t < p.tokens; t += p.sequences) clear(t);
}

// Queries, and for the last split the new keys and values, to shared memory; these also to the cache.
template <int D, int kRows, bool kInt8>
__device__ __forceinline__ void make_rows(const AttentionParams& p, const Sequence& s, int h, int first_row, int rows,
                                          bool has_new, bool writes, half* queries, half* keys, half* values) {
  using Group = RowGroup<D>;
  constexpr int kStride = D + kPadding, kGroups = decode_warps(D) * Group::kRowsPerWarp;
  const int group = p.heads / p.kv_heads, chunk = threadIdx.x % Group::kGroup;
  const bool is_used = chunk < Group::kUsed;
  for (int base = 0; base < kRows; base += kGroups) {
    const int r = base + threadIdx.x / Group::kGroup;
    const int token = (first_row + r) / group, head = h * group + (first_row + r) % group;
    const Eight row = query_row<D>(p, s, token, head, chunk, r < rows);
    if (is_used && r < kRows) *reinterpret_cast<Eight*>(queries + r * kStride + 8 * chunk) = row;
  }
  if (!has_new) return;
  for (int base = 0; base < 2 * kDecodeKeys; base += kGroups) {
    const int r = base + threadIdx.x / Group::kGroup, token = r / 2;
    const bool is_value = r % 2;
    Eight row{};
    if (base < 2 * s.tokens) row = append_row<D, kInt8>(p, s, token, h, is_value, chunk, token < s.tokens, writes);
    if (is_used && r < 2 * kDecodeKeys) {
      *reinterpret_cast<Eight*>((is_value ? values : keys) + token * kStride + 8 * chunk) = row;
    }
  }
}

// What a warp, then a block, knows of its rows: maximum, denominator, sums.
template <int D, int kTiles>
struct State {
  float o[D / 16][kTiles][4];
  float m[kTiles][2];  // exponents of 2
  float l[kTiles][2];  // of the keys of this lane alone until the end
};

// S^T of one tile as exponents of 2 times 1/k, k the factor that is still to be applied.
template <int D, int kTiles>
__device__ __forceinline__ void scores(const half* keys, const half* queries, int lane, float (&s)[kTiles][4]) {
  constexpr int kStride = D + kPadding;
  const half* key = keys + lane % 16 * kStride + lane / 16 * 8;
  const half* query = queries + lane % 8 * kStride + lane / 8 * 8;
  float even[kTiles][4] = {}, odd[kTiles][4] = {};  // two chains, because an mma's result is far away
#pragma unroll
  for (int k = 0; k < D / 32; ++k) {
    uint32 a[2][4];
    ldmatrix_x4(a[0], key + 32 * k);
    ldmatrix_x4(a[1], key + 32 * k + 16);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      uint32 q[4];
      ldmatrix_x4(q, query + t * 8 * kStride + 32 * k);
      const uint32 b[2][2] = {{q[0], q[1]}, {q[2], q[3]}};
      mma(even[t], a[0], b[0]);
      mma(odd[t], a[1], b[1]);
    }
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) s[t][i] = even[t][i] + odd[t][i];
  }
}

// Masked scores to P^T, the state's maxima and denominators with it. The maximum is only raised when it falls behind by
// more than 8: until then 2^(s - m) stays below 2^8, which float16 holds as exactly as it holds 1.
template <int D, int kTiles>
__device__ __forceinline__ void soften(State<D, kTiles>& state, float (&s)[kTiles][4], float factor,
                                       uint32 (&weights)[kTiles][2]) {
  float top[kTiles][2];
  bool is_behind = false;
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float most = fmaxf(s[t][c], s[t][c + 2]);
#pragma unroll
      for (int lane = 4; lane < 32; lane *= 2) most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, lane));
      top[t][c] = most * factor;
      is_behind |= top[t][c] > state.m[t][c] + 8.f;
    }
  }
  if (__any_sync(kAllLanes, is_behind)) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float m = fmaxf(state.m[t][c], top[t][c]), fade = exp2_approx(state.m[t][c] - m);
        state.m[t][c] = m;
        state.l[t][c] *= fade;
#pragma unroll
        for (int d = 0; d < D / 16; ++d) state.o[d][t][c] *= fade, state.o[d][t][c + 2] *= fade;
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[t][i] = exp2_approx(s[t][i] * factor - state.m[t][i % 2]);
      state.l[t][i % 2] += s[t][i];
    }
    weights[t][0] = transposed(pack_half2(s[t][0], s[t][1]));
    weights[t][1] = transposed(pack_half2(s[t][2], s[t][3]));
  }
}

template <int D, int kTiles>
__device__ __forceinline__ void accumulate(State<D, kTiles>& state, const half* values, const uint32 (&weights)[kTiles][2],
                                           int lane) {
  const half* value = values + (lane % 8 + lane / 16 * 8) * (D + kPadding) + lane / 8 % 2 * 8;
#pragma unroll
  for (int d = 0; d < D / 16; ++d) {
    uint32 a[4];
    ldmatrix_x4_trans(a, value + 16 * d);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) mma(state.o[d][t], a, weights[t]);
  }
}

// Which keys the two rows of each tile in this lane see, for tiles at an edge.
template <int kTiles>
struct Sight {
  int last[kTiles][2];
  int oldest;
  int window;

  __device__ __forceinline__ void mask(float (&s)[kTiles][4], int position, int end) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = position + lane / 4 + i / 2 * 8, own = last[t][i % 2];
        const bool is_seen = key <= own && key < end && key >= oldest && (!window || key > own - window);
        if (!is_seen) s[t][i] = minus_infinity();
      }
    }
  }
};

// y of one row's four columns: normalised, gated, rounded.
template <int D>
__device__ __forceinline__ void write_output(const AttentionParams& p, const Sequence& s, int h, int row, int column,
                                             float4 o) {
  const int group = p.heads / p.kv_heads, token = s.begin + row / group, head = h * group + row % group;
  if (p.gate) {
    const size_t width = size_t(2 * p.heads + 2 * p.kv_heads) * D;
    const half2* gate = reinterpret_cast<const half2*>(static_cast<const half*>(p.qkv) + token * width +
                                                       (p.heads + head) * D + column);
    const float2 a = __half22float2(gate[0]), b = __half22float2(gate[1]);
    o.x *= sigmoid(a.x), o.y *= sigmoid(a.y), o.z *= sigmoid(b.x), o.w *= sigmoid(b.y);
  }
  half2* y = reinterpret_cast<half2*>(static_cast<half*>(p.y) + (size_t(token) * p.heads + head) * D + column);
  y[0] = __floats2half2_rn(o.x, o.y);
  y[1] = __floats2half2_rn(o.z, o.w);
}

// The last block of a sequence's splits adds up what all of them left, always in the order of the splits.
template <int D, int kRows>
__device__ void reduce_splits(const AttentionParams& p, const Sequence& s, int h, int first_row, int rows,
                              const float* partials, int active, float* weights) {
  constexpr int kSize = kPartialFloats<D, kRows>, kThreads = 32 * decode_warps(D);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int r = warp; r < rows; r += decode_warps(D)) {
    const float* m = partials + kRows * D + r;
    float most = kFloor, sum = 0.f;
    for (int i = lane; i < active; i += 32) most = fmaxf(most, __ldcg(m + i * kSize));
#pragma unroll
    for (int step = 16; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, step));
    for (int i = lane; i < active; i += 32) {
      const float weight = exp2_approx(__ldcg(m + i * kSize) - most);
      weights[r * kMaxSplits + i] = weight;
      sum += weight * __ldcg(m + i * kSize + kRows);
    }
#pragma unroll
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    const float inverse = 1.f / sum;
    for (int i = lane; i < active; i += 32) weights[r * kMaxSplits + i] *= inverse;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows * D / 4; i += kThreads) {
    const int r = i / (D / 4), column = i % (D / 4) * 4;
    const float4* from = reinterpret_cast<const float4*>(partials + r * D + column);
    float4 sum{};
#pragma unroll 8
    for (int split = 0; split < active; ++split) {
      const float4 o = __ldcg(from + split * (kSize / 4));
      const float weight = weights[r * kMaxSplits + split];
      sum.x += weight * o.x, sum.y += weight * o.y, sum.z += weight * o.z, sum.w += weight * o.w;
    }
    write_output<D>(p, s, h, first_row + r, column, sum);
  }
}

// The warps' states to one, then to y if this block was alone, else to p.partials.
template <int D, int kTiles>
__device__ __forceinline__ void finish(const AttentionParams& p, const Sequence& s, const Share& share, int h,
                                       int first_row, int rows, State<D, kTiles>& state, float* sums) {
  constexpr int kRows = 8 * kTiles, kWarps = decode_warps(D), kSumStride = D + 4;
  __shared__ float maxima[kWarps][kRows], denominators[kWarps][kRows];
  __shared__ bool is_last;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int r = 8 * t + lane % 4 * 2 + c;
      float l = state.l[t][c];
#pragma unroll
      for (int step = 4; step < 32; step *= 2) l += __shfl_xor_sync(kAllLanes, l, step);
      if (lane < 4) maxima[warp][r] = state.m[t][c], denominators[warp][r] = l;
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
        float* column = sums + (warp * kRows + r) * kSumStride + 16 * d + lane / 4;
        column[0] = state.o[d][t][c];
        column[8] = state.o[d][t][c + 2];
      }
    }
  }
  __syncthreads();
  const int unit = (blockIdx.z * p.kv_heads + h) * p.row_tiles + first_row / kRows;
  float* partials = p.partials + size_t(unit) * gridDim.x * kPartialFloats<D, kRows>;
  float* own = partials + size_t(blockIdx.x) * kPartialFloats<D, kRows>;
  for (int i = threadIdx.x; i < rows * D / 4; i += 32 * kWarps) {
    const int r = i / (D / 4), column = i % (D / 4) * 4;
    float m = kFloor, l = 0.f;
    float4 sum{};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) m = fmaxf(m, maxima[w][r]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float weight = exp2_approx(maxima[w][r] - m);
      const float4 o = *reinterpret_cast<const float4*>(sums + (w * kRows + r) * kSumStride + column);
      l += weight * denominators[w][r];
      sum.x += weight * o.x, sum.y += weight * o.y, sum.z += weight * o.z, sum.w += weight * o.w;
    }
    if (share.active == 1) {
      const float inverse = 1.f / l;
      write_output<D>(p, s, h, first_row + r, column,
                      make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse));
    } else {
      __stcg(reinterpret_cast<float4*>(own + r * D + column), sum);
      if (column == 0) __stcg(own + kRows * D + r, m), __stcg(own + kRows * (D + 1) + r, l);
    }
  }
  if (share.active == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(p.counters + unit, 1) == share.active - 1;
    if (is_last) p.counters[unit] = 0;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  reduce_splits<D, kRows>(p, s, h, first_row, rows, partials, share.active, sums);
}

// Grid: splits, KV heads * row tiles, sequences.
template <int D, int kTiles, bool kInt8>
__device__ __forceinline__ void decode(const AttentionParams& p) {
  constexpr int kRows = 8 * kTiles, kWarps = decode_warps(D), kTile = decode_tile_bytes(D) / 2;
  constexpr int kHalfStage = decode_stage_bytes(D, kInt8) / 2, kRing = decode_ring_bytes(D, kInt8);
  static_assert(kWarps * kRows * (D + 4) * 4 <= kWarps * kRing, "the sums of all warps take the place of the rings");
  static_assert(kRows * kMaxSplits * 4 <= kWarps * kRing, "and so do the weights of all splits");
  extern __shared__ __align__(128) char shared[];
  const int b = blockIdx.z, h = blockIdx.y / p.row_tiles, first_row = blockIdx.y % p.row_tiles * kRows;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = p.heads / p.kv_heads;
  const Sequence s = read_sequence(p, b);
  if (blockIdx.x == 0 && first_row == 0) write_zeros<D>(p, s, b, h);
  const int rows = min(kRows, s.tokens * group - first_row);
  if (!s.is_live || rows <= 0) return;
  const Share share = share_of<kWarps>(p, s, first_row / group, blockIdx.x, gridDim.x);
  if (int(blockIdx.x) >= share.active) return;

  char* ring = shared + warp * kRing;
  half* const unpacked = reinterpret_cast<half*>(ring + kDecodeStages * 2 * kHalfStage);  // int8: K, then V
  half* const new_keys = reinterpret_cast<half*>(shared + kWarps * kRing);
  half* const new_values = new_keys + kTile;
  half* const queries = new_values + kTile;
  const CacheHead keys = cache_head<D, kInt8>(p, s.slot, false, h), values = cache_head<D, kInt8>(p, s.slot, true, h);

  // Tile i of this warp; K and V are groups of their own, also when there is nothing left to fetch.
  const int first = share.first_tile + warp, tiles = max(0, (share.last_tile - first + kWarps - 1) / kWarps);
  const auto fetch_tile = [&](int i) {
    const int position = share.oldest + (first + i * kWarps) * kDecodeKeys, row = position % p.capacity;
    char* stage = ring + i % kDecodeStages * 2 * kHalfStage;
    if (i < tiles) {
      fetch<D, kInt8, kDecodeKeys, 32>(keys, stage, position, row, share.oldest, s.past, p.capacity, lane);
    }
    cp_async_commit();
    if (i < tiles) {
      fetch<D, kInt8, kDecodeKeys, 32>(values, stage + kHalfStage, position, row, share.oldest, s.past, p.capacity,
                                       lane);
    }
    cp_async_commit();
  };
#pragma unroll
  for (int i = 0; i < kDecodeStages; ++i) fetch_tile(i);

  make_rows<D, kRows, kInt8>(p, s, h, first_row, rows, share.has_new, first_row == 0, queries, new_keys, new_values);
  __syncthreads();

  State<D, kTiles> state{};
  Sight<kTiles> sight{{}, share.oldest, p.window};
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      state.m[t][c] = kFloor;
      sight.last[t][c] = s.past + (first_row + 8 * t + lane % 4 * 2 + c) / group;
    }
  }
  const int newest_low = p.window ? s.past + (first_row + rows - 1) / group - p.window + 1 : 0;

  // The new keys go to the warp whose turn it would be.
  const bool is_owner = share.has_new && (share.last_tile - share.first_tile) % kWarps == warp;
  for (int i = 0; i < tiles + is_owner; ++i) {
    const bool is_new = i == tiles;
    const int position = is_new ? s.past : share.oldest + (first + i * kWarps) * kDecodeKeys;
    const char* stage = ring + i % kDecodeStages * 2 * kHalfStage;
    const half* k = is_new ? new_keys : kInt8 ? unpacked : reinterpret_cast<const half*>(stage);
    const half* v = is_new ? new_values : kInt8 ? unpacked + kTile : reinterpret_cast<const half*>(stage + kHalfStage);
    cp_async_wait<2 * kDecodeStages - 1>();
    __syncwarp();
    if (kInt8 && !is_new) {
      dequantise<D, kDecodeKeys, 32>(stage, unpacked, lane);
      __syncwarp();
    }
    float x[kTiles][4];
    scores<D, kTiles>(k, queries, lane, x);
    if (p.softcap_scale != 0.f) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int c = 0; c < 4; ++c) x[t][c] = tanh_by_exp2(x[t][c] * p.softcap_scale);
      }
    }
    const int end = is_new ? s.length : s.past;
    if (position + kDecodeKeys > min(end, s.past + first_row / group) || position < max(share.oldest, newest_low)) {
      sight.mask(x, position, end);
    }
    uint32 weights[kTiles][2];
    soften<D, kTiles>(state, x, p.score_scale, weights);
    cp_async_wait<2 * kDecodeStages - 2>();
    __syncwarp();
    if (kInt8 && !is_new) {
      dequantise<D, kDecodeKeys, 32>(stage + kHalfStage, unpacked + kTile, lane);
      __syncwarp();
    }
    accumulate<D, kTiles>(state, v, weights, lane);
    __syncwarp();
    if (!is_new) fetch_tile(i + kDecodeStages);
  }
  cp_async_wait<0>();
  __syncthreads();
  finish<D, kTiles>(p, s, share, h, first_row, rows, state, reinterpret_cast<float*>(shared));
}

}  // namespace

#define DECODE(D, TILES, CACHE, INT8)                                                                       \
  extern "C" __global__ void __launch_bounds__(32 * decode_warps(D), 1)                                       \
      attention_decode_##D##_##TILES##_##CACHE(AttentionParams p) {                                        \
    decode<D, TILES, INT8>(p);                                                                             \
  }
#define DECODE_ALL(D) \
  DECODE(D, 1, float16, false) DECODE(D, 2, float16, false) DECODE(D, 1, int8, true) DECODE(D, 2, int8, true)

DECODE_ALL(64)
DECODE_ALL(96)
DECODE_ALL(128)
DECODE_ALL(256)
