// SPDX-License-Identifier: Apache-2.0
// From logits to tokens, as runtime/sampling.py does it, in two kernels of (parts, rows) blocks; a part is 2,048
// tokens.
//
//   sampling_survey  one pass over the logits: bad values, log-sum-exp, the best score. The last block of a row to
//   finish
//                    puts the parts together and, for a greedy row, has the token.
//   sampling_draw    rows with a temperature only: a second pass (over the L2 cache) draws a Gumbel number for each
//   token
//                    and sorts the tokens into bins by score; the last block of the row finds out which bins top-k and
//                    top-p keep.
//
// Nothing is sorted. Of every bin three things are known: how many tokens it holds, their mass, and the one whose score
// plus Gumbel number is highest (the bin's best). The token is the best of the bests of the bins that are kept:
//
//   bin     0    1    2    3    4  ...  1022   1023      bin = (best score - score) / temperature * 36.5
//          |kept|kept|kept| ?  |dropped ...        |      1023 takes all that lie 28 or more below
//
// At most one bin, the boundary, is kept in part. Mostly nothing hangs on it: it holds one token, or its best does not
// win. Otherwise the row's last block alone reads the parts that have tokens in it again and splits it into 1,024 bins
// of exact ordering keys, until one token is left.
//
// Numbers. A score is a sum of two float32 (48 bits), a 16th of the reference's, so that penalties cannot overflow.
// Masses are integers, exp * 2^40, so that sums do not depend on their order and the token is the same in every run.
// They differ from the float64 reference's by less than 1e-6 of the whole: a token that top-p keeps or drops by less
// than that may be decided otherwise, and so may two tokens whose score plus Gumbel number differ by less than 4e-6. A
// token 28 below the best cannot win, as Gumbel numbers of 32 bits lie between -3.2 and 22.9.
#include "common/ptx.cuh"
#include "kernels/sampling/params.h"

using namespace orin;

