// SPDX-License-Identifier: Apache-2.0
// OrinLinear for a few tokens, at most 16 to a block: the weight is read once for them, straight into the registers
// that the tensor cores take it from, so the kernel is bound by memory.
//
// D[16 x 8] += A[16 x 16] B[16 x 8]: A holds tokens, B eight rows of W. The order of K inside a product is free as long
// as A and B agree. So a lane reads 16 neighbouring bytes of W at a time and feeds them to as many mma as they fill:
//
//   one step of a warp: 64 columns of K of 8 rows of W; lane = 4 * g + t, g = row of W and token, t = quarter
//
//   float16   bytes   0        64       128        int8   bytes   0               64
//             row g   |t0 t1 t2 t3|t0 t1 t2 t3|           row g   |t0  t1  t2  t3 |
//                     8 halves each                               16 values each
//
// x waits in shared memory, one part of K at a time, normalised; rows are padded so that the lanes of one phase of a
// 16-byte read hit all banks.
#include "kernels/linear/epilogue.cuh"

using namespace orin;

namespace {

constexpr int kThreads = 256, kWarps = 8, kStep = 64;
constexpr int kSharedBytes = 47 * 1024;

struct Float16 {
  static constexpr int kBytes = 2, kVectors = 2, kPad = 32;
};
struct Int8 {
  static constexpr int kBytes = 1, kVectors = 1, kPad = 8;
};

// kDepth: steps of weights in flight.
template <typename Weight, int kTiles, int kWarpsK, int kDepth, int kTokens>
struct Stream {
  static constexpr int kColumns = 8 * kTiles * (kWarps / kWarpsK);  // of y, of one block
  static constexpr int kQuantum = kStep * kWarpsK * kDepth;         // K that all warps step over together
  uint4 weights[kDepth][kTiles][Weight::kVectors];
  float sums[kTiles][4];

  const LinearParams& p;
  const int group = threadIdx.x % 32 / 4, quarter = threadIdx.x % 4;
  const int along_k = threadIdx.x / 32 % kWarpsK, along_n = threadIdx.x / 32 / kWarpsK;
  const int column = blockIdx.x * kColumns + along_n * 8 * kTiles;

  __device__ explicit Stream(const LinearParams& params) : p(params) {
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) sums[i / 4][i % 4] = 0.0f;
  }

  // Weights of this warp's step `step` into place `depth`; zeros outside the matrix.
  __device__ __forceinline__ void load(int depth, int step) {
    const int k = kStep * (along_k + step * kWarpsK) + quarter * (16 / Weight::kBytes);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int row = column + 8 * tile + group;
      const char* from = static_cast<const char*>(p.weight) + (size_t(row) * p.k + k) * Weight::kBytes;
#pragma unroll
      for (int v = 0; v < Weight::kVectors; ++v) {
        const bool is_inside = row < p.n && k + 32 * v < p.k;
        weights[depth][tile][v] = is_inside ? load_streaming(from + 64 * v) : uint4{};
      }
    }
  }

  // One 16-byte read of x feeds two products: `w` are four registers of the same places of K.
  __device__ __forceinline__ void multiply(float (&sum)[4], const uint4& low, const uint4& high, uint4 w) {
    const uint32 first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
    const uint32 b0[2] = {w.x, w.y}, b1[2] = {w.z, w.w};
    mma(sum, first, b0);
    mma(sum, second, b1);
  }

  // `x`: this lane's place of the step in shared memory, of token `group`; tokens 8 further on lie `far` halves away.
  __device__ __forceinline__ void process(int depth, const half* x, int far, int tokens) {
    uint4 low[2] = {}, high[2] = {};
    constexpr int kApart = Weight::kVectors == 2 ? 32 : 8;  // halves between this lane's two reads
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      if (group < tokens) low[v] = *reinterpret_cast<const uint4*>(x + kApart * v);
      if (kTokens == 16 && group + 8 < tokens) high[v] = *reinterpret_cast<const uint4*>(x + far + kApart * v);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const auto& w = weights[depth][tile];
      if (Weight::kVectors == 2) {
        multiply(sums[tile], low[0], high[0], w[0]);
        multiply(sums[tile], low[1], high[1], w[Weight::kVectors - 1]);
      } else {
        uint4 a, b;
        widen(w[0].x, a.x, a.y), widen(w[0].y, a.z, a.w), widen(w[0].z, b.x, b.y), widen(w[0].w, b.z, b.w);
        multiply(sums[tile], low[0], high[0], a);
        multiply(sums[tile], low[1], high[1], b);
      }
    }
  }

  // Sums of the warps along K, in a fixed order, in the first of them.
  __device__ __forceinline__ void reduce(float* shared) {
    if (kWarpsK == 1) return;
    float4* places = reinterpret_cast<float4*>(shared) + (along_n * kTiles * kWarpsK + along_k) * 32 + threadIdx.x % 32;
    __syncthreads();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      places[tile * kWarpsK * 32] = make_float4(sums[tile][0], sums[tile][1], sums[tile][2], sums[tile][3]);
    }
    __syncthreads();
    if (along_k) return;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int warp = 1; warp < kWarpsK; ++warp) {
        const float4 other = places[(tile * kWarpsK + warp) * 32];
        sums[tile][0] += other.x, sums[tile][1] += other.y, sums[tile][2] += other.z, sums[tile][3] += other.w;
      }
    }
  }
};

