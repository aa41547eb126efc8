// SPDX-License-Identifier: Apache-2.0
// OrinGatedDelta token by token: one launch for a decode step, and for a few tokens of each sequence whose every state
// may be wanted (speculative decoding).
//
// A block owns one value head of one sequence and keeps its state, D x D float32, in registers from the first token to
// the last; for one token the launch is one read and one write of the state, and everything else hides behind the read.
//
//   warp w, lane l:  rows  (w 32/L + l/L) R .. + R - 1,  columns 4 (l % L) .. + 3      L = D/4 lanes a row, R = D/16 rows
//
// Both products with the state use the old one, so that a token needs one reduction over the warps, not two:
//   d = beta (v - e^g S^T k)      o = S'^T q = e^g S^T q + (k.q) d      S' = e^g S + k d^T
// q and k enter unnormalised; their lengths are factors of the sums.
#include "kernels/gated_delta/gated_delta.cuh"

using namespace orin;

namespace {

template <int D>
struct Step {
  static constexpr int kWarps = D / 8;
  static constexpr int kLanes = D / 4;                   // of one state row
  static constexpr int kRows = D * kLanes / (32 * kWarps);  // of one thread

  float kqv[2][3 * D];  // convolved k, q, v of a token; two buffers save a barrier
  float partial[2][kWarps][D];
  float product[2][D];  // S^T k, S^T q
  bool is_last_reader;
};

// One thread's channel: its taps, and the inputs that are still inside the window.
struct Channel {
  float tap[kConvTaps];
  half input[kConvTaps - 1];
};

template <int D>
__device__ void zero_rows(const GatedDeltaParams& p, int head, int begin, int end) {
  half* y = static_cast<half*>(p.y) + head * D;
  for (int i = threadIdx.x; i < (end - begin) * D; i += blockDim.x) {
    y[size_t(begin + i / D) * p.value_heads * D + i % D] = half(0.f);
  }
}

template <int D>
__device__ void step(const GatedDeltaParams& p) {
  using S = Step<D>;
  __shared__ S shared;
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int head = blockIdx.x, b = blockIdx.y;
  const int repeat = p.value_heads / p.key_heads, key_head = head / repeat;
  const int num_channels = channels(p, D), row_halves = num_channels + p.value_heads * D;

  // k, q, v in this order: the first D threads own k.
  const bool is_channel = thread < 3 * D, is_shared_channel = thread < 2 * D && repeat > 1;
  const int channel = thread < D       ? (p.key_heads + key_head) * D + thread
                      : thread < 2 * D ? key_head * D + thread - D
                                       : 2 * p.key_heads * D + head * D + thread - 2 * D;
  Channel own{};
  if (is_channel) load_halves(static_cast<const half*>(p.conv_weight) + channel * kConvTaps, own.tap);

  const Sequence s = sequence(p, b);
  if (b == p.sequences - 1) zero_rows<D>(p, head, s.end, p.tokens);
  if (s.slot < 0) zero_rows<D>(p, head, s.begin, s.end);
  if (s.slot < 0 || s.begin >= s.end) return;

  const half* in = static_cast<const half*>(p.qkvz) + channel;
  half* conv = static_cast<half*>(p.conv) + (size_t(s.slot) * num_channels + channel) * (kConvTaps - 1);
  half next = is_channel ? in[size_t(s.begin) * row_halves] : half(0.f);
#pragma unroll
  for (int i = 0; i < kConvTaps - 1; ++i) own.input[i] = is_channel && !s.is_fresh ? conv[i] : half(0.f);

  const int row0 = (warp * (32 / S::kLanes) + lane / S::kLanes) * S::kRows, column = 4 * (lane % S::kLanes);
  const size_t state_floats = size_t(p.value_heads) * D * D;
  const size_t in_state = (size_t(head) * D + row0) * D + column;
  float* rec = p.rec + s.slot * state_floats + in_state;
  float4 state[S::kRows];
#pragma unroll
  for (int i = 0; i < S::kRows; ++i) {
    state[i] = s.is_fresh ? float4{} : *reinterpret_cast<const float4*>(rec + i * D);
  }
  const float4 norm = *reinterpret_cast<const float4*>(p.norm + column);
  unsigned readers = 0;

  for (int token = s.begin; token < s.end; ++token) {
    float* kqv = shared.kqv[(token - s.begin) % 2];
    const Gates gate = gates(p, token, head);
    if (is_channel) {
      float c = own.tap[kConvTaps - 1] * __half2float(next);
#pragma unroll
      for (int i = 0; i < kConvTaps - 1; ++i) c += own.tap[i] * __half2float(own.input[i]);
      kqv[thread] = silu(c);
#pragma unroll
      for (int i = 0; i < kConvTaps - 2; ++i) own.input[i] = own.input[i + 1];
      own.input[kConvTaps - 2] = next;
      if (token + 1 < s.end) next = in[size_t(token + 1) * row_halves];
    }
    float z[4];
    if (warp == 0) {
      load_halves(static_cast<const half*>(p.qkvz) + size_t(token) * row_halves + num_channels + head * D + column, z);
    }
    __syncthreads();
    // The last of the blocks that share a key head to have read the convolution's state may write it.
    if (repeat > 1 && thread == 0 && token == s.begin) {
      __threadfence();
      readers = atomicInc(&p.semaphores[b * p.key_heads + key_head], repeat - 1);
    }

    float kk = 0, qq = 0, kq = 0;
#pragma unroll
    for (int i = lane; i < D; i += 32) kk += kqv[i] * kqv[i], qq += kqv[D + i] * kqv[D + i], kq += kqv[i] * kqv[D + i];
    kk = sum_over(kk), qq = sum_over(qq), kq = sum_over(kq);
    const float k_scale = rsqrtf(kk + kL2Eps), q_scale = rsqrtf((qq + kL2Eps) * D), decay = expf(gate.log_decay);

    float k[S::kRows];
    float4 by_k{}, by_q{};
#pragma unroll
    for (int i = 0; i < S::kRows; ++i) {
      k[i] = kqv[row0 + i] * k_scale;
      const float q = kqv[D + row0 + i];
      by_k.x += k[i] * state[i].x, by_k.y += k[i] * state[i].y, by_k.z += k[i] * state[i].z, by_k.w += k[i] * state[i].w;
      by_q.x += q * state[i].x, by_q.y += q * state[i].y, by_q.z += q * state[i].z, by_q.w += q * state[i].w;
    }
#pragma unroll
    for (int i = 16; i >= S::kLanes; i /= 2) {
      by_k.x += __shfl_xor_sync(~0u, by_k.x, i), by_k.y += __shfl_xor_sync(~0u, by_k.y, i);
      by_k.z += __shfl_xor_sync(~0u, by_k.z, i), by_k.w += __shfl_xor_sync(~0u, by_k.w, i);
      by_q.x += __shfl_xor_sync(~0u, by_q.x, i), by_q.y += __shfl_xor_sync(~0u, by_q.y, i);
      by_q.z += __shfl_xor_sync(~0u, by_q.z, i), by_q.w += __shfl_xor_sync(~0u, by_q.w, i);
    }
    if (lane < S::kLanes) {
      *reinterpret_cast<float4*>(&shared.partial[0][warp][column]) = by_k;
      *reinterpret_cast<float4*>(&shared.partial[1][warp][column]) = by_q;
    }
    __syncthreads();
    if (thread < 2 * D) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < S::kWarps; ++w) sum += shared.partial[thread / D][w][thread % D];
      shared.product[thread / D][thread % D] = sum;
    }
    __syncthreads();