namespace {

constexpr int kThreads = kSamplingThreads, kPart = kSamplingPart;
constexpr int kWarps = kThreads / 32, kValues = kPart / kThreads;
constexpr float kBinsPerUnit = 36.5f;
constexpr int kNoBad = 0x7fffffff;
constexpr uint64 kAll = ~0ull;

// ---- numbers

// An unsigned integer that orders as the float does.
__device__ __forceinline__ uint32 ordered(float value) {
  const uint32 bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float unordered(uint32 key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Higher value first, then lower id; 0 is below every key.
__device__ __forceinline__ uint64 best_first(float value, int id) { return uint64(ordered(value)) << 32 | uint32(~id); }
__device__ __forceinline__ int id_of(uint64 key) { return int(~uint32(key)); }

struct Score {
  float high, low;
};

// 64 bits, different for every token: higher score first, then lower id.
//   63      32 31        20 19      0
//   | high    | low / ulp  | ~id    |
__device__ __forceinline__ uint64 ordering_key(Score s, int id) {
  uint32 low = 2048;
  const float ulp = __uint_as_float(__float_as_uint(s.high) & 0x7f800000u) * 1.1920929e-7f;
  if (s.low != 0.0f && ulp > 0.0f) low = uint32(fminf(fmaxf((s.low / ulp + 0.5f) * 4096.0f, 0.0f), 4095.0f));
  return uint64(ordered(s.high)) << 32 | low << 20 | uint32(kMostVocab - 1 - id);
}

// First word of Philox4x32-10 of counter (id, position, 0, 0); constants of Salmon et al., SC 2011.
__device__ __forceinline__ uint32 philox(uint32 id, uint32 position, uint64 seed) {
  uint32 c0 = id, c1 = position, c2 = 0, c3 = 0, k0 = uint32(seed), k1 = uint32(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32 high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32 high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return c0;
}

// -log(-log(u)), u = (word + 0.5) / 2^32. Near u = 1, log(u) is taken from 1 - u, which float32 holds exactly enough.
__device__ __forceinline__ float gumbel(uint32 word) {
  constexpr float kUnit = 2.3283064e-10f;  // 2^-32
  const bool is_high = word >> 31;
  const float u = (__uint2float_rn(is_high ? ~word : word) + 0.5f) * kUnit;
  return -logf(is_high ? -log1pf(-u) : -logf(u));
}

// ---- warps and blocks

__device__ __forceinline__ float warp_max(float v) { return unordered(__reduce_max_sync(~0u, ordered(v))); }

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int step = 16; step; step /= 2) v += __shfl_xor_sync(~0u, v, step);
  return v;
}

__device__ __forceinline__ uint64 warp_max(uint64 v) {
  const uint32 high = __reduce_max_sync(~0u, uint32(v >> 32));
  const uint32 low = __reduce_max_sync(~0u, uint32(v >> 32) == high ? uint32(v) : 0u);
  return uint64(high) << 32 | low;
}

// The largest value of the block, in every thread. Two calls in a row need two buffers.
__device__ __forceinline__ uint64 block_max(uint64 v, uint64 (&shared)[kWarps]) {
  v = warp_max(v);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  return warp_max(shared[threadIdx.x % kWarps]);
}

__device__ __forceinline__ Survey nothing() {
  return {__int_as_float(0xff800000), 0.0f, kNoBad, __int_as_float(0xff800000), 0.0f, kNoBad};
}

// The surveys of 32 lanes as one, in every lane.
__device__ __forceinline__ Survey warp_merge(Survey s) {
  Survey out;
  out.raw_max = warp_max(s.raw_max);
  out.raw_sum = warp_sum(s.raw_max == out.raw_max ? s.raw_sum : s.raw_sum * expf(s.raw_max - out.raw_max));
  out.bad = __reduce_min_sync(~0u, s.bad);
  const uint32 high = __reduce_max_sync(~0u, ordered(s.high));
  const bool is_high = ordered(s.high) == high;
  const uint32 low = __reduce_max_sync(~0u, is_high ? ordered(s.low) : 0u);
  out.id = __reduce_min_sync(~0u, is_high && ordered(s.low) == low ? s.id : kNoBad);
  out.high = unordered(high), out.low = unordered(low);
  return out;
}

// The surveys of a block as one, in the first warp.
__device__ __forceinline__ Survey block_merge(Survey s, Survey (&shared)[kWarps]) {
  s = warp_merge(s);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = s;
  __syncthreads();
  return warp_merge(threadIdx.x < kWarps ? shared[threadIdx.x] : nothing());
}

// Whether this block is the last of `count` to come here; then it sees what the others wrote. Leaves the counter zero.
__device__ __forceinline__ bool is_last(unsigned* counter, unsigned count) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1u) == count - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

// ---- a row of logits

struct Row {
  const SamplingParams& p;
  const int row = blockIdx.y;
  const int slot;
  int num_biases = 0;
  bool has_penalty = false, is_constrained = false;

  __device__ explicit Row(const SamplingParams& params) : p(params), slot(wanted(params, blockIdx.y)) {
    if (slot < 0) return;
    const SamplingSlot& s = p.settings[slot];
    num_biases = min(s.num_biases, p.max_biases);
    has_penalty = p.counts && (s.repetition_penalty != 1 || s.presence_penalty != 0 || s.frequency_penalty != 0);
    is_constrained = p.mask && s.is_constrained;
  }

  __device__ static int wanted(const SamplingParams& p, int row) {
    const int slot = p.slots[row];
    return p.logit_rows && p.logit_rows[row] < 0 ? -1 : slot;
  }

  // The biases of a part's tokens in shared memory; to be called by the whole block.
  __device__ __forceinline__ void load_biases(int part, double (&biases)[kPart]) const {
    if (num_biases == 0) return;
    __syncthreads();
    for (int i = threadIdx.x; i < kPart; i += kThreads) biases[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < num_biases; i += kThreads) {
      const int place = p.bias_ids[size_t(slot) * p.max_biases + i] - part * kPart;
      if (place >= 0 && place < kPart) biases[place] = p.bias_values[size_t(slot) * p.max_biases + i];
    }
    __syncthreads();
  }

  __device__ __forceinline__ void load(int part, float (&raw)[kValues]) const {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const int id = part * kPart + i * kThreads + threadIdx.x;
      raw[i] = id < p.vocab ? p.logits[size_t(row) * p.vocab + id] : 0.0f;
    }
  }

