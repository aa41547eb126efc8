// SPDX-License-Identifier: Apache-2.0
// From logits to tokens, as runtime/sampling.py does it, in two kernels. A row is parts of 2,048 tokens, which its
// blocks take in turns.
//
//   sampling_survey  One pass over the logits: bad values, log-sum-exp, the best score. The last block of a row puts
//                    the blocks' surveys together and, for a greedy row, has the token.
//   sampling_draw    Rows with a temperature only: a second pass (over the L2 cache) draws a Gumbel number for each
//                    token and puts the tokens into bins by score. The last block of a row finds out which bins top-k
//                    and top-p keep.
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
// Numbers. A score is a sum of two float32 (48 bits), a 16th of the reference's, so that penalties cannot overflow;
// scores that differ by less than 2^-36 of themselves count as equal. Masses are integers, exp * 2^40, so that sums do
// not depend on their order and the token is the same in every run. They differ from the float64 reference's by less
// than 1e-6 of the whole: a token that top-p keeps or drops by less than that may be decided otherwise, and so may two
// tokens whose score plus Gumbel number differ by less than 4e-6. A token 28 below the best cannot win, as Gumbel
// numbers of 32 bits lie between -3.2 and 22.9.
//
// Loops over a thread's values are not unrolled where their body is long: fetching the code would take longer than
// running it once.
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

constexpr float kUnit = 2.3283064e-10f;  // 2^-32

// 1 - u, where u = (word + 0.5) / 2^32.
__device__ __forceinline__ float complement(uint32 word) { return (__uint2float_rn(~word) + 0.5f) * kUnit; }

// -log(-log(u)). Near u = 1, where float32 is too coarse, -log(u) is a series in t = 1 - u.
__device__ __forceinline__ float gumbel(uint32 word) {
  const float t = complement(word), u = (__uint2float_rn(word) + 0.5f) * kUnit;
  const float series = fmaf(t, fmaf(t, fmaf(t, fmaf(t, fmaf(t, 1 / 6.0f, 0.2f), 0.25f), 1 / 3.0f), 0.5f), 1.0f) * t;
  return -logf(t < 0.0625f ? series : -logf(u));
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
  return {__int_as_float(0xff800000), 0.0f, kNoBad, __int_as_float(0xff800000), 0.0f, kNoBad, 0.0f};
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
  const bool is_best = is_high && ordered(s.low) == low;
  out.id = __reduce_min_sync(~0u, is_best ? s.id : kNoBad);
  const unsigned owners = __ballot_sync(~0u, is_best && s.id == out.id);
  out.raw = __shfl_sync(~0u, s.raw, __ffs(owners) - 1);
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
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // for the whole block: the barrier has ordered its writes before this
    last = atomicAdd(counter, 1u) == count - 1;
    if (last) *counter = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}

// ---- a row of logits

struct Row {
  const SamplingParams& p;
  const int row = blockIdx.y;
  const int slot;
  const float* const logits;
  int num_biases = 0;
  bool has_penalty = false, is_constrained = false;

  __device__ Row(const SamplingParams& params, int at)
      : p(params), slot(at), logits(params.logits + size_t(blockIdx.y) * params.vocab) {
    if (slot < 0) return;
    const SamplingSlot& s = p.settings[slot];
    num_biases = min(s.num_biases, p.max_biases);
    // All loaded at once, not one after the other.
    const bool has_any = (s.repetition_penalty != 1) | (s.presence_penalty != 0) | (s.frequency_penalty != 0);
    has_penalty = p.counts && has_any;
    is_constrained = p.mask && s.is_constrained;
  }

  // Whether scores are the logits and every token may be chosen.
  __device__ bool is_plain() const { return !num_biases && !has_penalty && !is_constrained; }

  // Where the biases of a part's tokens stand, -1 = nowhere; to be called by the whole block.
  __device__ __forceinline__ void find_biases(int part, short (&places)[kPart]) const {
    if (num_biases == 0) return;
    __syncthreads();
    for (int i = threadIdx.x; i < kPart; i += kThreads) places[i] = -1;
    __syncthreads();
    for (int i = threadIdx.x; i < num_biases; i += kThreads) {
      const int at = p.bias_ids[size_t(slot) * p.max_biases + i] - part * kPart;
      if (at >= 0 && at < kPart) places[at] = short(i);
    }
    __syncthreads();
  }

