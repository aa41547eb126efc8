// SPDX-License-Identifier: Apache-2.0
// OrinGatedDelta token by token: one launch for a decode step, and for a few tokens of each sequence whose every state
// may be wanted (speculative decoding).
//
// A block of 2 D threads owns C columns of the state of one value head of one sequence, D x C float32, and keeps them
// in registers from the first token to the last; for one token the launch is one read and one write of the state, and
// everything else hides behind the read. Columns depend on each other only in the output's norm.
//
//   warp w, lane l:  rows  (w 32/L + l/L) R .. + R - 1,  columns 4 (l % L) .. + 3     L = C/4 lanes a row, R = L/2
//
// C = D is the rule. Where a GPU has more multiprocessors than there are heads, D/32 blocks share a head (C = 32), so
// that more of them move and compute: each publishes its sum of squares and waits for the others'. The launcher does so
// only when all blocks fit on the GPU at once.
//
// Both products with the state use the old one, so that a token needs one reduction over the warps, not two:
//   d = beta (v - e^g S^T k)      o = S'^T q = e^g S^T q + (k.q) d      S' = e^g S + k d^T
// q and k enter unnormalised; their lengths are factors of the sums.
//
// Tokens are taken in rounds. What needs no state is done for a whole round at once: convolutions, gates, dot products.
// Then a token costs one barrier, behind which every warp adds up the sums of all warps for itself. Each token of a
// round is one warp's to finish: it keeps o, and once the round is through it norms, gates and stores y. A decode step
// has rounds of one token: their code is shorter, and they leave shared memory to the L1 cache.
#include "kernels/gated_delta/gated_delta.cuh"

using namespace orin;

namespace {

constexpr int kHistory = kConvTaps - 1;

// Dot products of a token's k and q.
struct alignas(16) Dots {
  float kk, qq, kq, qq_again;
};

template <int D, int C, int kRound>
struct Shared {
  static constexpr int kWarps = D / 16;
  static constexpr int kBuffers = kRound == 1 ? 1 : 2;

  float in[kRound][2 * D + 2 * C];        // k, q, v convolved, and the gate norm silu(z), of each token; o replaces q
  float partial[kBuffers][2][kWarps][C];  // of S^T k and S^T q; two buffers save a barrier
  Dots dots[kRound];
  float2 gates[32];  // e^g and beta of 32 tokens of the step
  bool is_last_reader;
};

// One channel of the convolution: its taps and the inputs that are inside the window. Loading it waits for nothing.
struct Channel {
  Halves<kConvTaps> taps;
  half input[kHistory];

  __device__ void load(const GatedDeltaParams& p, int channel, const half* conv, bool is_fresh) {
#pragma unroll
    for (int i = 0; i < kHistory; ++i) input[i] = is_fresh ? half(0.f) : conv[channel * kHistory + i];
    taps = load_halves<kConvTaps>(static_cast<const half*>(p.conv_weight) + channel * kConvTaps);
  }

  // The output for the next input, which enters the window.
  __device__ float advance(half next) {
    asm volatile("" : "+r"(taps.pair[0]), "+r"(taps.pair[1]));  // to be widened each time: kept, they cost registers
    float tap[kConvTaps];
    widen(taps, tap);
    float c = tap[kHistory] * __half2float(next);
#pragma unroll
    for (int i = 0; i < kHistory; ++i) c += tap[i] * __half2float(input[i]);
#pragma unroll
    for (int i = 0; i < kHistory - 1; ++i) input[i] = input[i + 1];
    input[kHistory - 1] = next;
    return silu(c);
  }

  __device__ void store(half* conv, int channel) const {
#pragma unroll
    for (int i = 0; i < kHistory; ++i) conv[channel * kHistory + i] = input[i];
  }
};

__device__ __forceinline__ void prefetch_line(const void* from) {
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(from));
}