  __device__ __forceinline__ bool may_choose(int id) const {
    if (id >= p.vocab) return false;
    if (!is_constrained) return true;
    return p.mask[size_t(slot) * ((p.vocab + 31) / 32) + id / 32] >> (id % 32) & 1;
  }

  // Bias and penalties in float64, for the few tokens that have any.
  __device__ __forceinline__ Score score(int id, float raw, const double (&biases)[kPart]) const {
    const double bias = num_biases ? biases[id % kPart] : 0;
    const unsigned count = has_penalty ? p.counts[size_t(slot) * p.vocab + id] : 0;
    if (bias == 0 && count == 0) return {raw * 0.0625f, 0.0f};
    const SamplingSlot& s = p.settings[slot];
    double value = double(raw) + bias;
    if (count) value = value < 0 ? value * s.repetition_penalty : value / s.repetition_penalty;
    const unsigned in_output = count & 0x7fffu;
    if (in_output) value -= s.presence_penalty + s.frequency_penalty * in_output;
    value *= 0.0625;
    const float high = float(value);
    return {high, float(value - high)};
  }

  __device__ __forceinline__ void answer(int token, float logprob, int error) const {
    p.tokens[row] = token, p.logprobs[row] = logprob, p.errors[row] = error;
  }
};

__device__ __forceinline__ Survey survey(const Row& row, const float (&raw)[kValues], const double (&biases)[kPart]) {
  Survey mine = nothing();
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const int id = blockIdx.x * kPart + i * kThreads + threadIdx.x;
    if (id >= row.p.vocab) continue;
    mine.raw_max = fmaxf(mine.raw_max, raw[i]);
    if (!isfinite(raw[i])) mine.bad = min(mine.bad, id);
    if (!row.may_choose(id)) continue;
    const Score s = row.score(id, raw[i], biases);
    const bool is_better = s.high > mine.high || (s.high == mine.high && s.low > mine.low) || mine.id == kNoBad;
    if (is_better) mine.high = s.high, mine.low = s.low, mine.id = id;
  }
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const int id = blockIdx.x * kPart + i * kThreads + threadIdx.x;
    if (id < row.p.vocab) mine.raw_sum += expf(raw[i] - mine.raw_max);
  }
  return mine;
}

// The part's most likely tokens, best first, for the last block: one round finds one.
__device__ void list_top(const Row& row, const float (&raw)[kValues], int count, uint64 (&shared)[2][kWarps]) {
  uint64 keys[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const int id = blockIdx.x * kPart + i * kThreads + threadIdx.x;
    keys[i] = id < row.p.vocab ? best_first(raw[i], id) : 0;
  }
  uint64* list = row.p.tops + (size_t(row.row) * row.p.parts + blockIdx.x) * row.p.max_logprobs;
  for (int round = 0; round < count; ++round) {
    uint64 mine = 0;
#pragma unroll
    for (int i = 0; i < kValues; ++i) mine = max(mine, keys[i]);
    const uint64 best = block_max(mine, shared[round % 2]);
#pragma unroll
    for (int i = 0; i < kValues; ++i) keys[i] = keys[i] == best ? 0 : keys[i];
    if (threadIdx.x == 0) list[round] = best;
  }
}

// The parts' lists merged: thread i holds the head of list i.
__device__ void merge_top(const Row& row, int count, float raw_max, float log_sum, uint64 (&shared)[2][kWarps]) {
  const SamplingParams& p = row.p;
  const bool has_list = threadIdx.x < p.parts;
  const uint64* list = p.tops + (size_t(row.row) * p.parts + threadIdx.x) * p.max_logprobs;
  int at = 0;
  for (int round = 0; round < count; ++round) {
    const uint64 mine = has_list && at < count ? __ldcg(list + at) : 0;
    const uint64 best = block_max(mine, shared[round % 2]);
    if (mine == best) ++at;
    if (threadIdx.x == 0) {
      const float value = unordered(uint32(best >> 32));
      p.top_ids[row.row * p.max_logprobs + round] = best ? id_of(best) : -1;
      p.top_logprobs[row.row * p.max_logprobs + round] = best ? value - raw_max - log_sum : 0.0f;
    }
  }
}

