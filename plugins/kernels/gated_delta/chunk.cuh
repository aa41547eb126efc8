// SPDX-License-Identifier: Apache-2.0
// The gated delta rule by chunks of 64 tokens, on tensor cores. Three launches:
//
//   prepare  all chunks and heads at once: convolution, unit q and k, G = cumsum(g), T = (I + L)^-1 diag(beta)
//   state    the chunks of a sequence in order, all heads and all 16-column tiles of the state at once
//   output   all chunks and heads at once: o, norm, gate
//
// With E_ij = exp(G_i - G_j), i >= j, S the state before the chunk and L = tril(diag(beta) (k k^T) * E, -1):
//
//   r = v - exp(G) (k S)        delta = T r
//   o = exp(G) (q S) + tril(q k^T * E) delta
//   S = exp(G_last) S + k^T (exp(G_last - G) delta)
//
// This is the chunked form of Yang et al. 2024 with u - w S = T (v - exp(G) k S) left as one product: one matrix less to
// make and to store, and what is rounded to float16 is the residual r, not the two large terms of a difference.
// Operands of the products are float16, sums, gates, inverse's diagonal and the state itself float32. G falls
// monotonically, so no exponent is ever positive.
//
// Fragment order: `state` works on transposes (rows = columns of S), so that an accumulator becomes the next product's
// A operand without leaving the registers. What `output` needs of it is stored as it lies there, 16 bytes a lane:
//   A fragment of (16 columns, 16 contraction steps), lane l -> x: row l/4, steps 2(l%4) + {0,1};  y: row l/4 + 8;
//   z, w: steps + 8. Read back as B fragments: {x, z} are columns 0-7 of the tile, {y, w} columns 8-15.
#pragma once

#include "kernels/gated_delta/gated_delta.cuh"

namespace orin {

constexpr float kMinLogDecay = -30.f;  // of one token: exp is then below 1e-13, and sums of g stay exact enough

struct Chunk {
  int place;         // where its workspace lies
  int token;         // its first token
  int count;         // tokens, 1 .. 64
  int slot;          // -1: padded
  bool is_first;     // of its sequence in this step
  bool is_fresh;     // the slot's state counts as zero
};

// Chunks of sequence b lie at places cu_seqlens[b] / 64 + b and following. No prefix sum is needed, and since
// floor((c + n) / 64) + 1 >= floor(c / 64) + ceil(n / 64) no two sequences meet.
__device__ __forceinline__ int first_place(int begin, int b) { return begin / kChunk + b; }

// The chunk at a place; count 0 where there is none. A warp looks at 32 sequences at a time.
__device__ __forceinline__ Chunk chunk_at(const GatedDeltaParams& p, int place) {
  for (int base = 0; base <= p.sequences; base += 32) {
    const int b = base + threadIdx.x % 32;
    bool is_here = false;
    if (b <= p.sequences) {
      const int begin = p.cu_seqlens[b], end = b < p.sequences ? p.cu_seqlens[b + 1] : p.tokens;
      const int first = first_place(begin, b);
      is_here = place >= first && place < first + (end - begin + kChunk - 1) / kChunk;
    }
    const unsigned found = __ballot_sync(~0u, is_here);
    if (!found) continue;
    const int here = base + __ffs(found) - 1;
    const Sequence s = sequence(p, here);
    const int done = (place - first_place(s.begin, here)) * kChunk;
    return {place, s.begin + done, min(kChunk, s.end - s.begin - done), s.slot, done == 0, s.is_fresh};
  }
  return {place, 0, 0, -1, true, true};
}

// Halves before element (row, column) of a shared tile with `width` halves a row: 16-byte vectors are permuted so that
// eight rows of one column, as ldmatrix reads them, lie in different banks.
template <int width>
__device__ __forceinline__ int swizzled(int row, int column) {
  constexpr int vectors = width / 8, rows = vectors < 8 ? 8 / vectors : 1, mask = vectors < 8 ? vectors - 1 : 7;
  return row * width + (((column / 8) ^ (row / rows & mask)) * 8 + column % 8);
}

// Operand fragments of the 16x16 block at (row, column): A as stored; B of its transpose (row = n, column = k), two
// n-tiles; B as stored (row = k, column = n), two n-tiles.
template <int width>
__device__ __forceinline__ void load_a(uint32 (&f)[4], const half* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  ldmatrix_x4(f, tile + swizzled<width>(row + lane % 16, column + lane / 16 * 8));
}
template <int width>
__device__ __forceinline__ void load_b_transposed(uint32 (&f)[2][2], const half* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  uint32 r[4];
  ldmatrix_x4(r, tile + swizzled<width>(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
  f[0][0] = r[0], f[0][1] = r[1], f[1][0] = r[2], f[1][1] = r[3];
}
template <int width>
__device__ __forceinline__ void load_b(uint32 (&f)[2][2], const half* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  uint32 r[4];
  ldmatrix_x4_trans(r, tile + swizzled<width>(row + lane % 16, column + lane / 16 * 8));
  f[0][0] = r[0], f[0][1] = r[1], f[1][0] = r[2], f[1][1] = r[3];
}

// Two accumulators, columns 0-7 and 8-15, as the A operand of the next product.
__device__ __forceinline__ void to_operand(uint32 (&a)[4], const float (&low)[4], const float (&high)[4]) {
  a[0] = pack(low[0], low[1]), a[1] = pack(low[2], low[3]), a[2] = pack(high[0], high[1]), a[3] = pack(high[2], high[3]);
}

// Pointers to one chunk's part of the workspace.
template <int D>
__device__ __forceinline__ half* part(void* base, int place, int heads, int head, int halves) {
  return static_cast<half*>(base) + (size_t(place) * heads + head) * halves;
}

}  // namespace orin
