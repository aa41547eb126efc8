// SPDX-License-Identifier: Apache-2.0
// What the INT4 GEMM kernels for few tokens share.
//
// W is the m16 operand of m16n8k16 and the tokens the n8 operand: up to 8 tokens cost what one does. Nibbles are not
// converted: q in the low bits of a half is the subnormal 2^-24 q, 16 q is 2^-20 q, and the tensor core multiplies
// subnormals exactly. The zero point is taken off as zero * sum(x), where sum(x) is itself a product with ones.
#pragma once

#include "kernels/int4_gemm/int4.cuh"

namespace orin {

constexpr int kWarp = 32;
constexpr float kUnit = 1.f / (1 << 24);  // the smallest subnormal half
constexpr uint32 kOnes = 0x00010001;      // two of them

__device__ __forceinline__ uint32 load_u16(const void* pointer) {
  unsigned short v;
  asm volatile("ld.global.nc.u16 %0, [%1];\n" : "=h"(v) : "l"(pointer));
  return v;
}

__device__ __forceinline__ uint32 load_u8(const void* pointer) {
  uint32 v;
  asm volatile("ld.global.nc.u8 %0, [%1];\n" : "=r"(v) : "l"(pointer));
  return v;
}

// Volatile: the compiler must not move it behind the products. Not `nc`: the kernel in front may still write x when
// this one starts.
__device__ __forceinline__ uint4 load_x(const void* pointer) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];\n" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(pointer));
  return v;
}

// The eight neighbouring columns of a word as subnormal halves: a[0] and a[1] are q, a[2] and a[3] are 16 q.
__device__ __forceinline__ void nibbles(uint32 word, uint32 (&a)[4]) {
  const uint32 upper = word >> 8;
  a[0] = word & 0x000f000f;
  a[1] = upper & 0x000f000f;
  a[2] = word & 0x00f000f0;
  a[3] = upper & 0x00f000f0;
}

// D = A B + C, m16n8k16.
__device__ __forceinline__ void mma_from(float (&d)[4], const uint32 (&a)[4], uint32 b0, uint32 b1, float c0, float c1,
                                         float c2, float c3) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};\n"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c0), "f"(c1), "f"(c2), "f"(c3));
}

// What a lane holds of a chunk: row lane / 4 of each stripe, 8 columns of every 32.
template <int kGroup, bool kZeros, int kStripes>
struct Weights {
  using Part = Piece<kGroup>;
  uint32 word[kStripes][4];
  uint32 scale[kStripes][Part::kGroups];
  uint32 zeros[kZeros ? kStripes : 1][Part::kZeroPairs];

  // `weight`, `scales` and `zero` point to what this lane has of the first stripe.
  __device__ __forceinline__ void load(const Int4GemmParams& p, const char* weight, const char* scales,
                                       const char* zero) {
#pragma unroll
    for (int s = 0; s < kStripes; ++s) {
      const uint4 v = load_streaming(weight + (s ? p.stripe_bytes : 0));
      word[s][0] = v.x, word[s][1] = v.y, word[s][2] = v.z, word[s][3] = v.w;
#pragma unroll
      for (int g = 0; g < Part::kGroups; ++g) scale[s][g] = load_u16(scales + (s ? p.stripe_scale_bytes : 0) + 16 * g);
#pragma unroll
      for (int g = 0; kZeros && g < Part::kZeroPairs; ++g) {
        zeros[s][g] = load_u8(zero + (s ? p.stripe_zero_bytes : 0) + 8 * g);
      }
    }
  }

  // The same where rows or columns are missing. Absent ones are zero, and so are the scales of absent groups.
  __device__ __forceinline__ void load_ragged(const Int4GemmParams& p, int stripe, int chunk) {
    const int lane = threadIdx.x;
#pragma unroll
    for (int s = 0; s < kStripes; ++s) {
      const Part piece(p, min(stripe + s, (p.n - 1) / kStripeRows), chunk);
      const uint4 v = piece.ragged_weight(lane);
      word[s][0] = v.x, word[s][1] = v.y, word[s][2] = v.z, word[s][3] = v.w;
#pragma unroll
      for (int g = 0; g < Part::kGroups; ++g) scale[s][g] = __half_as_ushort(piece.ragged_scale(g, lane / 4));
#pragma unroll
      for (int g = 0; kZeros && g < Part::kZeroPairs; ++g) zeros[s][g] = piece.ragged_zeros(g, lane / 4);
    }
  }

  __device__ __forceinline__ float scale_of(int s, int g) const {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(scale[s][g])));
  }

  __device__ __forceinline__ float zero_of(int s, int g, int chunk) const {
    if (!kZeros) return 8.f;
    return static_cast<float>(zeros[s][g / 2] >> ((Part::kGroups == 1 ? chunk : g) % 2 * 4) & 15);
  }
};

// A launch whose rows are all skipped reads no weights.
__device__ __forceinline__ bool all_skipped(const Int4GemmParams& p) {
#pragma unroll 1
  for (int token = 0; token < p.tokens; ++token) {
    if (p.rows[token] >= 0) return false;
  }
  return true;
}

// The row of x that token `token` is, beyond the last token that of the last; 0 where it is skipped.
__device__ __forceinline__ uint32 row_of_x(const Int4GemmParams& p, int token) {
  token = min(token, p.tokens - 1);
  return p.rows ? max(0, p.rows[token]) : token;
}

}  // namespace orin
