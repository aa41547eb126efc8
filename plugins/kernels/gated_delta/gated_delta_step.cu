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
#include "kernels/gated_delta/gated_delta.cuh"

using namespace orin;

namespace {

constexpr int kHistory = kConvTaps - 1;

template <int D, int C>
struct Shared {
  static constexpr int kWarps = D / 16;

  float in[2][2 * D + 2 * C];  // k, q, v convolved, and the gate norm silu(z), of a token; two buffers save a barrier
  float partial[2][kWarps][C];
  float product[2][C];  // S^T k, S^T q
  float kk, qq, kq;     // dot products of k and q
  float2 gates[64];     // e^g and beta of a token, by its number; made for 32 tokens at a time
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

__device__ __forceinline__ float4 operator*(float a, float4 b) { return {a * b.x, a * b.y, a * b.z, a * b.w}; }
__device__ __forceinline__ float4 fma(float a, float4 b, float4 c) {
  return {a * b.x + c.x, a * b.y + c.y, a * b.z + c.z, a * b.w + c.w};
}
__device__ __forceinline__ float4 add_from_lane(float4 a, int mask) {
  return {a.x + __shfl_xor_sync(~0u, a.x, mask), a.y + __shfl_xor_sync(~0u, a.y, mask),
          a.z + __shfl_xor_sync(~0u, a.z, mask), a.w + __shfl_xor_sync(~0u, a.w, mask)};
}
__device__ __forceinline__ float4& vector_at(float* x) { return *reinterpret_cast<float4*>(x); }

// Over the lanes that share a row of the state.
template <int lanes>
__device__ __forceinline__ float squares_of(float4 o) {
  return sum_over<lanes>(o.x * o.x + o.y * o.y + o.z * o.z + o.w * o.w);
}

template <int D>
__device__ float dot(const float* a, const float* b) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < D; i += 32) sum += a[i + threadIdx.x % 32] * b[i + threadIdx.x % 32];
  return sum_over(sum);
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

// One warp tells the other blocks of a head its sum of squares for token `number` (from 1) of the step, and adds up
// theirs. Lane i writes to and reads from block i. A word has one writer, who writes it again only two tokens later,
// when it has seen the reader's word of the token between; so after the last token the reader can clear it.
template <int splits>
__device__ __forceinline__ void publish(Semaphore& semaphore, int split, unsigned number, float squares) {
  const unsigned lane = threadIdx.x % 32;
  if (lane >= splits) return;
  const unsigned long long word = static_cast<unsigned long long>(number) << 32 | __float_as_uint(squares);
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;\n" ::"l"(&semaphore.squares[number % 2][lane][split]), "l"(word)
               : "memory");
}
template <int splits>
__device__ __forceinline__ float collect(Semaphore& semaphore, int split, unsigned number, bool is_last) {
  const unsigned lane = threadIdx.x % 32;
  unsigned long long word = 0;
  if (lane < splits) {
    const unsigned long long* from = &semaphore.squares[number % 2][split][lane];
    do {
      asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];\n" : "=l"(word) : "l"(from) : "memory");
    } while (unsigned(word >> 32) != number);
    if (is_last) semaphore.squares[0][split][lane] = semaphore.squares[1][split][lane] = 0;
  }
  __syncwarp();
  return __shfl_sync(~0u, sum_over<splits>(__uint_as_float(unsigned(word))), 0);
}

