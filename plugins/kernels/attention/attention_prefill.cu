// SPDX-License-Identifier: Apache-2.0
// OrinAttention for steps of many tokens per sequence, in two launches: append the new keys and values to the cache,
// then flash attention over the cache.
//
// A block takes 64 or 128 query rows of one KV head; row = token * group + head in group, so that all query heads of a
// KV head share its keys and a tile covers few positions (little work is lost at the causal edge). Norm and rotary of
// the queries happen while they are brought to shared memory. Four or eight warps have 16 or 32 rows each and walk
// together through tiles of keys:
//
//   S [rows, keys] = Q [rows, D] K^T      A = Q by ldmatrix, B = K by ldmatrix
//   O [rows, D]   += P [rows, keys] V     A = P from S's accumulators, B = V by ldmatrix.trans
//
// 32 rows per warp halve the shared memory traffic per mma, which is what limits this loop; with D = 256 the
// accumulators of 32 rows do not fit the registers. K and V have one buffer each: V travels under S, the next K under
// softmax and O; a second block, or four more warps, on the multiprocessor fill what remains.
#include "kernels/attention/attention.cuh"

using namespace orin;

namespace {

constexpr int kAppendThreads = 128;

// The sequence that a token belongs to; `sequences` if none.
__device__ __forceinline__ int sequence_of(const AttentionParams& p, int token) {
  if (token >= p.cu_seqlens[p.sequences]) return p.sequences;
  int low = 0, high = p.sequences;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (p.cu_seqlens[middle] <= token ? low : high) = middle;
  }
  return low;
}

// One block per token: its keys and values to the cache, or zeros to y if it is padding.
template <int D, bool kInt8>
__device__ __forceinline__ void append(const AttentionParams& p) {
  begin_in_turn();
  using Group = RowGroup<D>;
  const int token = blockIdx.x, b = sequence_of(p, token);
  const Sequence s = b < p.sequences ? read_sequence(p, b) : Sequence{};
  if (!s.is_live) {
    uint4* y = reinterpret_cast<uint4*>(static_cast<half*>(p.y) + size_t(token) * p.heads * D);
    for (int i = threadIdx.x; i < p.heads * D / 8; i += kAppendThreads) y[i] = make_uint4(0, 0, 0, 0);
    return;
  }
  constexpr int kGroups = kAppendThreads / Group::kGroup;
  for (int base = 0; base < 2 * p.kv_heads; base += kGroups) {
    const int head = base + threadIdx.x / Group::kGroup, chunk = threadIdx.x % Group::kGroup;
    const bool is_value = head % 2, exists = head < 2 * p.kv_heads;
    RowTask task = new_task(p, s, exists ? head / 2 : 0, is_value, token - s.begin);
    task.exists = exists;
    float x[8];
    norm_and_rotate<D>(p, task, load_row<D>(p, s, task, chunk), chunk, x);
    append_row<D, kInt8>(p, s, exists ? head / 2 : 0, is_value, task.token, exists, chunk, x);
  }
}

// What a block does: rows from `first_row` on of a sequence and KV head.
struct Work {
  Sequence s;
  int kv_head;
  int first_row;
  int first_seen;  // position of the first row's own key, which all rows see unless a window ends before it
  int last_seen;   // and of the last row's
  bool exists;
};

// Tiles of all sequences in a row; a warp looks at 32 sequences at a time.
__device__ __forceinline__ Work find_work(const AttentionParams& p, int rows) {
  const int lane = threadIdx.x % 32;
  const auto tiles_through = [&](int base) {  // of sequences base .. base + lane
    int tiles = 0;
    if (base + lane < p.sequences) {
      const Sequence s = read_sequence(p, base + lane);
      if (s.is_live) tiles = (s.tokens * p.group + rows - 1) / rows;
    }
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(kAllLanes, tiles, step);
      if (lane >= step) tiles += before;
    }
    return tiles;
  };
  int total = 0;
  for (int base = 0; base < p.sequences; base += 32) {
    total += __shfl_sync(kAllLanes, tiles_through(base), 31);
  }
  total *= p.kv_heads;
  Work work{};
  const int block = blockIdx.x;
  if (block >= total) return work;
  const int unit = block < p.descending ? total - 1 - block : block - p.descending;
  int tile = unit / p.kv_heads;
  for (int base = 0; base < p.sequences; base += 32) {
    const int through = tiles_through(base), here = __shfl_sync(kAllLanes, through, 31);
    if (tile < here) {
      const int at = __ffs(__ballot_sync(kAllLanes, through > tile)) - 1;
      const int before = __shfl_sync(kAllLanes, through, max(0, at - 1));
      work.s = read_sequence(p, base + at);
      work.first_row = (tile - (at ? before : 0)) * rows;
      break;
    }
    tile -= here;
  }
  work.kv_head = unit % p.kv_heads;
  work.first_seen = work.s.past + token_of(p, work.first_row);
  work.last_seen = work.s.past + min(work.s.tokens - 1, token_of(p, work.first_row + rows - 1));
  work.exists = true;
  return work;
}

