// SPDX-License-Identifier: Apache-2.0
// What the INT4 GEMM kernels share: reading the kernel layout (drawn in toolkit/orinkit/int4.py), dequantising into
// tensor-core fragments, and what follows the product.
#pragma once

#include "common/ptx.cuh"
#include "kernels/int4_gemm/params.h"

namespace orin {

// 4 or 8 bytes from global to shared memory; zeros where `valid` is false.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* to, const void* from, bool valid = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(to)), "l"(from), "n"(kBytes),
               "r"(valid ? kBytes : 0));
}

// One stripe (8 rows of W, fewer at the end) and one chunk (128 columns, fewer at the end) of it.
template <int kGroup>
struct Piece {
  static constexpr int kGroups = kChunkColumns / kGroup;            // groups of a chunk
  static constexpr int kZeroPairs = kGroups > 2 ? kGroups / 2 : 1;  // bytes of zero points of a row in a chunk

  int rows;    // 1..8
  int words;   // of 8 nibbles that each of 4 lanes holds of a row: 1..4
  int groups;  // that the chunk has: 0..kGroups
  const char* weight;
  const char* scales;
  const char* zeros;

  __device__ Piece(const Int4GemmParams& p, int stripe, int chunk) {
    const int all_groups = p.k / kGroup;
    rows = min(kStripeRows, p.n - stripe * kStripeRows);
    words = min(4, p.k / 32 - 4 * chunk);
    groups = min(kGroups, all_groups - chunk * kGroups);
    weight = static_cast<const char*>(p.weight) + size_t(stripe) * 4 * p.k + rows * 64 * chunk;
    scales =
        static_cast<const char*>(p.scales) + (size_t(stripe) * kStripeRows * all_groups + chunk * kGroups * rows) * 2;
    zeros = static_cast<const char*>(p.zeros) + size_t(stripe) * kStripeRows * ((all_groups + 1) / 2) +
            chunk * kGroups / 2 * rows;
  }

  // The nibbles of lane (row lane / 4) of a ragged piece; absent ones are 0 and meet zeros of x.
  __device__ uint4 ragged_weight(int lane) const {
    uint4 w = {0, 0, 0, 0};
    if (lane / 4 < rows) {
      const uint32* from = reinterpret_cast<const uint32*>(weight) + lane * words;
      w.x = from[0];
      if (words > 1) w.y = from[1];
      if (words > 2) w.z = from[2];
      if (words > 3) w.w = from[3];
    }
    return w;
  }

  __device__ half ragged_scale(int group, int row) const {
    return group < groups && row < rows ? reinterpret_cast<const half*>(scales)[group * rows + row] : half(0.f);
  }

  __device__ unsigned char ragged_zeros(int pair, int row) const {
    const bool is_there = 2 * pair < groups && row < rows;
    return is_there ? reinterpret_cast<const unsigned char*>(zeros)[pair * rows + row] : 0;
  }
};

__device__ __forceinline__ uint32 bits(half2 v) { return *reinterpret_cast<uint32*>(&v); }
__device__ __forceinline__ half2 halves(uint32 v) { return *reinterpret_cast<half2*>(&v); }

// A nibble q lies in the mantissa of 1024 (low) or, 16 times as large, of 1024 again (high): 0x6400 | q = 1024 + q and
// 0x6400 | q << 4 = 1024 + 16 q. Subtracting 1024 + z, and 64 + z after dividing by 16, leaves q - z exactly.
struct ZeroPoint {
  half2 low;   // -(1024 + z), twice
  half2 high;  // -(64 + z), twice

  __device__ explicit ZeroPoint(uint32 z = 8) {
    const uint32 negative = 0xe400e400 | z | z << 16;  // -(1024 + z)
    low = halves(negative);
    high = __hadd2(low, halves(0x63806380));  // + 960
  }
};