  __device__ __forceinline__ void load(int part, float (&raw)[kValues]) const {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const int id = part * kPart + i * kThreads + threadIdx.x;
      raw[i] = id < p.vocab ? logits[id] : 0.0f;
    }
  }

  __device__ __forceinline__ bool may_choose(int id) const {
    if (id >= p.vocab) return false;
    if (!is_constrained) return true;
    return p.mask[size_t(slot) * ((p.vocab + 31) / 32) + id / 32] >> (id % 32) & 1;
  }

  // Bias and penalties in float64, for the few tokens that have any. Adding zero makes -0 and 0 equal.
  __device__ __forceinline__ Score score(float raw, int bias, unsigned count) const {
    if (bias < 0 && count == 0) return {fmaf(raw, 0.0625f, 0.0f), 0.0f};
    const SamplingSlot& s = p.settings[slot];
    double value = raw;
    if (bias >= 0) value += p.bias_values[size_t(slot) * p.max_biases + bias];
    if (count) value = value < 0 ? value * s.repetition_penalty : value / s.repetition_penalty;
    const unsigned in_output = count & 0x7fffu;
    // As NumPy rounds: no fused multiplication and addition.
    if (in_output) value -= __dadd_rn(s.presence_penalty, __dmul_rn(s.frequency_penalty, in_output));
    value *= 0.0625;
    const float high = float(value) + 0.0f;
    return {high, float(value - high)};
  }

  __device__ __forceinline__ void answer(int token, float logprob, int error) const {
    p.tokens[row] = token, p.logprobs[row] = logprob, p.errors[row] = error;
  }
};

// A part's logits, each where its own thread will look for it, and the places of its biases.
struct Staged {
  float raw[kValues][kThreads];
  unsigned short counts[kValues][kThreads];
  short places[kPart];

  __device__ __forceinline__ void store(const Row& row, int part, const float (&values)[kValues]) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) raw[i][threadIdx.x] = values[i];
    if (!row.has_penalty) return;
    unsigned short found[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const int id = part * kPart + i * kThreads + threadIdx.x;
      found[i] = id < row.p.vocab ? row.p.counts[size_t(row.slot) * row.p.vocab + id] : 0;
    }
#pragma unroll
    for (int i = 0; i < kValues; ++i) counts[i][threadIdx.x] = found[i];
  }

  // Score of the thread's value `i`.
  __device__ __forceinline__ Score score(const Row& row, int i) const {
    const int place = row.num_biases ? places[i * kThreads + threadIdx.x] : -1;
    return row.score(raw[i][threadIdx.x], place, row.has_penalty ? counts[i][threadIdx.x] : 0);
  }
};

__device__ __forceinline__ void consider(Survey& mine, Score s, int id, float raw) {
  if (s.high > mine.high || (s.high == mine.high && s.low > mine.low) || mine.id == kNoBad) {
    mine.high = s.high, mine.low = s.low, mine.id = id, mine.raw = raw;
  }
}

// A thread's survey with its tokens of one more part.
__device__ __forceinline__ void survey(const Row& row, int part, const float (&raw)[kValues], Staged& staged,
                                       Survey& mine) {
  const int first = part * kPart + threadIdx.x;
  float highest = mine.raw_max, probe = 0.0f;  // NaN where a logit is not finite
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    if (first + i * kThreads >= row.p.vocab) continue;
    highest = fmaxf(highest, raw[i]), probe = fmaf(raw[i], 0.0f, probe);
  }
  if (mine.raw_max < highest) mine.raw_sum *= __expf(mine.raw_max - highest), mine.raw_max = highest;
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    if (first + i * kThreads < row.p.vocab) mine.raw_sum += __expf(raw[i] - highest);
  }
  if (row.is_plain()) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const int id = first + i * kThreads;
      if (id < row.p.vocab) consider(mine, {fmaf(raw[i], 0.0625f, 0.0f), 0.0f}, id, raw[i]);
    }
    if (probe == 0.0f) return;
  }
  staged.store(row, part, raw);
