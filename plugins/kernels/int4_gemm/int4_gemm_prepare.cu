// SPDX-License-Identifier: Apache-2.0
// What goes before the INT4 GEMM: rows of x picked and normalised for many tokens, and gathered for any number of them
// where W has an order of columns; and, once at load time, the canonical weights permuted to the kernel layout (drawn
// in toolkit/orinkit/int4.py).
#include "kernels/int4_gemm/int4.cuh"

using namespace orin;

namespace {

__device__ uint4 normalised_unit(const NormRowsParams& p, const uint4* x, int unit, float scale) {
  const float4* norm = reinterpret_cast<const float4*>(p.norm) + 2 * unit;
  const float4 w[2] = {norm[0], norm[1]};
  return normalised(x[unit], scale, w);
}

// Eight neighbouring columns of y, from where the order of columns finds them; rounded as `normalised` does.
__device__ uint4 gathered_unit(const NormRowsParams& p, const half* x, int unit, float scale) {
  const int4* columns = reinterpret_cast<const int4*>(p.columns) + 2 * unit;
  const int4 at[2] = {columns[0], columns[1]};
  uint4 y;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int a = (&at[i / 2].x)[i % 2 * 2], b = (&at[i / 2].x)[i % 2 * 2 + 1];
    const float2 v = {__half2float(x[a]), __half2float(x[b])};
    (&y.x)[i] = bits(p.norm ? __floats2half2_rn(v.x * scale * p.norm[a], v.y * scale * p.norm[b])
                            : __floats2half2_rn(v.x, v.y));
  }
  return y;
}

}  // namespace

// One block of 256 threads per token.
extern "C" __global__ void __launch_bounds__(256) int4_gemm_norm_rows(NormRowsParams p) {
  begin_in_turn();
  extern __shared__ float sums[];  // one per segment of 256 columns
  const int token = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, units = p.k / 8;
  const int row = p.rows ? p.rows[token] : token;
  uint4* y = reinterpret_cast<uint4*>(static_cast<half*>(p.y) + size_t(token) * p.k);
  if (p.rows_out && threadIdx.x == 0) p.rows_out[token] = row < 0 ? -1 : token;
  if (row < 0) {
    for (int i = threadIdx.x; i < units; i += blockDim.x) y[i] = uint4{0, 0, 0, 0};
    return;
  }
  const half* values = static_cast<const half*>(p.x) + size_t(row) * p.k;
  const uint4* x = reinterpret_cast<const uint4*>(values);
  float scale = 1.f;
  if (p.norm) {
    const int segments = (units + 31) / 32;
    for (int segment = warp; segment < segments; segment += blockDim.x / 32) {
      const int i = segment * 32 + lane;
      const float sum = sum_of_squares(i < units ? x[i] : uint4{0, 0, 0, 0});
      if (lane == 0) sums[segment] = sum;
    }
    __syncthreads();
    float total = 0.f;
    for (int i = lane; i < segments; i += 32) total += sums[i];
    scale = rsqrtf(warp_sum(total) / p.k + p.norm_eps);
  }
  for (int i = threadIdx.x; i < units; i += blockDim.x) {
    y[i] = p.columns ? gathered_unit(p, values, i, scale) : p.norm ? normalised_unit(p, x, i, scale) : x[i];
  }
}

namespace {

// Bit-reversed order: position i of a word holds column reverse(i).
__device__ uint32 permute_nibbles(uint32 word) {
  uint32 out = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int from = (i & 1) << 2 | (i & 2) | i >> 2;
    out |= (word >> (4 * from) & 15) << (4 * i);
  }
  return out;
}

// `from` [n, columns] to stripes [columns][8 rows]; the last stripe has the rows that are left.
template <typename T>
__device__ void interleave_rows(const void* from, void* to, int n, int columns) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n * columns; i += gridDim.x * blockDim.x) {
    const int stripe = i / (kStripeRows * columns);
    const int rows = min(kStripeRows, n - stripe * kStripeRows);
    const int inside = i - stripe * kStripeRows * columns;
    const int row = stripe * kStripeRows + inside % rows;
    static_cast<T*>(to)[i] = static_cast<const T*>(from)[size_t(row) * columns + inside / rows];
  }
}

}  // namespace

// One thread per word of 8 nibbles of the result; needs n * k / 8 < 2^31.
extern "C" __global__ void __launch_bounds__(256) int4_gemm_layout(Int4LayoutParams p) {
  wait_for_previous();  // and nothing starts early behind it: that would read weights which are not there yet
  const int row_words = p.k / 8;
  const uint32* from = static_cast<const uint32*>(p.weight);
  uint32* to = static_cast<uint32*>(p.weight_out);
  for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < static_cast<long long>(p.n) * row_words;
       i += gridDim.x * blockDim.x) {
    const int stripe = static_cast<int>(i / (kStripeRows * row_words));
    const int rows = min(kStripeRows, p.n - stripe * kStripeRows);
    int inside = static_cast<int>(i - static_cast<long long>(stripe) * kStripeRows * row_words);
    const int chunk = inside / (rows * 16);
    inside -= chunk * rows * 16;
    const int words = min(4, row_words / 4 - 4 * chunk);  // per lane; 4 lanes hold a row's part of the chunk
    const int row = inside / (4 * words), lane = inside / words % 4, word = inside % words;
    to[i] = permute_nibbles(from[size_t(stripe * kStripeRows + row) * row_words + chunk * 16 + word * 4 + lane]);
  }
  interleave_rows<unsigned short>(p.scales, p.scales_out, p.n, p.groups);
  if (p.zeros) interleave_rows<unsigned char>(p.zeros, p.zeros_out, p.n, (p.groups + 1) / 2);
}