template <int D, int C>
__device__ void step(const GatedDeltaParams& p) {
  constexpr int lanes = C / 4, rows = lanes / 2, warps = Shared<D, C>::kWarps, splits = D / C;
  __shared__ __align__(16) Shared<D, C> shared;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int repeat = gridDim.x / splits, split = blockIdx.x % splits, column0 = split * C;
  const int key_head = blockIdx.y, head = key_head * repeat + blockIdx.x / splits, b = blockIdx.z;
  const int num_channels = conv_heads(p) * D, row_halves = num_channels + p.value_heads * D;

  // A step of one sequence is most often of slot 0: its state is on its way to L2 while lengths and slot are read. Any
  // other slot finds its own in memory. A block that has all columns has no registers left for it.
  if (C < D && p.sequences == 1) {
    constexpr int row_lines = C / 32;
    const float* rec = p.rec + size_t(head) * D * D + column0;
#pragma unroll
    for (int i = thread; i < D * row_lines; i += 2 * D) prefetch_line(rec + i / row_lines * D + i % row_lines * 32);
  }

  const float a_log = p.a_log[head], dt_bias = p.dt_bias[head];
  Semaphore* semaphores = p.semaphores + b * p.value_heads;
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
  const half* in = static_cast<const half*>(p.qkvz) + size_t(s.begin) * row_halves;
  half next, next_other, first_b, first_a;
  const auto load_inputs = [&] {
    next = in[channel], next_other = in[other];
    const half* ba = gate_inputs(p, min(s.begin + lane, s.end - 1), head);
    first_b = ba[0], first_a = ba[p.value_heads];
  };
  if (!kStartsEarly) load_inputs();
  half* conv = static_cast<half*>(p.conv) + size_t(s.slot) * num_channels * kHistory;
  Channel own, own_v;
  own.load(p, channel, conv, s.is_fresh);
  own_v.load(p, has_v ? other : channel, conv, s.is_fresh || !has_v);  // no branch: it would wait for its loads

  const int row0 = (warp * (32 / lanes) + lane / lanes) * rows, column = 4 * (lane % lanes);
  const int in_state = (head * D + row0) * D + column0 + column;
  const auto state_at = [&](float* states, int i) { return states + size_t(i) * p.value_heads * D * D + in_state; };
  float4 state[rows];
#pragma unroll
  for (int i = 0; i < rows; ++i) state[i] = s.is_fresh ? float4{} : vector_at(state_at(p.rec, s.slot) + i * D);
  const float norm = has_z ? p.norm[column0 + thread - D] : 0.f;
  if (kStartsEarly) begin(), load_inputs();
  unsigned readers = 0;
  const unsigned last_reader = gridDim.x - 1;

  for (int token = s.begin; token < s.end; ++token) {
    const int number = token - s.begin;
    float* k = shared.in[number % 2];
    float* q = k + D;
    float* v = q + D;
    k[thread] = own.advance(next);  // q follows k
    if (has_v) v[thread] = own_v.advance(next_other);
    if (has_z) v[C + thread - D] = norm * silu(__half2float(next_other));
    const bool is_last = token + 1 == s.end;
    if (warp == warps - 1 && number % 32 == 0) {
      if (number) {
        const half* ba = gate_inputs(p, min(token + lane, s.end - 1), head);
        first_b = ba[0], first_a = ba[p.value_heads];
      }
      const Gates gate = make_gates(a_log, dt_bias, first_b, first_a);
      shared.gates[(number + lane) % 64] = {expf(gate.log_decay), gate.beta};
    }
    if (!is_last) {
      in += row_halves;
      next = in[channel], next_other = in[other];
    }
    __syncthreads();
    // The last of the blocks that share a key head to have read the convolution's state may write it. What was read has
    // been used before the barrier, so that no fence is needed.
    if (last_reader && thread == 0 && number == 0) {
      readers = atomicInc(&semaphores[key_head * repeat].readers, last_reader);
    }

    if (warp == 0) shared.kk = dot<D>(k, k);
    if (warp == 1) shared.qq = dot<D>(q, q);
    if (warp == 2 % warps) shared.kq = dot<D>(k, q);
    float4 by_k{}, by_q{};
#pragma unroll
    for (int i = 0; i < rows; i += 4) {
      const float4 k4 = vector_at(k + row0 + i), q4 = vector_at(q + row0 + i);
      by_k = fma(k4.x, state[i], by_k), by_q = fma(q4.x, state[i], by_q);
      by_k = fma(k4.y, state[i + 1], by_k), by_q = fma(q4.y, state[i + 1], by_q);
      by_k = fma(k4.z, state[i + 2], by_k), by_q = fma(q4.z, state[i + 2], by_q);
      by_k = fma(k4.w, state[i + 3], by_k), by_q = fma(q4.w, state[i + 3], by_q);
    }
#pragma unroll
    for (int i = 16; i >= lanes; i /= 2) by_k = add_from_lane(by_k, i), by_q = add_from_lane(by_q, i);
    if (lane < lanes) {
      vector_at(&shared.partial[0][warp][column]) = by_k;
      vector_at(&shared.partial[1][warp][column]) = by_q;
    }
    __syncthreads();
    if (thread < 2 * C) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < warps; ++w) sum += shared.partial[thread / C][w][thread % C];
      shared.product[thread / C][thread % C] = sum;
    }
    const float decay = shared.gates[number % 64].x, k_scale = rsqrtf(shared.kk + kL2Eps);