template <int D, int kBlockWarps, int kTileKeys>
struct Tile {
  static constexpr int kDim = D;
  static constexpr int kKeys = kTileKeys;
  static constexpr int kThreads = 32 * kBlockWarps;
  static constexpr int kStride = D + kPadding;
  static constexpr int kWarpRows = prefill_warp_rows(D);
  static constexpr int kRows = kBlockWarps * kWarpRows;
  static constexpr int kM = kWarpRows / 16;  // mma tiles over rows
  static constexpr int kN = kKeys / 8;       // over keys
};

// Lane l holds rows l/4 and l/4 + 8 of each 16; columns 2(l%4), 2(l%4)+1 of each 8.
template <class T>
struct State {
  float o[T::kM][T::kDim / 8][4];
  float m[T::kM][2];  // exponents of 2
  float l[T::kM][2];  // of the keys of this lane alone until the end
};

// The warp's queries to shared memory; only the same warp reads them.
template <class T>
__device__ __forceinline__ void load_queries(const AttentionParams& p, const Work& work, half* queries, int warp_row) {
  using Group = RowGroup<T::kDim>;
  const int lane = threadIdx.x % 32, chunk = lane % Group::kGroup;
#pragma unroll 4
  for (int i = 0; i < T::kWarpRows; i += Group::kRowsPerWarp) {
    const int r = warp_row + i + lane / Group::kGroup;
    const RowTask task = query_task(p, work.s, work.kv_head, work.first_row + r);
    float x[8];
    norm_and_rotate<T::kDim>(p, task, load_row<T::kDim>(p, work.s, task, chunk), chunk, x);
    if (chunk < Group::kUsed) *reinterpret_cast<Eight*>(queries + r * T::kStride + 8 * chunk) = pack(x);
  }
}

template <class T>
__device__ __forceinline__ void scores(const half* queries, const half* keys, int lane, float (&s)[T::kM][T::kN][4]) {
  const half* query = queries + lane % 16 * T::kStride + lane / 16 * 8;
  const half* key = keys + (lane % 8 + lane / 16 * 8) * T::kStride + lane / 8 % 2 * 8;
#pragma unroll
  for (int m = 0; m < T::kM; ++m) {
#pragma unroll
    for (int n = 0; n < T::kN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[m][n][i] = 0.f;
    }
  }
#pragma unroll
  for (int d = 0; d < T::kDim; d += 16) {
    uint32 a[T::kM][4];
#pragma unroll
    for (int m = 0; m < T::kM; ++m) ldmatrix_x4(a[m], query + m * 16 * T::kStride + d);
#pragma unroll
    for (int n = 0; n < T::kN; n += 2) {
      uint32 k[4];
      ldmatrix_x4(k, key + n * 8 * T::kStride + d);
      const uint32 b[2][2] = {{k[0], k[1]}, {k[2], k[3]}};
#pragma unroll
      for (int m = 0; m < T::kM; ++m) {
        mma(s[m][n], a[m], b[0]);
        mma(s[m][n + 1], a[m], b[1]);
      }
    }
  }
}

// Scores to weights in place, sums faded with them. The maximum is only raised when it falls behind by more than 8:
// until then 2^(s - m) stays below 2^8, which float16 holds as exactly as it holds 1.
template <class T>
__device__ __forceinline__ void soften(State<T>& state, float (&s)[T::kM][T::kN][4], float factor) {
  float top[T::kM][2];
  bool is_behind = false;
#pragma unroll
  for (int m = 0; m < T::kM; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float most = minus_infinity();
#pragma unroll
      for (int n = 0; n < T::kN; ++n) most = fmaxf(most, fmaxf(s[m][n][2 * i], s[m][n][2 * i + 1]));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
      top[m][i] = most * factor;
      is_behind |= top[m][i] > state.m[m][i] + 8.f;
    }
  }
  if (__any_sync(kAllLanes, is_behind)) {
#pragma unroll
    for (int m = 0; m < T::kM; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float most = fmaxf(state.m[m][i], top[m][i]), fade = exp2_approx(state.m[m][i] - most);
        state.m[m][i] = most;
        state.l[m][i] *= fade;
#pragma unroll
        for (int n = 0; n < T::kDim / 8; ++n) state.o[m][n][2 * i] *= fade, state.o[m][n][2 * i + 1] *= fade;
      }
    }
  }
