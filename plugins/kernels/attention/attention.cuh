// SPDX-License-Identifier: Apache-2.0
// What the attention kernels share: where a sequence lies, rows of a head (norm, rotary, append), rows of the cache.
#pragma once

#include "common/ptx.cuh"
#include "kernels/attention/params.h"

namespace orin {

constexpr unsigned kAllLanes = 0xffffffffu;
// Below every score, and finite: exp2(floor - floor) is 1 and not NaN.
constexpr float kFloor = -1e30f;

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// tanh.approx is wrong by 5e-4, which times a softcap of 50 would be seen; this is right to 1e-7.
__device__ __forceinline__ float tanh_by_exp2(float x) {
  return 1.f - __fdividef(2.f, exp2_approx(x * 2.885390082f) + 1.f);
}

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.f, 1.f + exp2_approx(-1.442695041f * x)); }

struct Sequence {
  int begin;   // first token in the packed step
  int tokens;  // of this step
  int past;
  int slot;
  int length;  // after this step
  int oldest;  // first position that the cache still holds after this step
  bool is_live;
};

__device__ __forceinline__ Sequence read_sequence(const AttentionParams& p, int b) {
  Sequence s;
  s.begin = p.cu_seqlens[b];
  s.tokens = p.cu_seqlens[b + 1] - s.begin;
  s.past = p.past_lens[b];
  s.slot = p.slots[b];
  s.length = s.past + s.tokens;
  s.oldest = max(0, s.length - p.capacity);
  s.is_live = s.slot >= 0 && s.tokens > 0 && s.tokens <= p.max_step && s.length <= p.max_length;
  return s;
}

// row / group for a row of one KV head, all query heads of a token in turn. Exact below 2^32 / group rows, and much
// shorter than a division, of which a decode step would otherwise wait for a dozen one after the other.
__device__ __forceinline__ int token_of(const AttentionParams& p, int row) {
  return p.group_factor ? int(__umulhi(row, p.group_factor)) : row;
}

__device__ __forceinline__ int head_of(const AttentionParams& p, int kv_head, int row) {
  return kv_head * p.group + row - token_of(p, row) * p.group;
}

// Row of the cache that holds `position`; only rings need the division.
__device__ __forceinline__ int cache_row(int position, int capacity) {
  return position < capacity ? position : position % capacity;
}

// K or V of one head of one slot.
struct CacheHead {
  void* rows;     // [capacity, D]
  float* scales;  // [capacity], int8 only
};

template <int D, bool kInt8>
__device__ __forceinline__ CacheHead cache_head(const AttentionParams& p, int slot, bool is_value, int h) {
  const size_t first = (size_t(slot * 2 + is_value) * p.kv_heads + h) * p.capacity;
  return {static_cast<char*>(p.kv) + first * D * (kInt8 ? 1 : 2), kInt8 ? p.kv_scale + first : nullptr};
}

// ---- rows of a head: D/8 lanes of a group hold eight neighbouring values each; a warp holds 32/kGroup rows ----------

template <int D>
struct RowGroup {
  static constexpr int kUsed = D / 8;
  static constexpr int kGroup = D <= 64 ? 8 : D <= 128 ? 16 : 32;
  static constexpr int kRowsPerWarp = 32 / kGroup;
};

struct alignas(16) Eight {
  half2 v[4];
};

// Column 8 * `chunk` of head `head` of one token of qkv.
template <int D>
__device__ __forceinline__ Eight load_qkv(const AttentionParams& p, int token, int head, int chunk) {
  const size_t width = size_t(p.heads * (1 + p.gate) + 2 * p.kv_heads) * D;
  const half* from = static_cast<const half*>(p.qkv) + token * width + head * D + 8 * chunk;
  return *reinterpret_cast<const Eight*>(from);
}

__device__ __forceinline__ void unpack(const Eight& from, float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __half22float2(from.v[i]);
    x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
  }
}

__device__ __forceinline__ Eight pack(const float (&x)[8]) {
  Eight out;
#pragma unroll
  for (int i = 0; i < 4; ++i) out.v[i] = __floats2half2_rn(x[2 * i], x[2 * i + 1]);
  return out;
}

