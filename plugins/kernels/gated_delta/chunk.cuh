// SPDX-License-Identifier: Apache-2.0
// The gated delta rule by chunks of 64 tokens, on tensor cores. Four launches:
//
//   convolve  all chunks and heads at once: convolution, unit q and k
//   invert    all chunks and heads at once: G = cumsum(g), T = (I + L)^-1 diag(beta)
//   carry     the chunks of a sequence in order, all heads and all 16-column tiles of the state at once
//   output    all chunks and heads at once: o, norm, gate
//
// With E_ij = exp(G_i - G_j), i >= j, S the state before the chunk and L = tril(diag(beta) (k k^T) * E, -1):
//
//   r = v - exp(G) (k S)        delta = T r
//   o = exp(G) (q S) + tril(q k^T * E) delta
//   S = exp(G_last) S + k^T (exp(G_last - G) delta)
//
// This is the chunked form of Yang et al. 2024 with u - w S = T (v - exp(G) k S) left as one product: one matrix less
// to make and to store, and what is rounded to float16 is the residual r, not the two large terms of a difference.
// Operands of the products are float16; sums, gates, the diagonal of the inverse and the state itself float32. G falls
// monotonically, so no exponent is ever positive.
//
// Fragment order: `carry` works on transposes (rows = columns of S), so that an accumulator becomes the next product's
// A operand without leaving the registers. What `output` needs of it is stored as it lies there, 16 bytes a lane:
//   A fragment of (16 columns, 16 contraction steps), lane l -> x: row l/4, steps 2(l%4) + {0,1};  y: row l/4 + 8;
//   z, w: steps + 8. Read back as B fragments: {x, z} are columns 0-7 of the tile, {y, w} columns 8-15.
#pragma once

#include "kernels/gated_delta/gated_delta.cuh"

namespace orin {

struct Chunk {
  int place;      // where its workspace lies
  int token;      // its first token
  int count;      // tokens, 1 .. 64
  int slot;       // -1: padded
  bool is_first;  // of its sequence in this step
  bool is_fresh;  // the slot's state counts as zero
};

// Chunks of sequence b lie at places cu_seqlens[b] / 64 + b and following. No prefix sum is needed, and since
// floor((c + n) / 64) + 1 >= floor(c / 64) + ceil(n / 64) no two sequences meet.
__device__ __forceinline__ int first_place(int begin, int b) { return begin / kChunk + b; }

// The chunk at a place; count 0 where there is none. A warp looks at 32 sequences at a time; number p.sequences is the
// padded one behind the last: tokens that belong to nobody.
__device__ __forceinline__ Chunk chunk_at(const GatedDeltaParams& p, int place) {
  for (int base = 0; base <= p.sequences; base += 32) {
    const int b = base + threadIdx.x % 32;
    Sequence s{0, 0, -1, true};
    if (b < p.sequences) s = sequence(p, b);
    if (b == p.sequences) s = {p.cu_seqlens[b], p.tokens, -1, true};
    const int number = place - first_place(s.begin, b);
    const unsigned found = __ballot_sync(~0u, number >= 0 && number * kChunk < s.end - s.begin);
    if (!found) continue;
    const int lane = __ffs(found) - 1, done = __shfl_sync(~0u, number, lane) * kChunk;
    const int begin = __shfl_sync(~0u, s.begin, lane) + done, end = __shfl_sync(~0u, s.end, lane);
    const bool is_fresh = __shfl_sync(~0u, int(s.is_fresh), lane);
    return {place, begin, min(kChunk, end - begin), __shfl_sync(~0u, s.slot, lane), done == 0, is_fresh};
  }
  return {place, 0, 0, -1, true, true};
}

// A tile in shared memory. Rows are 16 bytes longer than their data, so that eight rows of one column, as ldmatrix
// reads them, lie in different banks.
template <int rows, int width>
struct alignas(16) Tile {
  static constexpr int kStride = width + 8;
  half data[rows * kStride];

  __device__ half* at(int row, int column) { return data + row * kStride + column; }
  __device__ const half* at(int row, int column) const { return data + row * kStride + column; }

  // Starts to copy rows that lie `pitch` halves apart, with `threads` threads of which this is number `thread`.
  template <int pitch, int threads>
  __device__ __forceinline__ void copy_from(const half* from, unsigned thread) {
    constexpr int vectors = width / 8, step = threads / vectors;
    half* to = at(thread / vectors, thread % vectors * 8);
    from += thread / vectors * pitch + thread % vectors * 8;
#pragma unroll
    for (int i = 0; i < rows; i += step) cp_async16(to + i * kStride, from + i * pitch);
  }

  // Operand fragments of the 16x16 block at (row, column): A; B of the block's transpose, two n-tiles (rows are n,
  // columns the contraction); B of the block as it is (rows are the contraction, columns n).
  __device__ __forceinline__ void load_a(uint32 (&f)[4], int row, int column) const {
    const int lane = threadIdx.x % 32;
    ldmatrix_x4(f, at(row + lane % 16, column + lane / 16 * 8));
  }
  __device__ __forceinline__ void load_b_transposed(uint32 (&f)[2][2], int row, int column) const {
    const int lane = threadIdx.x % 32;
    uint32 r[4];
    ldmatrix_x4(r, at(row + lane % 8 + lane / 16 * 8, column + lane / 8 % 2 * 8));
    f[0][0] = r[0], f[0][1] = r[1], f[1][0] = r[2], f[1][1] = r[3];
  }
  __device__ __forceinline__ void load_b(uint32 (&f)[2][2], int row, int column) const {
    const int lane = threadIdx.x % 32;
    uint32 r[4];
    ldmatrix_x4_trans(r, at(row + lane % 16, column + lane / 16 * 8));
    f[0][0] = r[0], f[0][1] = r[1], f[1][0] = r[2], f[1][1] = r[3];
  }
};

// Two accumulators, columns 0-7 and 8-15, as the A operand of the next product.
__device__ __forceinline__ void to_operand(uint32 (&a)[4], const float (&low)[4], const float (&high)[4]) {
  a[0] = pack(low[0], low[1]), a[1] = pack(low[2], low[3]), a[2] = pack(high[0], high[1]),
  a[3] = pack(high[2], high[3]);
}

// The part of a workspace array that belongs to one head of one chunk.
template <typename T>
__device__ __forceinline__ T* part(void* base, int place, int heads, int head, int size) {
  return static_cast<T*>(base) + (size_t(place) * heads + head) * size;
}

}  // namespace orin
