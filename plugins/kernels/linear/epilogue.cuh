// SPDX-License-Identifier: Apache-2.0
// What both kinds of kernel share: reading int8 weights and what follows the product.
#pragma once

#include "common/ptx.cuh"
#include "kernels/linear/params.h"

namespace orin {

// Row of x behind row `output` of y; -1 where nothing is wanted.
__device__ __forceinline__ int wanted_row(const int* rows, int output, int tokens) {
  const int row = rows ? rows[output] : output;
  return row >= 0 && row < tokens ? row : -1;
}

// Four int8 as two half2, exactly: the byte with its sign bit turned, placed in the mantissa of 1024, is 1152 + value.
__device__ __forceinline__ void widen(uint32 bytes, uint32& low, uint32& high) {
  const uint32 shifted = bytes ^ 0x80808080u;
  const half2 offset = __float2half2_rn(1152.0f);
  const uint32 a = __byte_perm(shifted, 0x64646464u, 0x4140), b = __byte_perm(shifted, 0x64646464u, 0x4342);
  const half2 x = __hsub2(reinterpret_cast<const half2&>(a), offset);
  const half2 y = __hsub2(reinterpret_cast<const half2&>(b), offset);
  low = reinterpret_cast<const uint32&>(x), high = reinterpret_cast<const uint32&>(y);
}

__device__ __forceinline__ void store(const LinearParams& p, size_t at, float value, bool is_wanted) {
  if (p.residual && is_wanted) value += __half2float(static_cast<const half*>(p.residual)[at]);
  if (!is_wanted) value = 0.0f;
  if (p.float32_output) {
    static_cast<float*>(p.y)[at] = value;
  } else {
    static_cast<half*>(p.y)[at] = __float2half_rn(value);
  }
}

// Two neighbouring sums of row `output`, the first in an even column: scale, bias, swiglu, residual.
__device__ __forceinline__ void finish(const LinearParams& p, int output, int column, float first, float second) {
  if (output >= p.outputs || column >= p.n) return;
  const bool is_wanted = wanted_row(p.rows, output, p.tokens) >= 0;
  const bool has_second = column + 1 < p.n;
  if (p.scale) {
    first *= __half2float(static_cast<const half*>(p.scale)[column]);
    if (has_second) second *= __half2float(static_cast<const half*>(p.scale)[column + 1]);
  }
  if (p.bias) {
    first += __half2float(static_cast<const half*>(p.bias)[column]);
    if (has_second) second += __half2float(static_cast<const half*>(p.bias)[column + 1]);
  }
  if (p.swiglu) {
    store(p, size_t(output) * (p.n / 2) + column / 2, first / (1.0f + expf(-first)) * second, is_wanted);
    return;
  }
  store(p, size_t(output) * p.n + column, first, is_wanted);
  if (has_second) store(p, size_t(output) * p.n + column + 1, second, is_wanted);
}

// Sum over the 32 lanes, in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int step = 16; step; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// Sum over a row of x, by warp `share` of `shares`, in every lane. Four loads are in flight, also where the row ends.
__device__ __forceinline__ float sum_of_squares(const half* row, int k, int share, int shares) {
  float sum = 0.0f;
  const int stride = 256 * shares;
  for (int i = 8 * (threadIdx.x % 32 + 32 * share); i < k; i += 4 * stride) {
    uint4 raw[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      raw[j] = i + j * stride < k ? *reinterpret_cast<const uint4*>(row + i + j * stride) : uint4{};
    }
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const float2 v = __half22float2(reinterpret_cast<const half2*>(raw)[j]);
      sum += v.x * v.x + v.y * v.y;
    }
  }
  return warp_sum(sum);
}

__device__ __forceinline__ float inverse_rms(float squares, int k, float eps) {
  return 1.0f / sqrtf(squares / float(k) + eps);
}

// Ask for 128 bytes that will be read soon.
__device__ __forceinline__ void prefetch(const void* from) { asm volatile("prefetch.global.L1 [%0];\n" ::"l"(from)); }

struct Norm {
  float2 pairs[4];
};

__device__ __forceinline__ Norm load_norm(const float* from) {
  const float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
  return {{{a.x, a.y}, {a.z, a.w}, {b.x, b.y}, {b.z, b.w}}};
}

// Eight values of x times 1/rms times the norm's weight.
__device__ __forceinline__ uint4 normalised(uint4 raw, const Norm& norm, float inverse) {
  half2* pairs = reinterpret_cast<half2*>(&raw);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 v = __half22float2(pairs[j]);
    pairs[j] = __floats2half2_rn(v.x * inverse * norm.pairs[j].x, v.y * inverse * norm.pairs[j].y);
  }
  return raw;
}

}  // namespace orin