// b[j] = (q[2j] - z, q[2j+1] - z) of the eight neighbouring columns of a word; its nibbles lie in bit-reversed order.
__device__ __forceinline__ void dequantise(uint32 word, const ZeroPoint& zero, uint32 (&b)[4]) {
  constexpr int kAndOr = (0xf0 & 0xcc) | 0xaa;
  const half2 sixteenth = halves(0x2c002c00);
  const uint32 upper = word >> 8;
  b[0] = bits(__hadd2(halves(lop3<kAndOr>(word, 0x000f000f, 0x64006400)), zero.low));
  b[1] = bits(__hadd2(halves(lop3<kAndOr>(upper, 0x000f000f, 0x64006400)), zero.low));
  b[2] = bits(__hfma2(halves(lop3<kAndOr>(word, 0x00f000f0, 0x64006400)), sixteenth, zero.high));
  b[3] = bits(__hfma2(halves(lop3<kAndOr>(upper, 0x00f000f0, 0x64006400)), sixteenth, zero.high));
}

// D = A B, m16n8k16: the first step of a sum needs no zeroed registers.
__device__ __forceinline__ void mma_first(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};\n"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(0.f));
}

__device__ __forceinline__ float silu(float v) { return v / (1.f + __expf(-v)); }

// The same in every lane of the warp.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int step = 16; step; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

// Of 256 neighbouring columns, 8 per lane of a warp.
__device__ __forceinline__ float sum_of_squares(const uint4& x) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 v = __half22float2(halves((&x.x)[i]));
    sum += v.x * v.x + v.y * v.y;
  }
  return warp_sum(sum);
}

__device__ __forceinline__ uint4 normalised(const uint4& x, float scale, const float4 (&w)[2]) {
  const float2 a = __half22float2(halves(x.x)), b = __half22float2(halves(x.y));
  const float2 c = __half22float2(halves(x.z)), d = __half22float2(halves(x.w));
  return {bits(__floats2half2_rn(a.x * scale * w[0].x, a.y * scale * w[0].y)),
          bits(__floats2half2_rn(b.x * scale * w[0].z, b.y * scale * w[0].w)),
          bits(__floats2half2_rn(c.x * scale * w[1].x, c.y * scale * w[1].y)),
          bits(__floats2half2_rn(d.x * scale * w[1].z, d.y * scale * w[1].w))};
}

// The residual of columns `column` (even) and column + 1 of one token, or of the one that swiglu makes of them.
__device__ __forceinline__ float2 residual_of(const Int4GemmParams& p, int token, int column) {
  if (!p.residual || column >= p.n || token >= p.tokens) return {};
  const half* residual = static_cast<const half*>(p.residual);
  if (p.swiglu) return {__half2float(residual[size_t(token) * (p.n / 2) + column / 2]), 0.f};
  residual += size_t(token) * p.n + column;
  if (p.n % 2 == 0) return __half22float2(*reinterpret_cast<const half2*>(residual));
  return {__half2float(residual[0]), column + 1 < p.n ? __half2float(residual[1]) : 0.f};
}

// Bias, activation, residual and the store of columns `column` (even) and column + 1 of one token. A skipped row of
// the output is zero.
__device__ __forceinline__ void finish(const Int4GemmParams& p, int token, int column, float a, float b,
                                       float2 residual) {
  if (column >= p.n) return;
  if (p.is_plain) {
    half2* y = reinterpret_cast<half2*>(static_cast<half*>(p.y) + size_t(token) * p.n + column);
    *y = __floats2half2_rn(a + residual.x, b + residual.y);
    return;
  }
  const bool has_b = column + 1 < p.n;
  if (p.bias) {
    const half* bias = static_cast<const half*>(p.bias) + column;
    a += __half2float(bias[0]);
    if (has_b) b += __half2float(bias[1]);
  }
  const bool is_skipped = p.rows && p.rows[token] < 0;
  if (p.swiglu) a = silu(a) * b;
  a = is_skipped ? 0.f : a + residual.x;
  b = is_skipped ? 0.f : b + residual.y;
  const size_t at = p.swiglu ? size_t(token) * (p.n / 2) + column / 2 : size_t(token) * p.n + column;
  const bool is_pair = p.n % 2 == 0 && !p.swiglu;  // an odd n puts every other row off the alignment of pairs
  if (p.float32_output) {
    float* y = static_cast<float*>(p.y) + at;
    if (is_pair) {
      *reinterpret_cast<float2*>(y) = make_float2(a, b);
    } else {
      y[0] = a;
      if (has_b && !p.swiglu) y[1] = b;
    }
  } else {
    half* y = static_cast<half*>(p.y) + at;
    if (is_pair) {
      *reinterpret_cast<half2*>(y) = __floats2half2_rn(a, b);
    } else {
      y[0] = __float2half_rn(a);
      if (has_b && !p.swiglu) y[1] = __float2half_rn(b);
    }
  }
}

