// SPDX-License-Identifier: Apache-2.0
// OrinAttention for at most 16 tokens per sequence, in one launch: norm, rotary, append, attention split over the GPU,
// reduction, gate. Steps of a few more tokens take several launches, one for each 16 tokens, where that is faster than
// prefill: to a launch the tokens of those before it are past.
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

// What the splits of one sequence, KV head and row tile leave for each other. In p.partials lie the sums of all units,
// float16 [unit, split, kRows, D], each divided by its denominator, then float2 [unit, kRows, split] of maximum (an
// exponent of 2) and denominator.
template <int D, int kRows>
struct Partials {
  half* sums;
  float2* scales;
  int splits;

  __device__ __forceinline__ Partials(const AttentionParams& p, int unit) : splits(gridDim.x) {
    const size_t units = size_t(gridDim.y) * gridDim.z;
    sums = static_cast<half*>(p.partials) + size_t(unit) * splits * kRows * D;
    scales = reinterpret_cast<float2*>(static_cast<half*>(p.partials) + units * splits * kRows * D) +
             size_t(unit) * splits * kRows;
  }
  __device__ __forceinline__ half* sum(int split, int row, int column) const {
    return sums + (size_t(split) * kRows + row) * D + column;
  }
  __device__ __forceinline__ float2* scale(int split, int row) const { return scales + row * splits + split; }
};

__device__ __forceinline__ uint32 transposed(uint32 matrix) {
  uint32 out;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(out) : "r"(matrix));
  return out;
}

// The tokens of sequence b that this launch computes, as if they were all of its step; but no token sees what the whole
// step overwrites. What is padding is so as a whole, and belongs to the first launch.
__device__ __forceinline__ Sequence read_part(const AttentionParams& p, int b) {
  Sequence s = read_sequence(p, b);
  const int done = min(p.first_token, s.tokens);
  s.begin += done, s.past += done;
  s.tokens -= done;
  if (s.is_live) s.tokens = min(s.tokens, kDecodeMaxStep);
  if (!s.is_live && done) s.tokens = 0;
  s.is_live = s.is_live && s.tokens > 0;
  s.length = s.past + s.tokens;
  return s;
}

// The part of the keys that one block attends to.
struct Share {
  int oldest;      // first position that any row of the block sees
  int first_tile;  // tiles count from `oldest`
  int last_tile;
  int active;  // splits that have work
  bool has_new;
};

template <int D>
__device__ __forceinline__ Share share_of(const AttentionParams& p, const Sequence& s, int first_token, int split,
                                          int splits) {
  constexpr int kLeast = decode_split_tiles(D);
  Share share;
  share.oldest = p.window ? max(s.oldest, s.past + first_token - p.window + 1) : s.oldest;
  const int tiles = (max(0, s.past - share.oldest) + kDecodeKeys - 1) / kDecodeKeys;
  share.active = tiles <= decode_alone_tiles(D) ? 1 : min(splits, (tiles + kLeast - 1) / kLeast);
  // The first `more` splits have one more.
  const int each = share.active == 1 ? tiles : tiles / share.active, more = tiles - each * share.active;
  share.first_tile = split * each + min(split, more);
  share.last_tile = share.first_tile + each + (split < more);
  share.has_new = split == share.active - 1;
  return share;
}

// Zeros for the tokens of a sequence that is padding, and for tokens beyond every sequence: these are dealt out to the
// sequences in turn.
template <int D>
__device__ void write_zeros(const AttentionParams& p, const Sequence& s, int b, int h, int end) {
  const int columns = p.group * D / 8;
  const auto clear = [&](int token) {
    uint4* row = reinterpret_cast<uint4*>(static_cast<half*>(p.y) + (size_t(token) * p.heads * D)) + h * columns;
#pragma unroll 1
    for (int i = threadIdx.x; i < columns; i += blockDim.x) row[i] = make_uint4(0, 0, 0, 0);
  };
  if (!s.is_live) {
#pragma unroll 1
    for (int t = 0; t < s.tokens; ++t) clear(s.begin + t);
  }
#pragma unroll 1
  for (int t = end + b; t < p.tokens; t += p.sequences) clear(t);
}

// The rows that a block makes from qkv: its queries, then for the last split K and V of each new token in turn. Each
// lane group takes every kGroups-th. Keys that nobody makes stay what they are: their scores are masked.
template <int D, int kRows, bool kInt8>
struct Rows {
  using Group = RowGroup<D>;
  static constexpr int kStride = D + kPadding, kGroups = kDecodeWarps * Group::kRowsPerWarp;
  const AttentionParams& p;
  const Sequence& s;
  int kv_head, first_row, rows, count;
  half *queries, *keys, *values;
  int chunk = threadIdx.x % Group::kGroup, group = threadIdx.x / Group::kGroup;