#pragma unroll
  for (int m = 0; m < T::kM; ++m) {
#pragma unroll
    for (int n = 0; n < T::kN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[m][n][i] = exp2_approx(s[m][n][i] * factor - state.m[m][i / 2]);
        state.l[m][i / 2] += s[m][n][i];
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void accumulate(State<T>& state, const half* values, int lane,
                                           const float (&s)[T::kM][T::kN][4]) {
  const half* value = values + lane % 16 * T::kStride + lane / 16 * 8;
#pragma unroll
  for (int k = 0; k < T::kKeys / 16; ++k) {
    uint32 a[T::kM][4];
#pragma unroll
    for (int m = 0; m < T::kM; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[m][i] = pack_half2(s[m][2 * k + i / 2][i % 2 * 2], s[m][2 * k + i / 2][i % 2 * 2 + 1]);
      }
    }
#pragma unroll
    for (int n = 0; n < T::kDim / 8; n += 2) {
      uint32 v[4];
      ldmatrix_x4_trans(v, value + k * 16 * T::kStride + n * 8);
      const uint32 b[2][2] = {{v[0], v[1]}, {v[2], v[3]}};
#pragma unroll
      for (int m = 0; m < T::kM; ++m) {
        mma(state.o[m][n], a[m], b[0]);
        mma(state.o[m][n + 1], a[m], b[1]);
      }
    }
  }
}

// Normalised, gated, and through shared memory so that rows leave in 16-byte pieces.
template <class T>
__device__ __forceinline__ void write_output(const AttentionParams& p, const Work& work, State<T>& state, half* rows,
                                             int warp_row) {
  using Group = RowGroup<T::kDim>;
  const int lane = threadIdx.x % 32, chunk = lane % Group::kGroup;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < T::kM; ++m) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float l = state.l[m][i];
      l += __shfl_xor_sync(kAllLanes, l, 1);
      l += __shfl_xor_sync(kAllLanes, l, 2);
      const float inverse = 1.f / l;
      half* row = rows + (warp_row + 16 * m + 8 * i + lane / 4) * T::kStride + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < T::kDim / 8; ++n) {
        *reinterpret_cast<half2*>(row + 8 * n) =
            __floats2half2_rn(state.o[m][n][2 * i] * inverse, state.o[m][n][2 * i + 1] * inverse);
      }
    }
  }
  __syncwarp();
  if (chunk >= Group::kUsed) return;
#pragma unroll 2
  for (int i = 0; i < T::kWarpRows; i += Group::kRowsPerWarp) {
    const int r = warp_row + i + lane / Group::kGroup, row = work.first_row + r;
    if (row >= work.s.tokens * p.group) return;
    const int token = work.s.begin + token_of(p, row), head = head_of(p, work.kv_head, row);
    Eight out = *reinterpret_cast<const Eight*>(rows + r * T::kStride + 8 * chunk);
    if (p.gate) {
      float x[8], gate[8];
      unpack(out, x);
      unpack(load_qkv<T::kDim>(p, token, p.heads + head, chunk), gate);
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] *= sigmoid(gate[j]);
      out = pack(x);
    }
    *reinterpret_cast<Eight*>(static_cast<half*>(p.y) + (size_t(token) * p.heads + head) * T::kDim + 8 * chunk) = out;
  }
}

