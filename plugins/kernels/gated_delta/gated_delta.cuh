// SPDX-License-Identifier: Apache-2.0
// What the kernels of the gated delta op share: sequences, gates, activations.
#pragma once

#include "common/ptx.cuh"
#include "kernels/gated_delta/params.h"

namespace orin {

constexpr float kL2Eps = 1e-6f;  // added to the sum of squares when q and k are normalised

__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.f + __expf(-x)); }

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

// N neighbouring halves (2 or 4), aligned.
template <int N>
__device__ __forceinline__ void load_halves(const half* from, float (&to)[N]) {
  uint32 raw[N / 2];
  if constexpr (N == 4) {
    const uint2 v = *reinterpret_cast<const uint2*>(from);
    raw[0] = v.x, raw[1] = v.y;
  } else {
    raw[0] = *reinterpret_cast<const uint32*>(from);
  }
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {
    const float2 pair = unpack(raw[i]);
    to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
  }
}

template <int N>
__device__ __forceinline__ void store_halves(half* to, const float (&from)[N]) {
  if constexpr (N == 4) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack(from[0], from[1]), pack(from[2], from[3]));
  } else {
    *reinterpret_cast<uint32*>(to) = pack(from[0], from[1]);
  }
}

struct Gates {
  float log_decay;  // g = -exp(A_log) softplus(a + dt_bias)
  float beta;       // sigmoid(b)
};

__device__ __forceinline__ Gates gates(const GatedDeltaParams& p, int token, int head) {
  const half* row = static_cast<const half*>(p.ba) + size_t(token) * 2 * p.value_heads + head;
  const float b = __half2float(row[0]), a = __half2float(row[p.value_heads]) + p.dt_bias[head];
  const float softplus = fmaxf(a, 0.f) + log1pf(expf(-fabsf(a)));
  return {-expf(p.a_log[head]) * softplus, 1.f / (1.f + expf(-b))};
}

struct Sequence {
  int begin, end;  // tokens of this step
  int slot;        // -1: padded
  bool is_fresh;   // the slot's state counts as zero and may hold anything
};

// Sequence number p.sequences is the padded one behind the last: tokens that belong to nobody.
__device__ __forceinline__ Sequence sequence(const GatedDeltaParams& p, int b) {
  if (b == p.sequences) return {p.cu_seqlens[b], p.tokens, -1, true};
  return {p.cu_seqlens[b], p.cu_seqlens[b + 1], p.slots[b], p.past_lens[b] == 0};
}

__device__ __forceinline__ int channels(const GatedDeltaParams& p, int dim) {
  return (2 * p.key_heads + p.value_heads) * dim;
}

}  // namespace orin