// ---- drawing

// How far below the best score, in units of the temperature; 0 for the best.
struct Scale {
  float high, low;  // best score
  float by, rest;   // 16 / temperature as a sum of two
  float least;      // log(min_p)
  const SamplingSlot& settings;

  __device__ Scale(const SamplingRow& state, const SamplingSlot& s) : high(state.high), low(state.low), settings(s) {
    const double whole = 16.0 / s.temperature;
    by = float(whole), rest = float(whole - by);
    least = s.min_p > 0 ? float(log(s.min_p)) : -1e30f;
  }

  __device__ __forceinline__ float operator()(Score s) const {
    const float below = (s.high - high) + (s.low - low);
    return fmaf(below, by, below * rest);
  }

  // By `high` alone, so that bins are in the order of the ordering keys.
  __device__ __forceinline__ int bin(Score s) const {
    return int(fminf((high - s.high) * by * kBinsPerUnit, float(kBins - 1)));
  }

  __device__ __forceinline__ bool passes_min_p(float z, Score s) const {
    if (fabsf(z - least) > 1e-4f) return z > least;
    const double below = (double(s.high) - high) + (double(s.low) - low);
    return below * (16.0 / settings.temperature) >= log(settings.min_p);
  }
};

struct Drawn {
  int bin;  // -1: not to be chosen
  float z;
  uint64 key;  // best_first of score plus Gumbel number; 0: cannot win
};

__device__ __forceinline__ Drawn draw(const Row& row, const Scale& scale, int id, Score s, int position) {
  Drawn out{scale.bin(s), scale(s), 0};
  if (out.bin < kBins - 1 && scale.passes_min_p(out.z, s)) {
    out.key = best_first(out.z + gumbel(philox(id, position, scale.settings.seed)), id);
  }
  return out;
}

__device__ __forceinline__ uint64 mass_of(float z) { return __float2ull_rn(expf(z) * 1099511627776.0f); }

// The bins of one block, or of the boundary bin. A mass is low + high * 2^32.
struct SharedBins {
  unsigned count[kBins], mass_low[kBins], mass_high[kBins];
  uint64 best[kBins];
};

// Bins that a scan walks over: counts, masses and bests of this thread's two.
struct Pair {
  uint64 count[2], mass[2], best[2];
};

struct Tally {
  uint64 count = 0, mass = 0, best = 0;
};

struct ScanMemory {
  uint64 warps[3][kWarps];
  Tally kept, boundary;
  int boundary_bin;
};

__device__ __forceinline__ uint64 inclusive_scan(uint64 v) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint64 other = __shfl_up_sync(~0u, v, step);
    if (threadIdx.x % 32 >= step) v += other;
  }
  return v;
}

// Walks over 1,024 bins, best first, from `kept` on: a bin is kept while its end stays within the limits; the first
// that does not is the boundary if it begins below both limits. Leaves kept, boundary and boundary_bin (-1 = none) in
// `m`.
__device__ void scan(const Pair& bins, const Tally& kept, uint64 most, uint64 mass_limit, ScanMemory& m) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint64 count = inclusive_scan(bins.count[0] + bins.count[1]);
  const uint64 mass = inclusive_scan(bins.mass[0] + bins.mass[1]);
  __syncthreads();
  if (lane == 31) m.warps[0][warp] = count, m.warps[1][warp] = mass;
  if (threadIdx.x == 0) m.boundary_bin = -2;
  __syncthreads();
  uint64 before_count = kept.count + count - bins.count[0] - bins.count[1];
  uint64 before_mass = kept.mass + mass - bins.mass[0] - bins.mass[1];
  for (int i = 0; i < warp; ++i) before_count += m.warps[0][i], before_mass += m.warps[1][i];
  uint64 best = kept.best;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint64 end_count = before_count + bins.count[i], end_mass = before_mass + bins.mass[i];
    const bool is_kept = end_count <= most && end_mass <= mass_limit;
    if (is_kept) best = max(best, bins.best[i]);
    if (!is_kept && before_count <= most && before_mass <= mass_limit) {  // the first: one thread
      const bool is_boundary = before_count < most && before_mass < mass_limit;
      m.boundary_bin = is_boundary ? 2 * int(threadIdx.x) + i : -1;
      m.kept.count = before_count, m.kept.mass = before_mass;
      m.boundary.count = bins.count[i], m.boundary.mass = bins.mass[i], m.boundary.best = bins.best[i];
    }
    before_count = end_count, before_mass = end_mass;
  }
  best = block_max(best, m.warps[2]);
  if (threadIdx.x == kThreads - 1 && m.boundary_bin == -2) {  // all are kept
    m.boundary_bin = -1;
    m.kept.count = before_count, m.kept.mass = before_mass;
  }
  if (threadIdx.x == kThreads - 1) m.kept.best = best;
  __syncthreads();
}