__device__ __forceinline__ void finish(const Int4GemmParams& p, int token, int column, float a, float b) {
  finish(p, token, column, a, b, residual_of(p, token, column));
}

// Adds eight neighbouring float16 values.
__device__ __forceinline__ void add_eight(const void* from, size_t at, float (&v)[8]) {
  const uint4 more = *reinterpret_cast<const uint4*>(static_cast<const half*>(from) + at);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 m = __half22float2(halves((&more.x)[i]));
    v[2 * i] += m.x;
    v[2 * i + 1] += m.y;
  }
}

__device__ __forceinline__ void store_eight(const Int4GemmParams& p, size_t at, const float (&v)[8]) {
  if (p.float32_output) {
    float4* y = reinterpret_cast<float4*>(static_cast<float*>(p.y) + at);
    y[0] = make_float4(v[0], v[1], v[2], v[3]);
    y[1] = make_float4(v[4], v[5], v[6], v[7]);
  } else {
    *reinterpret_cast<uint4*>(static_cast<half*>(p.y) + at) = {
        bits(__floats2half2_rn(v[0], v[1])), bits(__floats2half2_rn(v[2], v[3])), bits(__floats2half2_rn(v[4], v[5])),
        bits(__floats2half2_rn(v[6], v[7]))};
  }
}

// The four that swiglu makes of eight.
__device__ __forceinline__ void store_gated(const Int4GemmParams& p, int token, int column, bool is_skipped,
                                            const float (&v)[8]) {
  const size_t at = size_t(token) * (p.n / 2) + column / 2;
  float g[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) g[i] = silu(v[2 * i]) * v[2 * i + 1];
  if (p.residual) {
    const uint2 residual = *reinterpret_cast<const uint2*>(static_cast<const half*>(p.residual) + at);
    const float2 r0 = __half22float2(halves(residual.x)), r1 = __half22float2(halves(residual.y));
    g[0] += r0.x, g[1] += r0.y, g[2] += r1.x, g[3] += r1.y;
  }
  if (is_skipped) g[0] = g[1] = g[2] = g[3] = 0.f;
  if (p.float32_output) {
    *reinterpret_cast<float4*>(static_cast<float*>(p.y) + at) = make_float4(g[0], g[1], g[2], g[3]);
  } else {
    *reinterpret_cast<uint2*>(static_cast<half*>(p.y) + at) = {bits(__floats2half2_rn(g[0], g[1])),
                                                               bits(__floats2half2_rn(g[2], g[3]))};
  }
}

// The same for eight columns from a multiple of 8, where n is one too: 16 bytes at a time.
__device__ __forceinline__ void finish_eight(const Int4GemmParams& p, int token, int column, float (&v)[8]) {
  const size_t at = size_t(token) * p.n + column;
  bool is_skipped = false;
  if (!p.is_plain) {
    if (p.bias) add_eight(p.bias, column, v);
    is_skipped = p.rows && p.rows[token] < 0;
    if (p.swiglu) {
      store_gated(p, token, column, is_skipped, v);
      return;
    }
  }
  if (p.residual) add_eight(p.residual, at, v);
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = is_skipped ? 0.f : v[i];
  store_eight(p, at, v);
}

// The last of the blocks that share an output tile adds up what all of them left in `partials`, always in the order of
// the splits. The semaphore is zero again afterwards.
__device__ __forceinline__ bool is_last_split(const Int4GemmParams& p, int tile) {
  __threadfence();
  __syncthreads();
  __shared__ int arrived;
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    arrived = atomicAdd(p.semaphores + tile, 1);
    if (arrived == p.splits - 1) p.semaphores[tile] = 0;
  }
  __syncthreads();
  __threadfence();
  return arrived == p.splits - 1;
}

}  // namespace orin
