// SPDX-License-Identifier: Apache-2.0
// OrinLinear for many tokens: blocks of kTile x kTile values of y on tensor cores, K in steps of 64 through a
// ring of stages in shared memory.
//
// A stage holds kTile rows of x and kTile rows of W, 64 halves = 128 bytes = eight 16-byte chunks each. Chunk c of row
// r lies at place c ^ (r % 8), so that ldmatrix, which takes one chunk of eight rows, hits all banks.
//
// float16 weights arrive by cp.async. int8 weights pass through registers, where they become float16: they are loaded
// one step before they are stored.
#include "kernels/linear/epilogue.cuh"

using namespace orin;

namespace {

constexpr int kStep = 64, kChunks = kStep / 8;

template <int kTile>
struct Shape;  // kWarpsM x kWarpsN warps, each with kTile / kWarpsM tokens and kTile / kWarpsN columns of y; the blocks
               // that shared memory lets onto an SM of Orin
template <>
struct Shape<128> {
  static constexpr int kWarpsM = 2, kWarpsN = 4, kStages = 3, kBlocks = 1;
};
template <>
struct Shape<64> {
  static constexpr int kWarpsM = 2, kWarpsN = 2, kStages = 4, kBlocks = 2;
};
template <>
struct Shape<32> {
  static constexpr int kWarpsM = 2, kWarpsN = 1, kStages = 5, kBlocks = 3;
};

__device__ __forceinline__ half* place(half* rows, int row, int chunk) {
  return rows + row * kStep + (chunk ^ (row % 8)) * 8;
}

template <int kTile, bool is_int8>
struct Tiled {
  using S = Shape<kTile>;
  static constexpr int kThreads = 32 * S::kWarpsM * S::kWarpsN;
  static constexpr int kRowsM = kTile / S::kWarpsM, kRowsN = kTile / S::kWarpsN;
  static constexpr int kFragmentsM = kRowsM / 16, kFragmentsN = kRowsN / 8;
  static constexpr int kStageHalves = 2 * kTile * kStep;
  static constexpr int kRowsPerPass = kThreads / kChunks;
  static constexpr int kPasses = kTile / kRowsPerPass;               // over a float16 tile, 16 bytes per thread
  static constexpr int kBytePasses = kTile * kStep / 16 / kThreads;  // over an int8 tile

  const LinearParams& p;
  half* const ring;
  const int token = blockIdx.x * kTile, column = blockIdx.y * kTile;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_m = warp % S::kWarpsM * kRowsM, warp_n = warp / S::kWarpsM * kRowsN;
  int x_rows[kPasses];  // this thread's rows of x; -1 = zeros
  uint4 bytes[kBytePasses];
  float sums[kFragmentsM][kFragmentsN][4];

  __device__ Tiled(const LinearParams& params, half* shared) : p(params), ring(shared) {
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int output = token + threadIdx.x / kChunks + i * kRowsPerPass;
      const int row = output < p.outputs ? wanted_row(p.rows, output, p.tokens) : -1;
      x_rows[i] = row < 0 ? -1 : p.source ? row : output;
    }
#pragma unroll
    for (int i = 0; i < kFragmentsM * kFragmentsN * 4; ++i) {
      sums[i / 4 / kFragmentsN][i / 4 % kFragmentsN][i % 4] = 0.0f;
    }
  }

  __device__ __forceinline__ half* x_tile(int step) { return ring + step % S::kStages * kStageHalves; }
  __device__ __forceinline__ half* w_tile(int step) { return x_tile(step) + kTile * kStep; }