// Of a sum of two products the compiler chooses one to round: here it is said, so that all kernels choose alike.
__device__ __forceinline__ float4 operator*(float a, float4 b) { return {a * b.x, a * b.y, a * b.z, a * b.w}; }
__device__ __forceinline__ float4 fma(float a, float4 b, float4 c) {
  return {fmaf(a, b.x, c.x), fmaf(a, b.y, c.y), fmaf(a, b.z, c.z), fmaf(a, b.w, c.w)};
}
// What a lane keeps and what the other lane gives.
__device__ __forceinline__ float4 add_from_lane(float4 keep, float4 give, int mask) {
  return {keep.x + __shfl_xor_sync(~0u, give.x, mask), keep.y + __shfl_xor_sync(~0u, give.y, mask),
          keep.z + __shfl_xor_sync(~0u, give.z, mask), keep.w + __shfl_xor_sync(~0u, give.w, mask)};
}
// An address that is made in front of a wait, not where it is used. By way of the global address space: loads from it
// must not become generic ones.
__device__ __forceinline__ const half* made_here(const half* address) {
  size_t number = __cvta_generic_to_global(address);
  asm volatile("" : "+l"(number));
  return static_cast<const half*>(__cvta_global_to_generic(number));
}
__device__ __forceinline__ float4& vector_at(float* x) { return *reinterpret_cast<float4*>(x); }

// Over the lanes that share a row of the state.
template <int lanes>
__device__ __forceinline__ float squares_of(float4 o) {
  return sum_over<lanes>(o.x * o.x + o.y * o.y + o.z * o.z + o.w * o.w);
}

// Neighbouring columns.
template <int N>
struct alignas(4 * N) Columns {
  float at[N];
};
template <int N>
__device__ __forceinline__ Columns<N>& columns_at(float* x) {
  return *reinterpret_cast<Columns<N>*>(x);
}

// The four columns from `column` on, when lane l has those from N l on.
template <int N>
__device__ __forceinline__ float4 spread(const Columns<N>& x, int column) {
  const auto get = [&](int j) { return N == 4 ? x.at[j % N] : __shfl_sync(~0u, x.at[j % N], (column + j) / N); };
  return {get(0), get(1), get(2), get(3)};
}

// A warp's sums over its rows of S^T k and S^T q. Lanes that have the same columns halve what they add up: some keep
// one of the two, then some the left columns.
template <int C, int W>
__device__ __forceinline__ void store_partial(float (&partial)[2][W][C], float4 by_k, float4 by_q, int column) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (C == 128) {
    vector_at(&partial[0][warp][column]) = by_k, vector_at(&partial[1][warp][column]) = by_q;
    return;
  }
  const bool keeps_q = lane >= 16, keeps_right = lane & 8;
  const float4 sum = add_from_lane(keeps_q ? by_q : by_k, keeps_q ? by_k : by_q, 16);
  float* to = &partial[keeps_q][warp][column];
  if (C == 64) {
    vector_at(to) = sum;
    return;
  }
  const float2 left{sum.x, sum.y}, right{sum.z, sum.w};
  const float2 keep = keeps_right ? right : left, give = keeps_right ? left : right;
  *reinterpret_cast<float2*>(to + 2 * keeps_right) = {keep.x + __shfl_xor_sync(~0u, give.x, 8),
                                                      keep.y + __shfl_xor_sync(~0u, give.y, 8)};
}

// By a warp. Lanes halve what they add up: some keep k.q, then some q.q.
template <int D>
__device__ void store_dots(Dots& dots, const float* k, const float* q) {
  const int lane = threadIdx.x % 32;
  float kk = 0, qq = 0, kq = 0;
#pragma unroll
  for (int i = lane; i < D; i += 32) kk += k[i] * k[i], qq += q[i] * q[i], kq += k[i] * q[i];
  const bool keeps_kq = lane >= 16, keeps_qq = lane & 8;
  const float k_any = (keeps_kq ? kq : kk) + __shfl_xor_sync(~0u, keeps_kq ? kk : kq, 16);
  qq += __shfl_xor_sync(~0u, qq, 16);
  const float sum = sum_over<8>((keeps_qq ? qq : k_any) + __shfl_xor_sync(~0u, keeps_qq ? k_any : qq, 8));
  if (lane % 8 == 0) (&dots.kk)[lane / 8] = sum;
}