// Grid: KV heads * tiles that the step may have.
template <int D, int kWarps, int kKeys, bool kInt8>
__device__ __forceinline__ void prefill(const AttentionParams& p) {
  begin_in_turn();
  using T = Tile<D, kWarps, kKeys>;
  extern __shared__ __align__(128) char shared[];
  // Registers are short: what a tile of keys needs only once waits in shared memory.
  __shared__ Work work;
  __shared__ CacheHead caches[2];
  const Work found = find_work(p, T::kRows);
  if (!found.exists) return;
  if (threadIdx.x == 0) work = found;
  if (threadIdx.x < 2) caches[threadIdx.x] = cache_head<D, kInt8>(p, found.s.slot, threadIdx.x, found.kv_head);
  __syncthreads();
  const Sequence& s = work.s;
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * T::kWarpRows;
  half* const queries = reinterpret_cast<half*>(shared);
  half* const keys = queries + T::kRows * T::kStride;
  half* const values = keys + kKeys * T::kStride;
  // What is fetched: the tiles themselves, or their int8 form behind them.
  char* const fetched_keys = reinterpret_cast<char*>(kInt8 ? values + kKeys * T::kStride : keys);
  char* const fetched_values = kInt8 ? fetched_keys + kKeys * (D + 4) : reinterpret_cast<char*>(values);

  const auto fetch_tile = [&](bool is_value, char* to, int position) {
    fetch<D, kInt8, kKeys, T::kThreads>(caches[is_value], to, position, cache_row(position, p.capacity), s.oldest,
                                        s.length, p.capacity, threadIdx.x);
    cp_async_commit();
  };

  const int oldest = p.window ? max(s.oldest, work.first_seen - p.window + 1) : s.oldest;
  int position = oldest / kKeys * kKeys;
  fetch_tile(false, fetched_keys, position);
  load_queries<T>(p, work, queries, warp_row);
  State<T> state{};
#pragma unroll
  for (int m = 0; m < T::kM; ++m) state.m[m][0] = state.m[m][1] = kFloor;

  for (; position <= work.last_seen; position += kKeys) {
    cp_async_wait<0>();
    __syncthreads();  // the keys are there, and everybody is done with the values
    fetch_tile(true, fetched_values, position);
    if (kInt8) {
      dequantise<D, kKeys, T::kThreads>(fetched_keys, keys, threadIdx.x);
      __syncthreads();
    }
    float x[T::kM][T::kN][4];
    scores<T>(queries + warp_row * T::kStride, keys, lane, x);
    if (p.softcap_scale != 0.f) {
#pragma unroll
      for (int m = 0; m < T::kM; ++m) {
#pragma unroll
        for (int n = 0; n < T::kN; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) x[m][n][i] = tanh_by_exp2(x[m][n][i] * p.softcap_scale);
        }
      }
    }
    const bool is_edge = position + kKeys > work.first_seen + 1 || position < s.oldest ||
                         (p.window && position < work.last_seen - p.window + 1);
    if (is_edge) {
#pragma unroll
      for (int m = 0; m < T::kM; ++m) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int own = s.past + token_of(p, work.first_row + warp_row + 16 * m + 8 * i + lane / 4);
          const int low = p.window ? max(s.oldest, own - p.window + 1) : s.oldest;
#pragma unroll
          for (int n = 0; n < T::kN; ++n) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              const int key = position + 8 * n + lane % 4 * 2 + j;
              if (key > own || key < low) x[m][n][2 * i + j] = minus_infinity();
            }
          }
        }
      }
    }
    cp_async_wait<0>();
    __syncthreads();  // the values are there, and everybody is done with the keys
    if (position + kKeys <= work.last_seen) fetch_tile(false, fetched_keys, position + kKeys);
    if (kInt8) {
      dequantise<D, kKeys, T::kThreads>(fetched_values, values, threadIdx.x);
      __syncthreads();
    }
    soften<T>(state, x, p.score_scale);
    accumulate<T>(state, values, lane, x);
  }
  write_output<T>(p, work, state, queries, warp_row);
}

}  // namespace

#define APPEND(D)                                                                                                  \
  extern "C" __global__ void __launch_bounds__(kAppendThreads) attention_append_##D##_float16(AttentionParams p) { \
    append<D, false>(p);                                                                                           \
  }                                                                                                                \
  extern "C" __global__ void __launch_bounds__(kAppendThreads) attention_append_##D##_int8(AttentionParams p) {    \
    append<D, true>(p);                                                                                            \
  }
// Registers for 8 warps on a multiprocessor, in one block or two.
#define PREFILL(D, WARPS, KEYS, CACHE, INT8)                                  \
  extern "C" __global__ void __launch_bounds__(32 * WARPS, 8 / WARPS)         \
      attention_prefill_##D##_##WARPS##_##KEYS##_##CACHE(AttentionParams p) { \
    prefill<D, WARPS, KEYS, INT8>(p);                                         \
  }

APPEND(64)
APPEND(96)
APPEND(128)
APPEND(256)
PREFILL(64, 4, 64, float16, false)
PREFILL(96, 4, 64, float16, false)
PREFILL(128, 4, 64, float16, false)
PREFILL(256, 4, 64, float16, false)
PREFILL(256, 8, 64, float16, false)
PREFILL(64, 4, 32, int8, true)
PREFILL(96, 4, 32, int8, true)
PREFILL(128, 4, 32, int8, true)
PREFILL(256, 8, 32, int8, true)
