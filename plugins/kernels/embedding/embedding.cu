// SPDX-License-Identifier: Apache-2.0
// OrinEmbedding: one block per token; a thread makes 8 neighbouring values at a time.
#include "common/ptx.cuh"
#include "kernels/embedding/params.h"
#include "kernels/int4_gemm/params.h"

using namespace orin;

namespace {

struct alignas(16) Eight {
  half2 v[4];
};

__device__ Eight scaled(const float (&q)[8], float s) {
  Eight out;
#pragma unroll
  for (int i = 0; i < 4; ++i) out.v[i] = __floats2half2_rn(q[2 * i] * s, q[2 * i + 1] * s);
  return out;
}

// Where 8 columns of a row and their scale lie in the kernel layout (drawn in toolkit/orinkit/int4.py).
struct Place {
  size_t word;  // of 8 nibbles, in bit-reversed order
  size_t scale;

  __device__ Place(const EmbeddingParams& p, int id, int column) {
    const int row = id % kStripeRows, first = id - row, rows = min(kStripeRows, p.vocab - first);
    const int row_words = p.hidden / 8, chunk = column / kChunkColumns, inside = column % kChunkColumns / 8;
    const int words = min(4, row_words / 4 - 4 * chunk);  // that each of 4 lanes holds of a row in the chunk
    word = size_t(first) * row_words + rows * 16 * chunk + (row * 4 + inside % 4) * words + inside / 4;
    scale = size_t(first) * (p.hidden / p.group_size) + column / p.group_size * rows + row;
  }
};

template <TableFormat format>
__device__ Eight read_eight(const EmbeddingParams& p, int id, int column) {
  if (format == TableFormat::kFloat16) {
    return *reinterpret_cast<const Eight*>(static_cast<const half*>(p.table) + size_t(id) * p.hidden + column);
  }
  float q[8];
  const half* scales = static_cast<const half*>(p.scale);
  if (format == TableFormat::kInt8) {
    const uint2 raw =
        *reinterpret_cast<const uint2*>(static_cast<const signed char*>(p.table) + size_t(id) * p.hidden + column);
#pragma unroll
    for (int i = 0; i < 8; ++i) q[i] = float(static_cast<signed char>((i < 4 ? raw.x : raw.y) >> (8 * (i % 4))));
    return scaled(q, __half2float(scales[id]));
  }
  if (format == TableFormat::kInt4Kernel) {
    const Place at(p, id, column);
    const uint32 raw = static_cast<const uint32*>(p.table)[at.word];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int nibble = (i & 1) << 2 | (i & 2) | i >> 2;
      q[i] = float(int((raw >> (4 * nibble)) & 15) - 8);
    }
    return scaled(q, __half2float(scales[at.scale]));
  }
  const uint32 raw =
      *reinterpret_cast<const uint32*>(static_cast<const signed char*>(p.table) + (size_t(id) * p.hidden + column) / 2);
#pragma unroll
  for (int i = 0; i < 8; ++i) q[i] = float(int((raw >> (4 * i)) & 15) - 8);
  return scaled(q, __half2float(scales[size_t(id) * (p.hidden / p.group_size) + column / p.group_size]));
}

template <TableFormat format>
__device__ void embed(const EmbeddingParams& p) {
  begin_in_turn();
  const int id = p.ids[blockIdx.x];
  const bool is_known = id >= 0 && id < p.vocab;
  Eight* out = reinterpret_cast<Eight*>(static_cast<half*>(p.y) + size_t(blockIdx.x) * p.hidden);
  for (int i = threadIdx.x; i < p.hidden / 8; i += blockDim.x) {
    out[i] = is_known ? read_eight<format>(p, id, 8 * i) : Eight{};
  }
}

}  // namespace

extern "C" __global__ void embedding_float16(EmbeddingParams p) { embed<TableFormat::kFloat16>(p); }
extern "C" __global__ void embedding_int8(EmbeddingParams p) { embed<TableFormat::kInt8>(p); }
extern "C" __global__ void embedding_int4(EmbeddingParams p) { embed<TableFormat::kInt4>(p); }
extern "C" __global__ void embedding_int4_kernel(EmbeddingParams p) { embed<TableFormat::kInt4Kernel>(p); }