// Rows of y that belong to padding: of a padded sequence, and what lies behind the last one.
template <int D>
__device__ void zero_padding(const GatedDeltaParams& p, const Sequence& s, int b, int head) {
  const int begin = s.slot < 0 ? s.begin : s.end, end = b == p.sequences - 1 ? p.tokens : s.end;
  half* y = static_cast<half*>(p.y) + head * D;
  for (int i = threadIdx.x; i < (end - begin) * D; i += blockDim.x) {
    y[size_t(begin + i / D) * p.value_heads * D + i % D] = half(0.f);
  }
}

// A warp tells the other blocks of a head its sums of squares for its tokens of a round, and adds up theirs: a lane for
// each token and block. `number` of the lane's token counts from 0 in the step. A word has one writer, who writes it
// again only two rounds later, when it has seen the reader's word of the round between; so with the last token that it
// serves the reader can clear it.
__device__ __forceinline__ void publish(unsigned long long* to, unsigned number, float squares) {
  const unsigned long long word = static_cast<unsigned long long>(number + 1) << 32 | __float_as_uint(squares);
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;\n" ::"l"(to), "l"(word) : "memory");
}
__device__ __forceinline__ float collect(const unsigned long long* from, unsigned number) {
  unsigned long long word;
  do {
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];\n" : "=l"(word) : "l"(from) : "memory");
  } while (unsigned(word >> 32) != number + 1);
  return __uint_as_float(unsigned(word));
}