struct DrawMemory {
  SharedBins bins;
  double biases[kPart];
  ScanMemory scan;
};

// Which keys a bin of the row holds: [first, first + span), a little more than it does.
__device__ __forceinline__ void key_range(const Scale& scale, int bin, uint64& first, uint64& span) {
  const double unit = 1.0 / (double(kBinsPerUnit) * scale.by);
  const uint32 top = ordered(float(scale.high - (bin - 0.01) * unit)) + 2;
  const uint32 bottom = ordered(float(scale.high - (bin + 1.01) * unit)) - 2;
  first = uint64(bottom) << 32;
  span = (uint64(top) << 32) - first;
}

// Adds one token for each lane that has one (`place` >= 0). A warp whose tokens share a bin adds them at once.
__device__ __forceinline__ void add(SharedBins& bins, int place, uint64 mass, uint64 key) {
  if (__any_sync(~0u, place >= 0) == 0) return;
  const int highest = __reduce_max_sync(~0u, place);
  if (__all_sync(~0u, place == highest || place < 0)) {
    const bool has = place >= 0;
    const unsigned count = __reduce_add_sync(~0u, unsigned(has));
    const unsigned low = __reduce_add_sync(~0u, has ? unsigned(mass & 0xfffffu) : 0u);
    const unsigned high = __reduce_add_sync(~0u, has ? unsigned(mass >> 20) : 0u);
    key = warp_max(has ? key : 0);
    place = threadIdx.x % 32 == 0 ? highest : -1;
    mass = low + (uint64(high) << 20);
    if (place >= 0) atomicAdd(&bins.count[place], count);
  } else if (place >= 0) {
    atomicAdd(&bins.count[place], 1u);
  }
  if (place < 0) return;
  // Shared memory adds words only; the one whose addition overflows the low word carries.
  const unsigned low = unsigned(mass);
  const unsigned before = atomicAdd(&bins.mass_low[place], low);
  atomicAdd(&bins.mass_high[place], unsigned(mass >> 32) + (before + low < before));
  if (key) atomicMax(&bins.best[place], key);
}

// The tokens that the limits keep, of a whole row. `needs_mass` false: only kept.best counts, and the boundary bin
// stays closed where its best could not win.
struct Cut {
  const Row& row;
  const Scale& scale;
  const int position;
  DrawMemory& m;