  // Begin to bring `step` into its stage.
  __device__ __forceinline__ void fetch(int step) {
    const int chunk = threadIdx.x % kChunks, k = step * kStep + 8 * chunk;
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int row = threadIdx.x / kChunks + i * kRowsPerPass;
      const half* x = static_cast<const half*>(p.x);
      const bool has_x = x_rows[i] >= 0 && k < p.k;
      cp_async16(place(x_tile(step), row, chunk), has_x ? x + size_t(x_rows[i]) * p.k + k : x, has_x);
      if (!is_int8) {
        const half* weight = static_cast<const half*>(p.weight);
        const bool has_w = column + row < p.n && k < p.k;
        cp_async16(place(w_tile(step), row, chunk), has_w ? weight + size_t(column + row) * p.k + k : weight, has_w);
      }
    }
    if (is_int8) load_bytes(step);
    cp_async_commit();
  }

  __device__ __forceinline__ void load_bytes(int step) {
    const int k = step * kStep + threadIdx.x % 4 * 16;
#pragma unroll
    for (int i = 0; i < kBytePasses; ++i) {
      const int row = column + threadIdx.x / 4 + i * (kThreads / 4);
      const bool is_inside = row < p.n && k < p.k;
      bytes[i] = is_inside ? load_streaming(static_cast<const char*>(p.weight) + size_t(row) * p.k + k) : uint4{};
    }
  }

  __device__ __forceinline__ void store_bytes(int step) {
    const int chunk = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < kBytePasses; ++i) {
      const int row = threadIdx.x / 4 + i * (kThreads / 4);
      uint4 a, b;
      widen(bytes[i].x, a.x, a.y), widen(bytes[i].y, a.z, a.w), widen(bytes[i].z, b.x, b.y),
          widen(bytes[i].w, b.z, b.w);
      *reinterpret_cast<uint4*>(place(w_tile(step), row, chunk)) = a;
      *reinterpret_cast<uint4*>(place(w_tile(step), row, chunk + 1)) = b;
    }
  }

  __device__ __forceinline__ void multiply(int step) {
    half *xs = x_tile(step), *ws = w_tile(step);
#pragma unroll
    for (int k = 0; k < kChunks; k += 2) {
      uint32 a[kFragmentsM][4], b[kFragmentsN / 2][4];
#pragma unroll
      for (int i = 0; i < kFragmentsM; ++i) {
        ldmatrix_x4(a[i], place(xs, warp_m + 16 * i + lane % 16, k + lane / 16));
      }
#pragma unroll
      for (int j = 0; j < kFragmentsN / 2; ++j) {  // two neighbouring fragments of 8 columns
        ldmatrix_x4(b[j], place(ws, warp_n + 16 * j + lane / 16 * 8 + lane % 8, k + lane / 8 % 2));
      }
#pragma unroll
      for (int i = 0; i < kFragmentsM; ++i) {
#pragma unroll
        for (int j = 0; j < kFragmentsN; ++j) {
          const uint32 pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          mma(sums[i][j], a[i], pair);
        }
      }
    }
  }

  __device__ __forceinline__ void run() {
    const int steps = (p.k + kStep - 1) / kStep;
#pragma unroll
    for (int step = 0; step < S::kStages - 1; ++step) {
      if (step && is_int8) store_bytes(step - 1);
      fetch(step);
    }
    for (int step = 0; step < steps; ++step) {
      // The newest step's int8 weights wait in registers. Its stage was last read before the barrier of the step
      // before.
      if (is_int8) store_bytes(step + S::kStages - 2);
      cp_async_wait<S::kStages - 2>();
      __syncthreads();
      fetch(step + S::kStages - 1);
      multiply(step);
    }
    cp_async_wait<0>();
#pragma unroll
    for (int i = 0; i < kFragmentsM; ++i) {
#pragma unroll
      for (int j = 0; j < kFragmentsN; ++j) {
        const int output = token + warp_m + 16 * i + lane / 4, at = column + warp_n + 8 * j + lane % 4 * 2;
        finish(p, output, at, sums[i][j][0], sums[i][j][1]);
        finish(p, output + 8, at, sums[i][j][2], sums[i][j][3]);
      }
    }
  }
};

}  // namespace

#define TILED(name, kTile, is_int8)                                                                    \
  extern "C" __global__ void __launch_bounds__(Tiled<kTile, is_int8>::kThreads, Shape<kTile>::kBlocks) \
      name(LinearParams p) {                                                                           \
    begin_in_turn();                                                                                   \
    extern __shared__ uint4 shared[];                                                                  \
    Tiled<kTile, is_int8>(p, reinterpret_cast<half*>(shared)).run();                                   \
  }

TILED(linear_tiled_float16_128, 128, false)
TILED(linear_tiled_float16_64, 64, false)
TILED(linear_tiled_float16_32, 32, false)
TILED(linear_tiled_int8_128, 128, true)
TILED(linear_tiled_int8_64, 64, true)
TILED(linear_tiled_int8_32, 32, true)

// The norm in front of the tiled kernels: one warp per output row, rows picked, normalised, float16.
extern "C" __global__ void linear_norm(LinearNormParams p) {
  begin_in_turn();
  const int output = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (output >= p.outputs) return;
  const int row = wanted_row(p.rows, output, p.tokens);
  const half* x = static_cast<const half*>(p.x) + size_t(row < 0 ? 0 : row) * p.k;
  half* y = static_cast<half*>(p.y) + size_t(output) * p.k;
  const float inverse = row < 0 ? 0.0f : inverse_rms(sum_of_squares(x, p.k, 0, 1), p.k, p.norm_eps);
#pragma unroll 4
  for (int i = 8 * (threadIdx.x % 32); i < p.k; i += 256) {
    uint4 value{};
    if (row >= 0) value = normalised(*reinterpret_cast<const uint4*>(x + i), load_norm(p.norm + i), inverse);
    *reinterpret_cast<uint4*>(y + i) = value;
  }
}