#pragma unroll 1
  for (int i = 0; i < kValues; ++i) {
    const int id = first + i * kThreads;
    const float value = staged.raw[i][threadIdx.x];
    if (id < row.p.vocab && !isfinite(value)) mine.bad = min(mine.bad, id);
    if (row.may_choose(id)) consider(mine, staged.score(row, i), id, value);
  }
}

// The part's most likely tokens, best first, for the last block: one round finds one.
__device__ void list_top(const Row& row, int part, const float (&raw)[kValues], int count,
                         uint64 (&shared)[2][kWarps]) {
  uint64 keys[kValues];
#pragma unroll
  for (int i = 0; i < kValues; ++i) {
    const int id = part * kPart + i * kThreads + threadIdx.x;
    keys[i] = id < row.p.vocab ? best_first(raw[i] + 0.0f, id) : 0;
  }
  uint64* list = row.p.tops + (size_t(row.row) * row.p.parts + part) * row.p.max_logprobs;
  __syncthreads();
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

// Where the row's token will stand in its sequence.
__device__ __forceinline__ int position_of(const SamplingParams& p, int row) {
  return p.past_lens[row] + p.cu_seqlens[row + 1] - p.cu_seqlens[row];
}

// How far below the best score, in units of the temperature; 0 for the best.
struct Scale {
  float high, low;  // best score
  float by, rest;   // 16 / temperature as a sum of two
  float least;      // log(min_p)
  float floor;      // exp of the best token's Gumbel number
  const SamplingSlot& settings;

  __device__ Scale(const SamplingRow& state, const SamplingSlot& slot)
      : high(state.high),
        low(state.low),
        by(state.by),
        rest(state.rest),
        least(state.least),
        floor(state.floor),
        settings(slot) {}

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
  int bin;      // -1: not to be chosen
  float share;  // exp(z): as likely as this beside the best
  uint64 key;   // best_first of z plus Gumbel number; 0: cannot win
};

// The best token is kept by every cut. Another one wins only if z + g > g of the best, or t = 1 - u < 1 - exp(-share /
// floor)
// <= share / floor, which spares most tokens the logarithms, and many the random number.
__device__ __forceinline__ Drawn draw(const Row& row, const Scale& scale, int id, Score s, int position) {
  const float z = scale(s), share = expf(z), most = share * 1.0001f;
  Drawn out{scale.bin(s), share, 0};
  if (out.bin == kBins - 1 || most < 0.5f * kUnit * scale.floor) return out;
  const uint32 word = philox(id, position, scale.settings.seed);
  if (complement(word) * scale.floor <= most && scale.passes_min_p(z, s)) out.key = best_first(z + gumbel(word), id);
  return out;
}

__device__ __forceinline__ uint64 mass_of(float share) { return __float2ull_rn(share * 1099511627776.0f); }

// The bins of one block, or of the boundary bin. A mass is low + high * 2^32.
struct SharedBins {
  unsigned count[kBins], mass_low[kBins], mass_high[kBins];
  unsigned where[2][kBins];  // bit g % 32 of word g / 32: parts of group g have tokens in the bin
  uint64 best[kBins];

  __device__ void clear() {
    for (int i = threadIdx.x; i < kBins; i += kThreads) {
      count[i] = mass_low[i] = mass_high[i] = where[0][i] = where[1][i] = 0, best[i] = 0;
    }
    __syncthreads();
  }
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
  if (threadIdx.x == 0) m.boundary_bin = -1;
  __syncthreads();
  uint64 before_count = kept.count + count - bins.count[0] - bins.count[1];
  uint64 before_mass = kept.mass + mass - bins.mass[0] - bins.mass[1];
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    before_count += i < warp ? m.warps[0][i] : 0, before_mass += i < warp ? m.warps[1][i] : 0;
  }
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
  const bool is_all_kept = before_count <= most && before_mass <= mass_limit;
  if (threadIdx.x == kThreads - 1 && is_all_kept) m.kept.count = before_count, m.kept.mass = before_mass;
  if (threadIdx.x == kThreads - 1) m.kept.best = best;
  __syncthreads();
}