  __device__ __forceinline__ RowTask task(int i) const {
    RowTask task =
        i < rows ? query_task(p, s, kv_head, first_row + i) : new_task(p, s, kv_head, (i - rows) & 1, (i - rows) >> 1);
    task.exists = i < count;
    return task;
  }

  __device__ __forceinline__ void store(int i, const RowInput& in, const RowTask& task) const {
    float x[8];
    norm_and_rotate<D>(p, task, in, chunk, x);
    const bool is_value = (i - rows) & 1;
    const bool is_new = task.exists && i >= rows;
    Eight stored = pack(x), appended{};
    if (kInt8 || is_new) {  // the int8 form needs all lanes
      appended =
          append_row<D, kInt8>(p, s, kv_head, is_value, is_new ? task.token : 0, is_new && first_row == 0, chunk, x);
    }
    half* to = (is_new ? (is_value ? values : keys) + task.token * kStride : queries + i * kStride) + 8 * chunk;
    if (is_new) stored = appended;
    if (task.exists && chunk < Group::kUsed) *reinterpret_cast<Eight*>(to) = stored;
  }

  // Queries that nobody makes: an mma keeps rows apart, but one maximum that falls behind raises all of a warp, so what
  // they hold would decide how the others round.
  __device__ __forceinline__ void clear_queries() const {
    uint4* rest = reinterpret_cast<uint4*>(queries + rows * kStride);
#pragma unroll 1
    for (int i = threadIdx.x; i < (kRows - rows) * (kStride / 8); i += 32 * kDecodeWarps) {
      rest[i] = make_uint4(0, 0, 0, 0);
    }
  }

  // Values beyond the new ones: their weights are 0, but 0 * NaN is NaN.
  __device__ __forceinline__ void clear_values() const {
    if (count == rows) return;
    uint4* rest = reinterpret_cast<uint4*>(values + s.tokens * kStride);
#pragma unroll 1
    for (int i = threadIdx.x; i < (kDecodeKeys - s.tokens) * (kStride / 8); i += 32 * kDecodeWarps) {
      rest[i] = make_uint4(0, 0, 0, 0);
    }
  }
};

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
__device__ __forceinline__ void accumulate(State<D, kTiles>& state, const half* values,
                                           const uint32 (&weights)[kTiles][2], int lane) {
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

// Output gate of eight columns of one row; ones where there is none.
template <int D>
__device__ __forceinline__ Eight load_gate(const AttentionParams& p, const Sequence& s, int h, int row, int column) {
  if (!p.gate) return Eight{};
  return load_qkv<D>(p, s.begin + token_of(p, row), p.heads + head_of(p, h, row), column / 8);
}

// y of eight columns of one row.
template <int D>
__device__ __forceinline__ void write_output(const AttentionParams& p, const Sequence& s, int h, int row, int column,
                                             const Eight& gate, float (&o)[8]) {
  const int token = s.begin + token_of(p, row), head = head_of(p, h, row);
  if (p.gate) {
    float g[8];
    unpack(gate, g);
#pragma unroll
    for (int i = 0; i < 8; ++i) o[i] *= sigmoid(g[i]);
  }
  *reinterpret_cast<Eight*>(static_cast<half*>(p.y) + (size_t(token) * p.heads + head) * D + column) = pack(o);
}

// Each split's part of a row's result, to shared memory: one warp per row, one lane per split.
template <int D, int kRows>
__device__ __forceinline__ void weigh_splits(const Partials<D, kRows>& partials, int rows, int active, float* weights) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int r = threadIdx.x / 32; r < rows; r += kDecodeWarps) {
    float2 scale[kMaxSplits / 32];
    float most = kFloor, sum = 0.f;
#pragma unroll
    for (int i = 0; i < kMaxSplits / 32; ++i) {
      scale[i] = make_float2(kFloor, 0.f);
      if (lane + 32 * i < active) scale[i] = __ldcg(partials.scale(lane + 32 * i, r));
    }
#pragma unroll
    for (int i = 0; i < kMaxSplits / 32; ++i) most = fmaxf(most, scale[i].x);
#pragma unroll
    for (int step = 16; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, step));