template <int D, int C, int kRound>
__device__ void step(const GatedDeltaParams& p) {
  constexpr int lanes = C / 4, rows = lanes / 2, splits = D / C;
  constexpr int warps = Shared<D, C, kRound>::kWarps, buffers = Shared<D, C, kRound>::kBuffers;
  constexpr int finishes = (kRound + warps - 1) / warps;  // tokens of a round that a warp finishes: one in `warps`
  constexpr int sums = C / 32;                            // columns that a lane adds up over the warps
  constexpr int ahead = kRound == 1 ? 1 : 2;  // tokens whose inputs are on their way: as many as registers allow
  __shared__ __align__(16) Shared<D, C, kRound> shared;
  const int thread = threadIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int repeat = gridDim.x / splits, split = blockIdx.x % splits, column0 = split * C;
  const int key_head = blockIdx.y, head = key_head * repeat + blockIdx.x / splits, b = blockIdx.z;
  const int num_channels = conv_heads(p) * D, row_halves = num_channels + p.value_heads * D;

  // A step of one sequence is most often of slot 0: its state is on its way to L2 while lengths and slot are read. Any
  // other slot finds its own in memory. A block that has all columns has no registers left for it, nor for other things
  // read or made ahead.
  if (C < D && p.sequences == 1) {
    static_assert(C == D || C == 32);  // a line
    if (thread < D) prefetch_line(p.rec + (size_t(head) * D + thread) * D + column0);
  }

  const float a_log = p.a_log[head], dt_bias = p.dt_bias[head];
  if (!p.is_settled) wait_for_previous();
  const Sequence s = sequence(p, b);
  const bool is_idle = s.slot < 0 || s.begin >= s.end;
  const auto begin = [&] {
    begin_in_turn();
    if (s.slot < 0 || (b == p.sequences - 1 && s.end < p.tokens)) zero_padding<D>(p, s, b, head);
  };
  if (!kStartsEarly || is_idle) begin();
  if (is_idle) return;

  // Every thread has a channel of k or q; of each half of them, C threads one of v or of z too.
  const bool is_k = thread < D, has_v = thread < C, has_z = !is_k && thread - D < C;
  const int channel = is_k ? (p.key_heads + key_head) * D + thread : key_head * D + thread - D;
  const int other = has_v   ? (2 * p.key_heads + head) * D + column0 + thread
                    : has_z ? num_channels + head * D + column0 + thread - D
                            : channel;
  half next[ahead], next_other[ahead], next_b, next_a;
  const auto inputs_of = [&](int token, int of) {
    return static_cast<const half*>(p.qkvz) + size_t(token) * row_halves + of;
  };
  const auto gates_of = [&](int first) { return gate_inputs(p, min(first + lane, s.end - 1), head); };
  const half *first_own = inputs_of(s.begin, channel), *first_other = inputs_of(s.begin, other);
  const half* first_gates = gates_of(s.begin);
  const auto load_first = [&] {
    next[0] = *first_own, next_other[0] = *first_other;
    next_b = first_gates[0], next_a = first_gates[p.value_heads];
    if (ahead > 1 && s.begin + 1 < s.end) {
      next[ahead - 1] = *inputs_of(s.begin + 1, channel), next_other[ahead - 1] = *inputs_of(s.begin + 1, other);
    }
  };
  if (!kStartsEarly) load_first();
  const auto conv_of = [&](int slot) { return static_cast<half*>(p.conv) + size_t(slot) * num_channels * kHistory; };
  half* conv = conv_of(s.slot);
  Channel own, own_v;
  own.load(p, channel, conv, s.is_fresh);
  own_v.load(p, has_v ? other : channel, conv, s.is_fresh || !has_v);  // no branch: it would wait for its loads

  const int row0 = (warp * (32 / lanes) + lane / lanes) * rows, column = 4 * (lane % lanes);
  const int in_state = (head * D + row0) * D + column0 + column;
  const auto state_at = [&](float* states, int i) { return states + size_t(i) * p.value_heads * D * D + in_state; };
  float4 state[rows];
#pragma unroll
  for (int i = 0; i < rows; ++i) state[i] = s.is_fresh ? float4{} : vector_at(state_at(p.rec, s.slot) + i * D);
  const auto load_norm = [&] { return p.norm[column0 + thread - D]; };
  const float norm = C < D && has_z ? load_norm() : 0.f;
  if (kStartsEarly) {
    if (C < D) {
      first_own = made_here(first_own), first_other = made_here(first_other), first_gates = made_here(first_gates);
    }
    begin(), load_first();
  }
  unsigned readers = 0;
  const unsigned last_reader = gridDim.x - 1;

  for (int first = s.begin; first < s.end; first += kRound) {
    const int count = kRound == 1 ? 1 : min(kRound, s.end - first);
    const unsigned done = first - s.begin;
    if (first > s.begin) __syncthreads();
    for (int i = 0; i < count; i += ahead) {
#pragma unroll
      for (int j = 0; j < ahead; ++j) {
        const int token = first + i + j;
        if (j && token >= s.end) break;
        float* k = shared.in[i + j];
        float* v = k + 2 * D;
        k[thread] = own.advance(next[j]);  // q follows k
        if (has_v) v[thread] = own_v.advance(next_other[j]);
        if (has_z) v[C + thread - D] = (C < D ? norm : load_norm()) * silu(__half2float(next_other[j]));
        if (token + ahead < s.end) {
          next[j] = *inputs_of(token + ahead, channel), next_other[j] = *inputs_of(token + ahead, other);
        }
        if (p.conv_steps) {
          half* steps = static_cast<half*>(p.conv_steps) + size_t(token) * num_channels * kHistory;
          own.store(steps, channel);  // blocks that share a key head write the same
          if (has_v) own_v.store(steps, other);
        }
      }
    }
    __syncthreads();
    // The last of the blocks that share a key head to have read the convolution's state may write it. What was read has
    // been used before the barrier, so that no fence is needed.
    if (last_reader && thread == D && first == s.begin) {
      readers = atomicInc(&p.readers[b * p.key_heads + key_head], last_reader);
    }
    // Wanted with the sums over the warps only, like the dot products: made while other warps are at work on those.
    if (warp == warps - 1 && done % 32 == 0) {
      if (first > s.begin) next_b = gates_of(first)[0], next_a = gates_of(first)[p.value_heads];
      const Gates gate = make_gates(a_log, dt_bias, next_b, next_a);
      shared.gates[lane] = {expf(gate.log_decay), gate.beta};
    }
#pragma unroll 1  // this and the loops over a warp's tokens below: mostly one turn, and registers are scarce
    for (int i = warp; i < count; i += warps) store_dots<D>(shared.dots[i], shared.in[i], shared.in[i] + D);

    // The state after token i of the round, whose gates and d are known.
    Columns<sums> d_by_k;  // d / |k|
    const auto update = [&](int i, bool is_stored) {
      const float4 scaled_d = spread(d_by_k, column);
      const float decay = shared.gates[done % 32 + i].x;
      float* to = p.rec_steps ? state_at(p.rec_steps, first + i) : state_at(p.rec, s.slot);
#pragma unroll
      for (int r = 0; r < rows; r += 4) {
        const float4 k4 = vector_at(&shared.in[i][row0 + r]);
        state[r] = fma(k4.x, scaled_d, decay * state[r]);
        state[r + 1] = fma(k4.y, scaled_d, decay * state[r + 1]);
        state[r + 2] = fma(k4.z, scaled_d, decay * state[r + 2]);
        state[r + 3] = fma(k4.w, scaled_d, decay * state[r + 3]);
        if (!is_stored) continue;
#pragma unroll
        for (int j = r; j < r + 4; ++j) vector_at(to + j * D) = state[j];
      }
    };
    float4 only_o;  // of a round of one token
    for (int i = 0; i < count; ++i) {
      if (i) update(i - 1, p.rec_steps);
      float4 by_k{}, by_q{};
#pragma unroll
      for (int r = 0; r < rows; r += 4) {
        const float4 k4 = vector_at(&shared.in[i][row0 + r]), q4 = vector_at(&shared.in[i][D + row0 + r]);
        by_k = fma(k4.x, state[r], by_k), by_q = fma(q4.x, state[r], by_q);
        by_k = fma(k4.y, state[r + 1], by_k), by_q = fma(q4.y, state[r + 1], by_q);
        by_k = fma(k4.z, state[r + 2], by_k), by_q = fma(q4.z, state[r + 2], by_q);
        by_k = fma(k4.w, state[r + 3], by_k), by_q = fma(q4.w, state[r + 3], by_q);
      }
      auto& partial = shared.partial[i % buffers];
      store_partial<C>(partial, by_k, by_q, column);
      __syncthreads();

      // Of all warps, always in the same order; each warp for itself, lane l the columns from `sums` l on.
      const auto sum = [&](float (&of)[warps][C]) {
        Columns<sums> total = columns_at<sums>(&of[0][sums * lane]);
#pragma unroll
        for (int w = 1; w < warps; ++w) {
          const Columns<sums> x = columns_at<sums>(&of[w][sums * lane]);
#pragma unroll
          for (int j = 0; j < sums; ++j) total.at[j] += x.at[j];
        }
        return total;
      };
      const float2 gates = shared.gates[done % 32 + i];
      const float decay = gates.x, beta = gates.y;
      const Dots dots = shared.dots[i];
      const float k_scale = rsqrtf(dots.kk + kL2Eps);
      const Columns<sums> sk = sum(partial[0]), v = columns_at<sums>(&shared.in[i][2 * D + sums * lane]);
      Columns<sums> d;
#pragma unroll
      for (int j = 0; j < sums; ++j) {
        d.at[j] = beta * (-decay * k_scale * sk.at[j] + v.at[j]);
        d_by_k.at[j] = k_scale * d.at[j];
      }
      if (warp == i % warps) {
        const Columns<sums> sq = sum(partial[1]);
        const float q_scale = rsqrtf((dots.qq + kL2Eps) * D), kq = dots.kq * k_scale;
        Columns<sums> o;
#pragma unroll
        for (int j = 0; j < sums; ++j) o.at[j] = q_scale * fmaf(decay, sq.at[j], kq * d.at[j]);
        if (kRound == 1) {
          only_o = spread(o, column);
        } else {
          columns_at<sums>(&shared.in[i][D + sums * lane]) = o;
        }
      }
    }

    // The round is through but for the state after its last token, which nobody else waits for.
    if (kRound > 1) __syncwarp();
    const auto mixed = [&](int i) { return kRound == 1 ? only_o : vector_at(&shared.in[i][D + column]); };
    const bool finishes_any = warp < count;
    const int finished = warp + lane / splits * warps;
    const unsigned number = done + finished, side = done / kRound % 2;
    const auto word = [&](unsigned of, int reader, int writer) {
      return &p.exchange[b * p.value_heads + head].squares[of * kRound + finished][reader][writer];
    };
    float squares;  // sum over o of token `finished`: first this block's, then that of block lane % splits
    if (finishes_any) {
#pragma unroll 1
      for (int j = 0; j < finishes && warp + j * warps < count; ++j) {
        const float token_squares = squares_of<lanes>(mixed(warp + j * warps));
        if (finishes == 1 || lane / splits == j) squares = token_squares;
      }
      if (splits > 1 && finished < count) publish(word(side, lane % splits, split), number, squares);
    }
    update(count - 1, p.rec_steps || first + count == s.end);
    if (!finishes_any) continue;
    constexpr int side_words = kRound * kMaxSplits * kMaxSplits;
    unsigned long long* inbox = word(0, split, lane % splits);
    if (splits > 1) {
      if (finished < count) squares = collect(inbox + side * side_words, number);
      __syncwarp();
      squares = sum_over<splits>(squares);
    }
#pragma unroll 1
    for (int j = 0; j < finishes && warp + j * warps < count; ++j) {
      const int i = warp + j * warps;
      const float scale = rsqrtf(__shfl_sync(~0u, squares, j * splits) / D + p.norm_eps);
      const float4 o = mixed(i), gate = vector_at(shared.in[i] + 2 * D + C + column);
      const float out[4] = {o.x * scale * gate.x, o.y * scale * gate.y, o.z * scale * gate.z, o.w * scale * gate.w};
      half* y = static_cast<half*>(p.y) + (size_t(first + i) * p.value_heads + head) * D + column0 + column;
      if (lane < lanes) store_halves(y, out);
    }
    if (splits > 1 && finished < count && first + finished + kRound >= s.end) {
      inbox[0] = inbox[side_words] = 0;
    }
  }

  if (p.rec_steps) {
#pragma unroll
    for (int i = 0; i < rows; ++i) vector_at(state_at(p.rec, s.slot) + i * D) = state[i];
  }
  int slot = s.slot;
  if (C == D) asm volatile("" : "+r"(slot));  // addresses made anew: kept, they cost registers
  if (has_v) own_v.store(C < D ? conv : conv_of(slot), other);
  if (last_reader) {
    if (thread == D) shared.is_last_reader = readers == last_reader;
    __syncthreads();
    if (!shared.is_last_reader) return;
  }
  own.store(C < D ? conv : conv_of(slot), channel);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(64) gated_delta_step_32(GatedDeltaParams p) { step<32, 32, kMaxRound>(p); }
extern "C" __global__ void __launch_bounds__(128) gated_delta_step_64(GatedDeltaParams p) {
  step<64, 64, kMaxRound>(p);
}
extern "C" __global__ void __launch_bounds__(256, 2) gated_delta_step_128(GatedDeltaParams p) {
  step<128, 128, kMaxRound / 2>(p);  // as many as fit into shared memory
}
extern "C" __global__ void __launch_bounds__(128, 4) gated_delta_step_64_split(GatedDeltaParams p) {
  step<64, 32, kMaxRound>(p);
}
extern "C" __global__ void __launch_bounds__(128, 4) gated_delta_step_64_split_one(GatedDeltaParams p) {
  step<64, 32, 1>(p);
}
extern "C" __global__ void __launch_bounds__(256, 2) gated_delta_step_128_split(GatedDeltaParams p) {
  step<128, 32, kMaxRound>(p);
}
extern "C" __global__ void __launch_bounds__(256, 2) gated_delta_step_128_split_one(GatedDeltaParams p) {
  step<128, 32, 1>(p);
}

// Back to the state after the first `accepted` tokens of each sequence.
extern "C" __global__ void gated_delta_restore(RestoreParams p) {
  begin_in_turn();
  const int b = blockIdx.y, slot = p.slots[b], begin = p.cu_seqlens[b], end = p.cu_seqlens[b + 1];
  const int accepted = p.accepted[b];
  if (slot < 0 || accepted < 1 || accepted >= end - begin) return;  // nothing was rejected
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const size_t token = begin + accepted - 1;
  if (i < p.rec_vectors) {
    static_cast<uint4*>(p.rec)[size_t(slot) * p.rec_vectors + i] =
        static_cast<const uint4*>(p.rec_steps)[token * p.rec_vectors + i];
  } else if (i < p.rec_vectors + p.conv_vectors) {
    const int j = i - p.rec_vectors;
    static_cast<uint4*>(p.conv)[size_t(slot) * p.conv_vectors + j] =
        static_cast<const uint4*>(p.conv_steps)[token * p.conv_vectors + j];
  }
}