__device__ __forceinline__ void load8(const float* from, float (&x)[8]) {
  const float4 a = __ldg(reinterpret_cast<const float4*>(from)), b = __ldg(reinterpret_cast<const float4*>(from + 4));
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

// A row of qkv on its way into the op: all that has to be loaded for it, so that the loads wait together.
struct RowInput {
  Eight raw;
  float weight[8];
  float cos[8];
  float sin[8];
};

// Which row of qkv, and what is done to it.
struct RowTask {
  int token;  // of the sequence
  int head;   // of qkv
  const float* norm;
  bool is_rotated;
  bool exists;
};

__device__ __forceinline__ RowTask query_task(const AttentionParams& p, const Sequence& s, int kv_head, int row) {
  const int token = token_of(p, row);
  return {token, head_of(p, kv_head, row), p.q_norm, true, token < s.tokens};
}

__device__ __forceinline__ RowTask new_task(const AttentionParams& p, const Sequence& s, int kv_head, bool is_value,
                                            int token) {
  const int head = p.heads * (1 + p.gate) + (is_value ? p.kv_heads : 0) + kv_head;
  return {token, head, is_value ? nullptr : p.k_norm, !is_value, token < s.tokens};
}

template <int D>
__device__ __forceinline__ RowInput load_row(const AttentionParams& p, const Sequence& s, const RowTask& task,
                                             int chunk) {
  RowInput in{};
  if (!task.exists || chunk >= RowGroup<D>::kUsed) return in;
  in.raw = load_qkv<D>(p, s.begin + task.token, task.head, chunk);
  if (task.norm) load8(task.norm + 8 * chunk, in.weight);
  const int half_chunks = p.half_rotary / 8;
  if (task.is_rotated && chunk < 2 * half_chunks) {
    const int column = 8 * (chunk < half_chunks ? chunk : chunk - half_chunks);
    const size_t at = size_t(s.past + task.token) * p.half_rotary + column;
    load8(p.cos + at, in.cos);
    load8(p.sin + at, in.sin);
  }
  return in;
}

// RMSNorm and rotate-half rotary embedding of the row that the lane's group holds. The partner of dimension d,
// d +- half, lies in another lane of the group because half is a multiple of 8. The whole warp calls this.
template <int D>
__device__ __forceinline__ void norm_and_rotate(const AttentionParams& p, const RowTask& task, const RowInput& in,
                                                int chunk, float (&x)[8]) {
  using Group = RowGroup<D>;
  unpack(in.raw, x);
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < 8; ++i) sum += x[i] * x[i];
#pragma unroll
  for (int lane = Group::kGroup / 2; lane; lane /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lane, Group::kGroup);
  const float factor = rsqrtf(sum / D + p.norm_eps);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = task.norm ? x[i] * factor * in.weight[i] : x[i];
  const int half_chunks = p.half_rotary / 8;
  const bool is_first = chunk < half_chunks, is_turned = task.is_rotated && chunk < 2 * half_chunks;
  const int partner = !is_turned ? chunk : is_first ? chunk + half_chunks : chunk - half_chunks;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float other = __shfl_sync(kAllLanes, x[i], partner, Group::kGroup);
    if (is_turned) x[i] = x[i] * in.cos[i] + (is_first ? -other : other) * in.sin[i];
  }
}

// A new K or V row `x` to the cache if `writes`; gives it as a reader of the cache would see it. The whole warp calls
// this.
template <int D, bool kInt8>
__device__ __forceinline__ Eight append_row(const AttentionParams& p, const Sequence& s, int kv_head, bool is_value,
                                            int token, bool writes, int chunk, float (&x)[8]) {
  using Group = RowGroup<D>;
  const int row = cache_row(s.past + token, p.capacity);
  const bool is_written = writes && chunk < Group::kUsed;
  const CacheHead cache = cache_head<D, kInt8>(p, s.slot, is_value, kv_head);
  if (!kInt8) {
    const Eight rounded = pack(x);
    if (is_written) *reinterpret_cast<Eight*>(static_cast<half*>(cache.rows) + size_t(row) * D + 8 * chunk) = rounded;
    return rounded;
  }
  float largest = 0.f;
#pragma unroll
  for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(x[i]));
#pragma unroll
  for (int lane = Group::kGroup / 2; lane; lane /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, lane, Group::kGroup));
  }
  const float scale = largest / 127.f, inverse = largest > 0.f ? 127.f / largest : 0.f;
  uint32 packed[2] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int q = __float2int_rn(x[i] * inverse);
    packed[i / 4] |= uint32(q & 255) << (8 * (i % 4));
    x[i] = float(q) * scale;
  }
  if (is_written) {
    *reinterpret_cast<uint2*>(static_cast<signed char*>(cache.rows) + size_t(row) * D + 8 * chunk) =
        make_uint2(packed[0], packed[1]);
    if (chunk == 0) cache.scales[row] = scale;
  }
  return pack(x);
}