  __device__ Tally operator()(const SamplingBins& bins, uint64 most, uint64 mass_limit, bool needs_mass) const {
    Pair mine;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int bin = 2 * threadIdx.x + i;
      mine.count[i] = __ldcg(bins.count + bin);
      mine.mass[i] = __ldcg(bins.mass + bin), mine.best[i] = __ldcg(bins.best + bin);
    }
    scan(mine, Tally(), most, mass_limit, m.scan);
    const int bin = m.scan.boundary_bin;
    if (bin == kBins - 1) {  // nothing in it can win, and its mass is nothing
      Tally kept = m.scan.kept;
      kept.mass += m.scan.boundary.mass;
      return kept;
    }
    if (bin < 0) return m.scan.kept;
    uint64 first, span;
    key_range(scale, bin, first, span);
    const uint64 where = __ldcg(bins.where + bin);
    while (m.scan.boundary_bin >= 0) {
      Tally kept = m.scan.kept;
      const Tally boundary = m.scan.boundary;
      if (boundary.count == 1) {
        kept.mass += boundary.mass, kept.best = max(kept.best, boundary.best);
        return kept;
      }
      if (!needs_mass && boundary.best <= kept.best) return kept;
      const int bits = 64 - __clzll(span - 1);
      const int shift = max(0, bits - 10);
      open(bin, where, first, shift);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int place = 2 * threadIdx.x + i;
        mine.count[i] = m.bins.count[place], mine.best[i] = m.bins.best[place];
        mine.mass[i] = m.bins.mass_low[place] + (uint64(m.bins.mass_high[place]) << 32);
      }
      scan(mine, kept, most, mass_limit, m.scan);
      if (m.scan.boundary_bin >= 0) {
        first += uint64(kBins - 1 - m.scan.boundary_bin) << shift;
        span = 1ull << shift;
      }
    }
    return m.scan.kept;
  }

  // The tokens of `bin` with keys from `first` on into 1,024 bins of 2^shift keys each, highest first.
  __device__ void open(int bin, uint64 where, uint64 first, int shift) const {
    __syncthreads();
    for (int i = threadIdx.x; i < kBins; i += kThreads) {
      m.bins.count[i] = m.bins.mass_low[i] = m.bins.mass_high[i] = 0, m.bins.best[i] = 0;
    }
    __syncthreads();
    const int parts = row.p.parts;
    for (; where; where &= where - 1) {
      const int group = __ffsll(where) - 1;
      for (int part = (group * parts + 63) / 64; part < ((group + 1) * parts + 63) / 64; ++part) {
        float raw[kValues];
        row.load(part, raw);
        row.load_biases(part, m.biases);
#pragma unroll
        for (int i = 0; i < kValues; ++i) {
          const int id = part * kPart + i * kThreads + threadIdx.x;
          int place = -1;
          uint64 mass = 0, key = 0;
          if (row.may_choose(id)) {
            const Score s = row.score(id, raw[i], m.biases);
            const uint64 distance = (ordering_key(s, id) - first) >> shift;
            if (scale.bin(s) == bin && distance < kBins) {
              const Drawn drawn = draw(row, scale, id, s, position);
              place = kBins - 1 - int(distance), mass = mass_of(drawn.z), key = drawn.key;
            }
          }
          add(m.bins, place, mass, key);
        }
      }
    }
    __syncthreads();
  }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 2) sampling_survey(SamplingParams p) {
  __shared__ double biases[kPart];
  __shared__ Survey surveys[2][kWarps];
  __shared__ uint64 keys[2][kWarps];
  const Row row(p);
  if (row.slot < 0) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      row.answer(-1, 0.0f, -1);
      p.states[row.row].is_drawn = 0;
    }
    return;
  }
  const SamplingSlot& settings = p.settings[row.slot];
  const int num_logprobs = min(settings.num_logprobs, p.max_logprobs);
  float raw[kValues];
  row.load(blockIdx.x, raw);
  row.load_biases(blockIdx.x, biases);
  const Survey part = block_merge(survey(row, raw, biases), surveys[0]);
  if (threadIdx.x == 0) p.surveys[size_t(row.row) * p.parts + blockIdx.x] = part;
  if (num_logprobs) list_top(row, raw, num_logprobs, keys);

  if (!is_last(p.counters + row.row, p.parts)) return;
  Survey mine = nothing();
  if (threadIdx.x < p.parts) {
    const float* from = reinterpret_cast<const float*>(p.surveys + size_t(row.row) * p.parts + threadIdx.x);
    mine = {__ldcg(from),     __ldcg(from + 1), __float_as_int(__ldcg(from + 2)),
            __ldcg(from + 3), __ldcg(from + 4), __float_as_int(__ldcg(from + 5))};
  }
  mine = block_merge(mine, surveys[1]);
  if (threadIdx.x == 0) surveys[0][0] = mine;
  __syncthreads();
  const Survey all = surveys[0][0];
  const float log_sum = logf(all.raw_sum);
  const bool is_sound = all.bad == kNoBad && all.id != kNoBad;
  const bool is_drawn = is_sound && settings.temperature > 0;
  if (threadIdx.x == 0) {
    p.states[row.row] = {all.raw_max, log_sum, all.high, all.low, is_drawn};
    if (!is_sound) {
      row.answer(-1, 0.0f, all.bad == kNoBad ? p.vocab : all.bad);
    } else if (!is_drawn) {
      row.answer(all.id, p.logits[size_t(row.row) * p.vocab + all.id] - all.raw_max - log_sum, -1);
    }
  }
  if (is_sound && num_logprobs) merge_top(row, num_logprobs, all.raw_max, log_sum, keys);
  if (is_drawn) {
    uint4* bins = reinterpret_cast<uint4*>(p.bins + row.row);
    for (int i = threadIdx.x; i < int(sizeof(SamplingBins) / 16); i += kThreads) bins[i] = uint4{};
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) sampling_draw(SamplingParams p) {
  __shared__ DrawMemory m;
  const SamplingRow state = p.states[blockIdx.y];
  if (!state.is_drawn) return;
  const Row row(p);
  const SamplingSlot& settings = p.settings[row.slot];
  const Scale scale(state, settings);
  const int position = p.past_lens[row.row] + p.cu_seqlens[row.row + 1] - p.cu_seqlens[row.row];
  const bool has_top_k = settings.top_k > 0 && settings.top_k < p.vocab, has_top_p = settings.top_p < 1;
  SamplingBins& bins = p.bins[row.row];
  float raw[kValues];
  row.load(blockIdx.x, raw);
  row.load_biases(blockIdx.x, m.biases);
  if (has_top_k || has_top_p) {
    for (int i = threadIdx.x; i < kBins; i += kThreads) {
      m.bins.count[i] = m.bins.mass_low[i] = m.bins.mass_high[i] = 0, m.bins.best[i] = 0;
    }
    __syncthreads();
  }
  uint64 best = 0;
  unsigned tail = 0, tail_mass = 0;  // of the last bin, which holds most tokens
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const int id = blockIdx.x * kPart + i * kThreads + threadIdx.x;
    Drawn drawn{-1, 0.0f, 0};
    if (row.may_choose(id)) drawn = draw(row, scale, id, row.score(id, raw[i], m.biases), position);
    best = max(best, drawn.key);
    if (!has_top_k && !has_top_p) continue;
    const uint64 mass = drawn.bin < 0 ? 0 : mass_of(drawn.z);
    const bool is_tail = drawn.bin == kBins - 1;
    if (is_tail) ++tail, tail_mass += unsigned(mass);
    add(m.bins, is_tail ? -1 : drawn.bin, mass, drawn.key);
  }
  if (has_top_k || has_top_p) {
    tail = __reduce_add_sync(~0u, tail), tail_mass = __reduce_add_sync(~0u, tail_mass);
    if (threadIdx.x % 32 == 0)
      atomicAdd(&m.bins.count[kBins - 1], tail), atomicAdd(&m.bins.mass_low[kBins - 1], tail_mass);
    __syncthreads();
    for (int i = threadIdx.x; i < kBins; i += kThreads) {
      if (m.bins.count[i] == 0) continue;
      atomicAdd(&bins.count[i], m.bins.count[i]);
      atomicAdd(&bins.mass[i], m.bins.mass_low[i] + (uint64(m.bins.mass_high[i]) << 32));
      if (m.bins.best[i]) atomicMax(&bins.best[i], m.bins.best[i]);
      atomicOr(&bins.where[i], 1ull << (blockIdx.x * 64 / p.parts));
    }
  } else {
    best = block_max(best, m.scan.warps[0]);
    if (threadIdx.x == 0) atomicMax(&bins.best[0], best);
  }

  if (!is_last(p.counters + p.rows + row.row, p.parts)) return;
  if (has_top_k || has_top_p) {
    const Cut cut{row, scale, position, m};
    const uint64 most = has_top_k ? settings.top_k : kAll;
    uint64 mass_limit = kAll;
    if (has_top_p) {
      const uint64 whole = cut(bins, most, kAll, true).mass;
      mass_limit = max(1ull, __double2ull_ru(settings.top_p * double(whole)));
    }
    best = cut(bins, most, mass_limit, false).best;
  } else {
    best = __ldcg(&bins.best[0]);
  }
  if (threadIdx.x == 0) {
    const int token = id_of(best);
    row.answer(token, p.logits[size_t(row.row) * p.vocab + token] - state.raw_max - state.log_sum, -1);
  }
}