#pragma unroll
    for (int i = 0; i < kMaxSplits / 32; ++i) sum += scale[i].y *= exp2_approx(scale[i].x - most);
#pragma unroll
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    const float inverse = 1.f / sum;
#pragma unroll
    for (int i = 0; i < kMaxSplits / 32; ++i) {
      if (lane + 32 * i < active) weights[r * kMaxSplits + lane + 32 * i] = scale[i].y * inverse;
    }
  }
}

// The last block of a unit adds up what all its splits left, always in the same order. Where there are more threads
// than columns of eight, `parts` of them share the splits of a column. Whatever can be asked for before the weights are
// known is asked for before.
template <int D, int kRows>
__device__ __forceinline__ void reduce_splits(const AttentionParams& p, const Sequence& s, int h, int first_row,
                                              int rows, const Partials<D, kRows>& partials, int active, float* shared) {
  constexpr int kThreads = 32 * kDecodeWarps, kBatch = 16;
  float* const weights = shared;                    // [rows, kMaxSplits]
  float* const sums = shared + kRows * kMaxSplits;  // [parts, columns, 8]
  const int columns = rows * D / 8;
  int parts = 1, part = 0, i = threadIdx.x;
  while ((parts + 1) * columns <= kThreads) ++parts;
  while (part < parts && i >= columns && parts > 1) i -= columns, ++part;
  uint4 batch[kBatch];
  Eight gate{};
  const auto load_batch = [&](int base) {
    const int r = i / (D / 8), column = i % (D / 8) * 8;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const int split = base + j * parts;
      batch[j] = make_uint4(0, 0, 0, 0);
      if (split < active) batch[j] = __ldcg(reinterpret_cast<const uint4*>(partials.sum(split, r, column)));
    }
  };
  const bool takes_part = part < parts && i < columns;
  if (takes_part) {
    load_batch(part);
    gate = load_gate<D>(p, s, h, first_row + i / (D / 8), i % (D / 8) * 8);
  }
  weigh_splits<D, kRows>(partials, rows, active, weights);
  __syncthreads();
  float o[8];
#pragma unroll 1
  while (takes_part && i < columns) {
    const int r = i / (D / 8), column = i % (D / 8) * 8;
#pragma unroll
    for (int c = 0; c < 8; ++c) o[c] = 0.f;
#pragma unroll 1
    for (int base = part; base < active; base += kBatch * parts) {
      if (base != part) load_batch(base);
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int split = base + j * parts;
        if (split >= active) break;
        float x[8];
        unpack(*reinterpret_cast<const Eight*>(&batch[j]), x);
#pragma unroll
        for (int c = 0; c < 8; ++c) o[c] += weights[r * kMaxSplits + split] * x[c];
      }
    }
    if (parts > 1) break;
    write_output<D>(p, s, h, first_row + r, column, gate, o);
    i += kThreads;
    if (i < columns) {
      load_batch(part);
      gate = load_gate<D>(p, s, h, first_row + i / (D / 8), i % (D / 8) * 8);
    }
  }
  if (parts == 1) return;
  if (takes_part && part > 0) {
#pragma unroll
    for (int c = 0; c < 8; ++c) sums[(part * columns + i) * 8 + c] = o[c];
  }
  __syncthreads();
  if (part > 0) return;
#pragma unroll 1
  for (int other = 1; other < parts; ++other) {
#pragma unroll
    for (int c = 0; c < 8; ++c) o[c] += sums[(other * columns + i) * 8 + c];
  }
  write_output<D>(p, s, h, first_row + i / (D / 8), i % (D / 8) * 8, gate, o);
}

// Counts a block of a unit; true for the last one, which then sees what all others wrote.
__device__ __forceinline__ bool is_last_block(int* counter, int blocks) {
  __shared__ bool is_last;
  __syncthreads();
  if (threadIdx.x == 0) {
    int before;
    asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;\n" : "=r"(before) : "l"(counter) : "memory");
    is_last = before == blocks - 1;
    if (is_last) *counter = 0;
  }
  __syncthreads();
  return is_last;
}

