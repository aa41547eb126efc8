// SPDX-License-Identifier: Apache-2.0
// What the kernels of the gated delta op share: sequences, gates, activations.
#pragma once

#include "common/ptx.cuh"
#include "kernels/gated_delta/params.h"

namespace orin {

constexpr float kL2Eps = 1e-6f;  // added to the sum of squares when q and k are normalised

// exp(x) in two instructions, without the steps that keep denormal numbers. Volatile, so that a choice between the
// result and zero stays a choice and does not become a branch.
__device__ __forceinline__ float fast_exp(float x) {
  float e;
  asm volatile("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(e) : "f"(x * 1.44269504f));
  return e;
}

__device__ __forceinline__ float silu(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(r) : "f"(1.f + fast_exp(-x)));
  return x * r;
}

template <int lanes = 32>
__device__ __forceinline__ float sum_over(float x) {
#pragma unroll
  for (int i = lanes / 2; i; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  return x;
}

__device__ __forceinline__ uint32 pack(float low, float high) {
  const half2 h = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32*>(&h);
}

__device__ __forceinline__ float2 unpack(uint32 pair) { return __half22float2(*reinterpret_cast<const half2*>(&pair)); }

// N neighbouring halves, aligned, as pairs.
template <int N>
struct alignas(2 * N) Halves {
  uint32 pair[N / 2];
};

template <int N>
__device__ __forceinline__ Halves<N> load_halves(const half* from) {
  return *reinterpret_cast<const Halves<N>*>(from);
}

template <int N>
__device__ __forceinline__ void widen(const Halves<N>& from, float (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    const float2 pair = unpack(from.pair[i]);
    to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
  }
}

template <int N>
__device__ __forceinline__ void store_halves(half* to, const float (&from)[N]) {
  Halves<N> out;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) out.pair[i] = pack(from[2 * i], from[2 * i + 1]);
  *reinterpret_cast<Halves<N>*>(to) = out;
}

struct Gates {
  float log_decay;  // g = -exp(A_log) softplus(a + dt_bias)
  float beta;       // sigmoid(b)
};

// Values, not addresses: who loads them early does not wait for one after the other here.
__device__ __forceinline__ Gates make_gates(float a_log, float dt_bias, half b, half a) {
  const float x = __half2float(a) + dt_bias, softplus = fmaxf(x, 0.f) + log1pf(expf(-fabsf(x)));
  return {-expf(a_log) * softplus, __fdividef(1.f, 1.f + expf(-__half2float(b)))};
}

// b of a token and head; a lies value_heads further.
__device__ __forceinline__ const half* gate_inputs(const GatedDeltaParams& p, int token, int head) {
  return static_cast<const half*>(p.ba) + size_t(token) * 2 * p.value_heads + head;
}

struct Sequence {
  int begin, end;  // tokens of this step
  int slot;        // -1: padded
  bool is_fresh;   // the slot's state counts as zero and may hold anything
};

__device__ __forceinline__ Sequence sequence(const GatedDeltaParams& p, int b) {
  return {p.cu_seqlens[b], p.cu_seqlens[b + 1], p.slots[b], p.past_lens[b] == 0};
}

__device__ __forceinline__ int conv_heads(const GatedDeltaParams& p) { return 2 * p.key_heads + p.value_heads; }

}  // namespace orin