    const float4 sk = *reinterpret_cast<const float4*>(&shared.product[0][column]);
    const float4 v = *reinterpret_cast<const float4*>(&kqv[2 * D + column]);
    const float4 d = {gate.beta * (v.x - decay * sk.x), gate.beta * (v.y - decay * sk.y),
                      gate.beta * (v.z - decay * sk.z), gate.beta * (v.w - decay * sk.w)};
#pragma unroll
    for (int i = 0; i < S::kRows; ++i) {
      state[i] = {decay * state[i].x + k[i] * d.x, decay * state[i].y + k[i] * d.y, decay * state[i].z + k[i] * d.z,
                  decay * state[i].w + k[i] * d.w};
      float* to = p.rec_steps ? p.rec_steps + token * state_floats + in_state : rec;
      if (p.rec_steps || token + 1 == s.end) *reinterpret_cast<float4*>(to + i * D) = state[i];
    }
    if (p.conv_steps && is_channel) {
      half* to = static_cast<half*>(p.conv_steps) + (size_t(token) * num_channels + channel) * (kConvTaps - 1);
#pragma unroll
      for (int i = 0; i < kConvTaps - 1; ++i) to[i] = own.input[i];
    }

    if (warp == 0) {
      const float4 sq = *reinterpret_cast<const float4*>(&shared.product[1][column]);
      const float dot = kq * k_scale;
      const float4 o = {q_scale * (decay * sq.x + dot * d.x), q_scale * (decay * sq.y + dot * d.y),
                        q_scale * (decay * sq.z + dot * d.z), q_scale * (decay * sq.w + dot * d.w)};
      const float squares = sum_over<S::kLanes>(o.x * o.x + o.y * o.y + o.z * o.z + o.w * o.w);
      const float scale = rsqrtf(squares / D + p.norm_eps);
      const float out[4] = {o.x * scale * norm.x * silu(z[0]), o.y * scale * norm.y * silu(z[1]),
                            o.z * scale * norm.z * silu(z[2]), o.w * scale * norm.w * silu(z[3])};
      half* y = static_cast<half*>(p.y) + (size_t(token) * p.value_heads + head) * D + column;
      if (lane < S::kLanes) store_halves(y, out);
    }
  }

  if (p.rec_steps) {
#pragma unroll
    for (int i = 0; i < S::kRows; ++i) *reinterpret_cast<float4*>(rec + i * D) = state[i];
  }
  if (repeat > 1) {
    if (thread == 0) shared.is_last_reader = readers == unsigned(repeat - 1);
    __syncthreads();
  }
  if (is_channel && (!is_shared_channel || shared.is_last_reader)) {
#pragma unroll
    for (int i = 0; i < kConvTaps - 1; ++i) conv[i] = own.input[i];
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128) gated_delta_step_32(GatedDeltaParams p) { step<32>(p); }
extern "C" __global__ void __launch_bounds__(256) gated_delta_step_64(GatedDeltaParams p) { step<64>(p); }
extern "C" __global__ void __launch_bounds__(512) gated_delta_step_128(GatedDeltaParams p) { step<128>(p); }

// Back to the state after the first `accepted` tokens of each sequence.
extern "C" __global__ void gated_delta_restore(RestoreParams p) {
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