// The warps' states to one, then to y if this block was alone, else to p.partials.
template <int D, int kTiles>
__device__ __forceinline__ void finish(const AttentionParams& p, const Sequence& s, const Share& share, int h,
                                       int first_row, int rows, State<D, kTiles>& state, float* sums) {
  constexpr int kRows = 8 * kTiles, kSumStride = D + 4, kThreads = 32 * kDecodeWarps;
  __shared__ float maxima[kDecodeWarps][kRows], denominators[kDecodeWarps][kRows];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool is_alone = share.active == 1;
  const auto gate_of = [&](int i) {
    return is_alone && i < rows * D / 8 ? load_gate<D>(p, s, h, first_row + i / (D / 8), i % (D / 8) * 8) : Eight{};
  };
  Eight gate = gate_of(threadIdx.x);  // on its way while the warps meet
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
  const Partials<D, kRows> partials(p, unit);
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * D / 8; i += kThreads) {
    const int r = i / (D / 8), column = i % (D / 8) * 8;
    float m = kFloor, l = 0.f, o[8] = {};
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) m = fmaxf(m, maxima[w][r]);
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      const float weight = exp2_approx(maxima[w][r] - m);
      const float* x = sums + (w * kRows + r) * kSumStride + column;
      l += weight * denominators[w][r];
#pragma unroll
      for (int c = 0; c < 8; ++c) o[c] += weight * x[c];
    }
    const float inverse = l > 0.f ? 1.f / l : 0.f;  // a split of a window may hold no key that this row sees
#pragma unroll
    for (int c = 0; c < 8; ++c) o[c] *= inverse;
    if (is_alone) {
      write_output<D>(p, s, h, first_row + r, column, gate, o);
      gate = gate_of(i + kThreads);
    } else {
      const Eight rounded = pack(o);
      __stcg(reinterpret_cast<uint4*>(partials.sum(blockIdx.x, r, column)), *reinterpret_cast<const uint4*>(&rounded));
      if (column == 0) __stcg(partials.scale(blockIdx.x, r), make_float2(m, l));
    }
  }
  if (is_alone) return;
  if (is_last_block(p.counters + unit, share.active)) {
    reduce_splits<D, kRows>(p, s, h, first_row, rows, partials, share.active, sums);
  }
}

// Grid: splits, KV heads * row tiles, sequences.
template <int D, int kTiles, bool kInt8>
__device__ __forceinline__ void decode(const AttentionParams& p) {
  constexpr int kRows = 8 * kTiles, kTile = decode_tile_bytes(D) / 2, kStages = decode_stages(D);
  constexpr int kHalfStage = decode_stage_bytes(D, kInt8) / 2, kRing = decode_ring_bytes(D, kInt8);
  static_assert(kRows * (D + 4) * 4 <= kRing, "the sums of all warps take the place of the rings");
  static_assert(kRows * kMaxSplits * 4 + 32 * kDecodeWarps * 32 <= kDecodeWarps * kRing, "and so does the reduction");
  extern __shared__ __align__(128) char shared[];
  const bool is_whole = p.row_tiles == 1;
  const int b = blockIdx.z, h = is_whole ? blockIdx.y : blockIdx.y / p.row_tiles;
  const int first_row = is_whole ? 0 : (blockIdx.y - h * p.row_tiles) * kRows;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (!p.is_settled) wait_for_previous();
  const Sequence s = read_part(p, b);
  const int end_of_all = p.cu_seqlens[p.sequences];
  const auto zero_padding = [&] {
    if (blockIdx.x == 0 && first_row == 0) write_zeros<D>(p, s, b, h, end_of_all);
  };
  const int rows = min(kRows, s.tokens * p.group - first_row);
  if (!s.is_live || rows <= 0) {
    begin_in_turn();
    zero_padding();
    return;
  }
  const int first_token = token_of(p, first_row), last_token = token_of(p, first_row + rows - 1);
  const Share share = share_of<D>(p, s, first_token, blockIdx.x, gridDim.x);
  if (int(blockIdx.x) >= share.active) {
    begin_in_turn();
    return;
  }

  char* ring = shared + warp * kRing;
  half* const unpacked = reinterpret_cast<half*>(ring + kStages * 2 * kHalfStage);  // int8: K, then V
  half* const new_keys = reinterpret_cast<half*>(shared + kDecodeWarps * kRing);
  half* const new_values = new_keys + kTile;
  half* const queries = new_values + kTile;
  const CacheHead keys = cache_head<D, kInt8>(p, s.slot, false, h), values = cache_head<D, kInt8>(p, s.slot, true, h);

  // Tile i of this warp; K and V are groups of their own, also when there is nothing left to fetch.
  const int first = share.first_tile + warp,
            tiles = max(0, (share.last_tile - first + kDecodeWarps - 1) / kDecodeWarps);
  const auto fetch_half = [&](int i, bool is_value) {
    if (i < tiles) {
      const int position = share.oldest + (first + i * kDecodeWarps) * kDecodeKeys;
      fetch<D, kInt8, kDecodeKeys, 32>(is_value ? values : keys, ring + (i % kStages * 2 + is_value) * kHalfStage,
                                       position, cache_row(position, p.capacity), share.oldest, s.past, p.capacity,
                                       lane);
    }
    cp_async_commit();
  };

  // The first rows are on their way before the rings fill the queue to memory; who starts early has time for the rings
  // before there are rows.
  const int count = rows + (share.has_new ? 2 * s.tokens : 0);
  const Rows<D, kRows, kInt8> made{p, s, h, first_row, rows, count, queries, new_keys, new_values};
  RowTask task = made.task(made.group);
  RowInput in;
  if (!kStartsEarly) in = load_row<D>(p, s, task, made.chunk);
#pragma unroll
  for (int i = 0; i < kStages; ++i) fetch_half(i, false), fetch_half(i, true);
  begin_in_turn();
  if (kStartsEarly) in = load_row<D>(p, s, task, made.chunk);
  zero_padding();
  made.clear_queries();
  made.clear_values();
#pragma unroll 1
  for (int base = 0; base < count; base += made.kGroups) {
    const int i = base + made.group;
    if (base) task = made.task(i), in = load_row<D>(p, s, task, made.chunk);
    made.store(i, in, task);
  }
  __syncthreads();

  State<D, kTiles> state{};
  Sight<kTiles> sight{{}, share.oldest, p.window};
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      state.m[t][c] = kFloor;
      sight.last[t][c] = s.past + token_of(p, first_row + 8 * t + lane % 4 * 2 + c);
    }
  }
  const int newest_low = p.window ? s.past + last_token - p.window + 1 : 0;

  // The new keys go to the warp whose turn it would be.
  const bool is_owner = share.has_new && (share.last_tile - share.first_tile) % kDecodeWarps == warp;