struct DrawMemory {
  SharedBins bins;
  Staged staged;
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

// Adds `count` tokens of parts of `group` to bin `place`.
__device__ __forceinline__ void add(SharedBins& bins, int group, int place, unsigned count, uint64 mass, uint64 key) {
  atomicAdd(&bins.count[place], count);
  // Shared memory adds words only; the one whose addition overflows the low word carries.
  const unsigned low = unsigned(mass), before = atomicAdd(&bins.mass_low[place], low);
  const unsigned high = unsigned(mass >> 32) + (before + low < before);
  if (high) atomicAdd(&bins.mass_high[place], high);
  atomicOr(&bins.where[group / 32][place], 1u << (group % 32));
  if (key) atomicMax(&bins.best[place], key);
}

// Adds one token for each lane with a place that is not negative. A warp whose tokens share a bin adds them at once: a
// boundary bin may hold all tokens.
__device__ __forceinline__ void add_warp(SharedBins& bins, int place, uint64 mass, uint64 key) {
  const int highest = __reduce_max_sync(~0u, place);
  if (highest < 0) return;
  const bool has = place >= 0;
  if (__all_sync(~0u, place == highest || !has)) {
    const unsigned count = __reduce_add_sync(~0u, unsigned(has));
    const unsigned low = __reduce_add_sync(~0u, has ? unsigned(mass & 0xfffffu) : 0u);
    const unsigned high = __reduce_add_sync(~0u, has ? unsigned(mass >> 20) : 0u);
    key = warp_max(has ? key : 0);
    if (threadIdx.x % 32 == 0) add(bins, 0, highest, count, low + (uint64(high) << 20), key);
  } else if (has) {
    add(bins, 0, place, 1, mass, key);
  }
}

// The tokens that the limits keep, of a whole row. `needs_mass` false: only kept.best counts, and the boundary bin
// stays closed where its best could not win.
struct Cut {
  const Row& row;
  const Scale& scale;
  const int position;
  const SamplingBins& bins;
  DrawMemory& m;