// ---- rows of the cache to shared memory -----------------------------------------------------------------------------

// Positions [position, position + kRows) of one head to shared memory, in flight when this returns; positions outside
// [oldest, end) become zeros, because what such a row holds may be NaN, and 0 * NaN is NaN. `row` is the cache row of
// the first position. Called by kThreads threads. An int8 cache arrives as it is, kRows float scales behind the rows.
template <int D, bool kInt8, int kRows, int kThreads>
__device__ __forceinline__ void fetch(const CacheHead& cache, void* to, int position, int row, int oldest, int end,
                                      int capacity, int thread) {
  constexpr int kBytes = kInt8 ? D : 2 * D, kStride = kInt8 ? D : 2 * (D + kPadding), kChunks = kBytes / 16;
  constexpr int kLanes = kChunks <= 4 ? 4 : kChunks <= 8 ? 8 : kChunks <= 16 ? 16 : 32;  // of a row
  constexpr int kStep = kThreads / kLanes;                                               // rows at a time
  static_assert(kRows % kStep == 0, "whole steps");
  const int first = thread / kLanes, chunk = thread % kLanes;
  const char* from = static_cast<const char*>(cache.rows) + 16 * chunk;
  char* target = static_cast<char*>(to) + first * kStride + 16 * chunk;
  if (kChunks < kLanes && chunk >= kChunks) {
  } else if (position >= oldest && position + kRows <= end && row + kRows <= capacity) {
    from += size_t(row + first) * kBytes;
#pragma unroll
    for (int i = 0; i < kRows; i += kStep) cp_async16(target + i * kStride, from + i * kBytes);
  } else {
#pragma unroll(kRows > kDecodeKeys ? 1 : 4)  // prefill has no registers left for more at a time
    for (int i = 0; i < kRows; i += kStep) {
      const int source = cache_row(row + first + i, capacity);
      const int held = position + first + i;
      cp_async16(target + i * kStride, from + size_t(source) * kBytes, held >= oldest && held < end);
    }
  }
  if (kInt8 && thread < kRows) {
    const int source = cache_row(row + thread, capacity);
    const bool is_held = position + thread >= oldest && position + thread < end;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(
                     shared_address(static_cast<char*>(to) + kRows * kStride + 4 * thread)),
                 "l"(cache.scales + source), "r"(is_held ? 4 : 0));
  }
}

// A fetched int8 tile to float16 rows as the kernels of a float16 cache have them.
template <int D, int kRows, int kThreads>
__device__ __forceinline__ void dequantise(const void* from, half* to, int thread) {
  constexpr int kChunks = D / 16, kSteps = (kRows * kChunks + kThreads - 1) / kThreads;
  const float* scales = reinterpret_cast<const float*>(static_cast<const char*>(from) + kRows * D);
#pragma unroll 2
  for (int i = 0; i < kSteps; ++i) {
    const int index = thread + i * kThreads, r = index / kChunks, chunk = index % kChunks;
    if (kRows * kChunks % kThreads && index >= kRows * kChunks) break;
    const uint4 raw = *reinterpret_cast<const uint4*>(static_cast<const char*>(from) + r * D + 16 * chunk);
    const uint32 words[4] = {raw.x, raw.y, raw.z, raw.w};
    const float scale = scales[r];
    half2 out[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      // A byte b becomes the float 2^23 + b + 128 by one permutation; the subtraction is exact.
      const uint32 biased = words[j / 2] ^ 0x80808080u;
      const float a = __uint_as_float(__byte_perm(biased, 0x4b000000u, j % 2 ? 0x7442 : 0x7440)) - 8388736.f;
      const float b = __uint_as_float(__byte_perm(biased, 0x4b000000u, j % 2 ? 0x7443 : 0x7441)) - 8388736.f;
      out[j] = __floats2half2_rn(a * scale, b * scale);
    }
    half* row = to + r * (D + kPadding) + 16 * chunk;
    *reinterpret_cast<uint4*>(row) = *reinterpret_cast<uint4*>(out);
    *reinterpret_cast<uint4*>(row + 8) = *reinterpret_cast<uint4*>(out + 4);
  }
}

__device__ __forceinline__ uint32 pack_half2(float a, float b) {
  const half2 pair = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32*>(&pair);
}

}  // namespace orin