// 1 / rms of each token's row of x: with few tokens several warps share a row.
template <int kTokens>
__device__ __forceinline__ void measure(const LinearParams& p, int first, int tokens, float (&inverse)[kTokens]) {
  __shared__ float squares[kTokens][kWarps];
  const int shares = tokens == 1 ? 8 : tokens == 2 ? 4 : tokens <= 4 ? 2 : 1;
  const int warp = threadIdx.x / 32, share = warp % shares;
  for (int i = warp / shares; i < tokens; i += kWarps / shares) {
    const int row = wanted_row(p.rows, first + i, p.tokens);
    const float sum =
        row < 0 ? 0.0f : sum_of_squares(static_cast<const half*>(p.x) + size_t(row) * p.k, p.k, share, shares);
    if (threadIdx.x % 32 == 0) squares[i][share] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= tokens) return;
  float sum = 0.0f;
  for (int i = 0; i < shares; ++i) sum += squares[threadIdx.x][i];
  inverse[threadIdx.x] = inverse_rms(sum, p.k, p.norm_eps);
}

template <typename Weight, int kTiles, int kWarpsK, int kDepth, int kTokens>
__device__ void streamed(const LinearParams& p) {
  begin_in_turn();
  using Work = Stream<Weight, kTiles, kWarpsK, kDepth, kTokens>;
  __shared__ alignas(16) half x[kSharedBytes / 2];
  __shared__ float inverse[kTokens];
  const int first = blockIdx.y * p.block_tokens, tokens = min(p.block_tokens, p.outputs - first);
  Work work(p);

  bool is_any_wanted = false;
  for (int i = 0; i < tokens; ++i) is_any_wanted |= wanted_row(p.rows, first + i, p.tokens) >= 0;
  if (is_any_wanted) {
#pragma unroll
    for (int depth = 0; depth < kDepth; ++depth) work.load(depth, depth);
    if (p.norm) {
      for (int i = 32 * threadIdx.x; i < p.k; i += 32 * kThreads) prefetch(p.norm + i);
      measure(p, first, tokens, inverse);
    }
    const int most = (kSharedBytes / 2 / tokens - Weight::kPad) / Work::kQuantum * Work::kQuantum;
    const int whole = (p.k + Work::kQuantum - 1) / Work::kQuantum * Work::kQuantum;
    const int part = min(most, whole), stride = part + Weight::kPad;
    int step = 0;
    for (int begin = 0; begin < p.k; begin += part) {
      __syncthreads();
      const int length = min(part, whole - begin);
      // A thread stays at its columns, so that it reads the norm's weight once for all tokens.
      const int vectors = length / 8, lanes = min(vectors, kThreads);
      for (int k = 8 * (threadIdx.x % lanes); k < length; k += 8 * lanes) {
        Norm norm;
        const bool is_inside = begin + k < p.k;
        if (p.norm && is_inside) norm = load_norm(p.norm + begin + k);
        const int apart = kThreads / lanes;
        for (int token = threadIdx.x / lanes; token < tokens; token += 4 * apart) {
          uint4 values[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int at = token + i * apart, row = at < tokens ? wanted_row(p.rows, first + at, p.tokens) : -1;
            const half* from = static_cast<const half*>(p.x) + size_t(row) * p.k + begin + k;
            values[i] = row >= 0 && is_inside ? *reinterpret_cast<const uint4*>(from) : uint4{};
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int at = token + i * apart;
            if (at >= tokens) break;
            if (p.norm && is_inside) values[i] = normalised(values[i], norm, inverse[at]);
            *reinterpret_cast<uint4*>(x + at * stride + k) = values[i];
          }
        }
      }
      __syncthreads();
      const half* mine = x + work.group * stride + kStep * work.along_k + work.quarter * (16 / Weight::kBytes);
      for (int k = 0; k < length; k += Work::kQuantum) {
#pragma unroll
        for (int depth = 0; depth < kDepth; ++depth, ++step) {
          work.process(depth, mine + k + depth * kStep * kWarpsK, 8 * stride, tokens);
          work.load(depth, step + kDepth);
        }
      }
    }
    work.reduce(reinterpret_cast<float*>(x));
  }
  if (work.along_k) return;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const int column = work.column + 8 * tile + 2 * work.quarter;
    if (work.group < tokens) finish(p, first + work.group, column, work.sums[tile][0], work.sums[tile][1]);
    if (work.group + 8 < tokens) finish(p, first + work.group + 8, column, work.sums[tile][2], work.sums[tile][3]);
  }
}

}  // namespace

#define STREAMED(name, Weight, kTiles, kWarpsK, kDepth, kTokens)                   \
  extern "C" __global__ void __launch_bounds__(kThreads, 2) name(LinearParams p) { \
    streamed<Weight, kTiles, kWarpsK, kDepth, kTokens>(p);                         \
  }

STREAMED(linear_narrow_float16, Float16, 1, 8, 2, 8)
STREAMED(linear_narrow_int8, Int8, 1, 8, 2, 8)
STREAMED(linear_middle_float16_8, Float16, 2, 4, 2, 8)
STREAMED(linear_middle_float16_16, Float16, 2, 4, 2, 16)
STREAMED(linear_middle_int8_8, Int8, 2, 4, 2, 8)
STREAMED(linear_middle_int8_16, Int8, 2, 4, 2, 16)
STREAMED(linear_wide_float16_8, Float16, 2, 1, 2, 8)
STREAMED(linear_wide_float16_16, Float16, 2, 1, 2, 16)
STREAMED(linear_wide_int8_8, Int8, 2, 1, 4, 8)
STREAMED(linear_wide_int8_16, Int8, 2, 1, 4, 16)