  __device__ Tally operator()(uint64 most, uint64 mass_limit, bool needs_mass) const {
    Pair level;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int place = 2 * threadIdx.x + i;
      level.count[i] = __ldcg(bins.count + place);
      level.mass[i] = __ldcg(bins.mass + place), level.best[i] = __ldcg(bins.best + place);
    }
    Tally kept;
    int bin = -1, shift = 0;  // the boundary among the row's bins, once it is open
    uint64 first = 0, span = 0, where = 0;
    while (true) {
      scan(level, kept, most, mass_limit, m.scan);
      kept = m.scan.kept;
      const Tally boundary = m.scan.boundary;
      const int found = m.scan.boundary_bin;
      if (found < 0) return kept;
      if (boundary.count == 1 || (bin < 0 && found == kBins - 1)) {  // of the last bin the mass is nothing, either way
        kept.mass += boundary.mass, kept.best = max(kept.best, boundary.best);
        return kept;
      }
      if (!needs_mass && boundary.best <= kept.best) return kept;
      if (bin < 0) {
        bin = found;
        key_range(scale, bin, first, span);
        where = __ldcg(bins.where + bin);
      } else {
        first += uint64(kBins - 1 - found) << shift;
        span = 1ull << shift;
      }
      shift = max(0, 64 - __clzll(span - 1) - 10);
      open(bin, where, first, span, shift);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int place = 2 * threadIdx.x + i;
        level.count[i] = m.bins.count[place], level.best[i] = m.bins.best[place];
        level.mass[i] = m.bins.mass_low[place] + (uint64(m.bins.mass_high[place]) << 32);
      }
    }
  }

  // The tokens of `bin` with `span` keys from `first` on into 1,024 bins of 2^shift keys each, highest first.
  __device__ void open(int bin, uint64 where, uint64 first, uint64 span, int shift) const {
    __syncthreads();
    m.bins.clear();
    const int parts = row.p.parts;
    for (; where; where &= where - 1) {
      const int group = __ffsll(where) - 1;
      for (int part = (group * parts + 63) / 64; part < ((group + 1) * parts + 63) / 64; ++part) {
        float raw[kValues];
        row.load(part, raw);
        row.find_biases(part, m.staged.places);
        m.staged.store(row, part, raw);
#pragma unroll 1
        for (int i = 0; i < kValues; ++i) {
          const int id = part * kPart + i * kThreads + threadIdx.x;
          int place = -1;
          uint64 mass = 0, key = 0;
          if (row.may_choose(id)) {
            const Score s = m.staged.score(row, i);
            const uint64 distance = ordering_key(s, id) - first;
            if (scale.bin(s) == bin && distance < span) {
              const Drawn drawn = draw(row, scale, id, s, position);
              place = kBins - 1 - int(distance >> shift), mass = mass_of(drawn.share), key = drawn.key;
            }
          }
          add_warp(m.bins, place, mass, key);
        }
      }
    }
    __syncthreads();
  }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 2) sampling_survey(SamplingParams p) {
  begin_in_turn();
  __shared__ Staged staged;
  __shared__ Survey surveys[2][kWarps];
  __shared__ uint64 keys[2][kWarps];
  const bool is_wanted = !p.logit_rows || p.logit_rows[blockIdx.y] >= 0;
  const Row row(p, is_wanted ? p.slots[blockIdx.y] : -1);
  if (row.slot < 0) {
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      row.answer(-1, 0.0f, -1);
      p.states[row.row].slot = -1;
    }
    return;
  }
  const SamplingSlot& settings = p.settings[row.slot];
  const int num_logprobs = min(settings.num_logprobs, p.max_logprobs);
  Survey mine = nothing();
  float raw[kValues], next[kValues];
  row.load(blockIdx.x, raw);
  for (int part = blockIdx.x; part < p.parts; part += p.blocks) {
    row.load(part + p.blocks, next);
    row.find_biases(part, staged.places);
    survey(row, part, raw, staged, mine);
    if (num_logprobs) list_top(row, part, raw, num_logprobs, keys);
#pragma unroll
    for (int i = 0; i < kValues; ++i) raw[i] = next[i];
  }
  mine = block_merge(mine, surveys[0]);
  if (threadIdx.x == 0) p.surveys[row.row * p.blocks + blockIdx.x] = mine;

  if (!is_last(p.counters + row.row, p.blocks)) return;
  mine = nothing();
  if (threadIdx.x < p.blocks) {
    const float* from = reinterpret_cast<const float*>(p.surveys + row.row * p.blocks + threadIdx.x);
    mine = {__ldcg(from),     __ldcg(from + 1), __float_as_int(__ldcg(from + 2)),
            __ldcg(from + 3), __ldcg(from + 4), __float_as_int(__ldcg(from + 5)),
            __ldcg(from + 6)};
  }
  mine = block_merge(mine, surveys[1]);
  if (threadIdx.x == 0) surveys[0][0] = mine;
  __syncthreads();
  const Survey all = surveys[0][0];
  const float log_sum = logf(all.raw_sum);
  const bool is_sound = all.bad == kNoBad && all.id != kNoBad;
  const bool is_drawn = is_sound && settings.temperature > 0;
  // Each by a warp of its own, at the same time.
  SamplingRow& state = p.states[row.row];
  if (threadIdx.x == 0) {
    state.slot = is_drawn ? row.slot : -1;
    state.raw_max = all.raw_max, state.log_sum = log_sum, state.high = all.high, state.low = all.low;
    if (!is_sound) {
      row.answer(-1, 0.0f, all.bad == kNoBad ? p.vocab : all.bad);
    } else if (!is_drawn) {
      row.answer(all.id, all.raw - all.raw_max - log_sum, -1);
    }
  } else if (is_drawn && threadIdx.x == 32) {
    const double by = 16.0 / settings.temperature;
    state.by = float(by), state.rest = float(by - float(by));
  } else if (is_drawn && threadIdx.x == 64) {
    state.least = settings.min_p > 0 ? float(log(settings.min_p)) : -1e30f;
  } else if (is_drawn && threadIdx.x == 96) {
    state.floor = expf(gumbel(philox(all.id, position_of(p, row.row), settings.seed)));
  }
  if (is_sound && num_logprobs) merge_top(row, num_logprobs, all.raw_max, log_sum, keys);
  if (is_drawn) {
    uint4* bins = reinterpret_cast<uint4*>(p.bins + row.row);
    for (int i = threadIdx.x; i < int(sizeof(SamplingBins) / 16); i += kThreads) bins[i] = uint4{};
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) sampling_draw(SamplingParams p) {
  begin_in_turn();
  __shared__ DrawMemory m;
  const SamplingRow state = p.states[blockIdx.y];
  if (state.slot < 0) return;
  const Row row(p, state.slot);
  const SamplingSlot& settings = p.settings[row.slot];
  const Scale scale(state, settings);
  const int position = position_of(p, row.row);
  const bool has_top_k = settings.top_k > 0 && settings.top_k < p.vocab, has_top_p = settings.top_p < 1;
  const bool has_cut = has_top_k || has_top_p;
  SamplingBins& bins = p.bins[row.row];
  float raw[kValues], next[kValues];
  row.load(blockIdx.x, raw);
  if (has_cut) m.bins.clear();
  uint64 best = 0;
  unsigned tail = 0, tail_mass = 0;  // of the last bin, which holds most tokens
  for (int part = blockIdx.x; part < p.parts; part += p.blocks) {
    row.load(part + p.blocks, next);
    row.find_biases(part, m.staged.places);
    m.staged.store(row, part, raw);
    const int group = part * 64 / p.parts;
#pragma unroll 1
    for (int i = 0; i < kValues; ++i) {
      const int id = part * kPart + i * kThreads + threadIdx.x;
      Drawn drawn{-1, 0.0f, 0};
      if (row.may_choose(id)) drawn = draw(row, scale, id, m.staged.score(row, i), position);
      best = max(best, drawn.key);
      if (!has_cut) continue;
      const uint64 mass = mass_of(drawn.share);
      if (drawn.bin == kBins - 1) {
        ++tail, tail_mass += unsigned(mass);
      } else if (drawn.bin >= 0) {
        add(m.bins, group, drawn.bin, 1, mass, drawn.key);
      }
    }
#pragma unroll
    for (int i = 0; i < kValues; ++i) raw[i] = next[i];
  }
  if (has_cut) {
    tail = __reduce_add_sync(~0u, tail), tail_mass = __reduce_add_sync(~0u, tail_mass);
    if (threadIdx.x % 32 == 0) {
      atomicAdd(&m.bins.count[kBins - 1], tail), atomicAdd(&m.bins.mass_low[kBins - 1], tail_mass);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kBins; i += kThreads) {
      if (m.bins.count[i] == 0) continue;
      atomicAdd(&bins.count[i], m.bins.count[i]);
      atomicAdd(&bins.mass[i], m.bins.mass_low[i] + (uint64(m.bins.mass_high[i]) << 32));
      atomicOr(&bins.where[i], m.bins.where[0][i] | uint64(m.bins.where[1][i]) << 32);
      if (m.bins.best[i]) atomicMax(&bins.best[i], m.bins.best[i]);
    }
  } else {
    best = block_max(best, m.scan.warps[0]);
    if (threadIdx.x == 0) atomicMax(&bins.best[0], best);
  }

  if (!is_last(p.counters + p.rows + row.row, p.blocks)) return;
  if (has_cut) {
    const Cut cut{row, scale, position, bins, m};
    const uint64 most = has_top_k ? settings.top_k : kAll;
    uint64 mass_limit = kAll;
#pragma unroll 1
    for (bool is_final = !has_top_p;; is_final = true) {  // before top-p the mass that top-k leaves
      const Tally kept = cut(most, mass_limit, !is_final);
      best = kept.best;
      if (is_final) break;
      mass_limit = max(1ull, __double2ull_ru(settings.top_p * double(kept.mass)));
    }
  } else {
    best = __ldcg(&bins.best[0]);
  }
  if (threadIdx.x == 0) {
    const int token = id_of(best);
    row.answer(token, row.logits[token] - state.raw_max - state.log_sum, -1);
  }
}