#pragma unroll
    for (int i = 0; i < rows; ++i) state[i] = decay * state[i];
    __syncthreads();

    const float4 sk = vector_at(&shared.product[0][column]);
    const float beta = shared.gates[number % 64].y;
    const float4 d = beta * fma(-decay * k_scale, sk, vector_at(v + column)), scaled_d = k_scale * d;
    const auto mix = [&] {
      const float4 sq = vector_at(&shared.product[1][column]);
      return rsqrtf((shared.qq + kL2Eps) * D) * fma(shared.kq * k_scale, d, decay * sq);
    };
    if (splits > 1 && warp == 0) publish<splits>(semaphores[head], split, number + 1, squares_of<lanes>(mix()));
    float* to = p.rec_steps ? state_at(p.rec_steps, token) : state_at(p.rec, s.slot);
    const bool is_stored = p.rec_steps || is_last;
#pragma unroll
    for (int i = 0; i < rows; i += 4) {
      const float4 k4 = vector_at(k + row0 + i);
      state[i] = fma(k4.x, scaled_d, state[i]), state[i + 1] = fma(k4.y, scaled_d, state[i + 1]);
      state[i + 2] = fma(k4.z, scaled_d, state[i + 2]), state[i + 3] = fma(k4.w, scaled_d, state[i + 3]);
      if (!is_stored) continue;
#pragma unroll
      for (int j = i; j < i + 4; ++j) vector_at(to + j * D) = state[j];
    }
    if (p.conv_steps) {
      half* steps = static_cast<half*>(p.conv_steps) + size_t(token) * num_channels * kHistory;
      own.store(steps, channel);  // blocks that share a key head write the same
      if (has_v) own_v.store(steps, other);
    }

    if (warp == 0) {
      const float4 o = mix();
      const float squares =
          splits > 1 ? collect<splits>(semaphores[head], split, number + 1, is_last) : squares_of<lanes>(o);
      const float scale = rsqrtf(squares / D + p.norm_eps);
      const float4 gate = vector_at(v + C + column);
      const float out[4] = {o.x * scale * gate.x, o.y * scale * gate.y, o.z * scale * gate.z, o.w * scale * gate.w};
      half* y = static_cast<half*>(p.y) + (size_t(token) * p.value_heads + head) * D + column0 + column;
      if (lane < lanes) store_halves(y, out);
    }
  }

  if (p.rec_steps) {
#pragma unroll
    for (int i = 0; i < rows; ++i) vector_at(state_at(p.rec, s.slot) + i * D) = state[i];
  }
  if (has_v) own_v.store(conv, other);
  if (last_reader) {
    if (thread == 0) shared.is_last_reader = readers == last_reader;
    __syncthreads();
    if (!shared.is_last_reader) return;
  }
  own.store(conv, channel);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(64) gated_delta_step_32(GatedDeltaParams p) { step<32, 32>(p); }
extern "C" __global__ void __launch_bounds__(128) gated_delta_step_64(GatedDeltaParams p) { step<64, 64>(p); }
extern "C" __global__ void __launch_bounds__(256, 2) gated_delta_step_128(GatedDeltaParams p) { step<128, 128>(p); }
extern "C" __global__ void __launch_bounds__(128) gated_delta_step_64_split(GatedDeltaParams p) { step<64, 32>(p); }
extern "C" __global__ void __launch_bounds__(256) gated_delta_step_128_split(GatedDeltaParams p) { step<128, 32>(p); }

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
