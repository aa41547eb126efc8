// SPDX-License-Identifier: Apache-2.0
// OrinEmbedding: one block per token; a thread makes 8 neighbouring values at a time.
#include "common/ptx.cuh"
#include "kernels/embedding/params.h"

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
  const uint32 raw = *reinterpret_cast<const uint32*>(static_cast<const signed char*>(p.table) +
                                                      (size_t(id) * p.hidden + column) / 2);
#pragma unroll
  for (int i = 0; i < 8; ++i) q[i] = float(int((raw >> (4 * i)) & 15) - 8);
  return scaled(q, __half2float(scales[size_t(id) * (p.hidden / p.group_size) + column / p.group_size]));
}

template <TableFormat format>
__device__ void embed(const EmbeddingParams& p) {
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