#pragma unroll 1
  for (int i = 0; i < tiles + is_owner; ++i) {
    const bool is_new = i == tiles;
    const int position = is_new ? s.past : share.oldest + (first + i * kDecodeWarps) * kDecodeKeys;
    const char* stage = ring + i % kStages * 2 * kHalfStage;
    const half* k = is_new ? new_keys : kInt8 ? unpacked : reinterpret_cast<const half*>(stage);
    const half* v = is_new ? new_values : kInt8 ? unpacked : reinterpret_cast<const half*>(stage + kHalfStage);
    cp_async_wait<2 * kStages - 1>();
    __syncwarp();
    if (kInt8 && !is_new) {
      dequantise<D, kDecodeKeys, 32>(stage, unpacked, lane);
      __syncwarp();
    }
    float x[kTiles][4];
    scores<D, kTiles>(k, queries, lane, x);
    __syncwarp();
    fetch_half(i + kStages, false);
    if (p.softcap_scale != 0.f) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int c = 0; c < 4; ++c) x[t][c] = tanh_by_exp2(x[t][c] * p.softcap_scale);
      }
    }
    const int end = is_new ? s.length : s.past;
    if (position + kDecodeKeys > min(end, s.past + first_token) || position < max(share.oldest, newest_low)) {
      sight.mask(x, position, end);
    }
    uint32 weights[kTiles][2];
    soften<D, kTiles>(state, x, p.score_scale, weights);
    cp_async_wait<2 * kStages - 1>();
    __syncwarp();
    if (kInt8 && !is_new) {
      dequantise<D, kDecodeKeys, 32>(stage + kHalfStage, unpacked, lane);
      __syncwarp();
    }
    accumulate<D, kTiles>(state, v, weights, lane);
    __syncwarp();
    fetch_half(i + kStages, true);
  }
  cp_async_wait<0>();
  __syncthreads();
  finish<D, kTiles>(p, s, share, h, first_row, rows, state, reinterpret_cast<float*>(shared));
}

}  // namespace

#define DECODE(D, TILES, CACHE, INT8)                                \
  extern "C" __global__ void __launch_bounds__(32 * kDecodeWarps, 1) \
      attention_decode_##D##_##TILES##_##CACHE(AttentionParams p) {  \
    decode<D, TILES, INT8>(p);                                       \
  }
#define DECODE_ALL(D) \
  DECODE(D, 1, float16, false) DECODE(D, 2, float16, false) DECODE(D, 1, int8, true) DECODE(D, 2, int8, true)

DECODE_ALL(64)
DECODE_ALL(96)
DECODE_ALL(128)
DECODE_ALL(256)
