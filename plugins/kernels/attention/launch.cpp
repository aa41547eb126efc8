// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention/launch.h"

#include "common/status.h"
#include "kernels/attention/params.h"
#include "kernels/attention/select.h"

namespace orin {
namespace {

constexpr int kDims[] = {64, 96, 128, 256};
constexpr float kLog2E = 1.4426950408889634f;

#define ORIN_DECODE(D, TILES, CACHE, INT8)                                                                    \
  {"attention_decode", "attention_decode_" #D "_" #TILES "_" #CACHE, decode_shared_bytes(D, 8 * TILES, INT8), \
   Start::kEarly}
#define ORIN_PREFILL(D, WARPS, KEYS, CACHE, INT8)                                \
  {"attention_prefill", "attention_prefill_" #D "_" #WARPS "_" #KEYS "_" #CACHE, \
   prefill_shared_bytes(D, WARPS, KEYS, INT8)}
#define ORIN_APPEND(D, CACHE) {"attention_prefill", "attention_append_" #D "_" #CACHE}

// [head dim][int8][rows / 8 - 1]
const Kernel decode[4][2][2] = {
#define ORIN_DECODE_ALL(D)                                                    \
  {                                                                           \
    {ORIN_DECODE(D, 1, float16, false), ORIN_DECODE(D, 2, float16, false)}, { \
      ORIN_DECODE(D, 1, int8, true), ORIN_DECODE(D, 2, int8, true)            \
    }                                                                         \
  }
    ORIN_DECODE_ALL(64), ORIN_DECODE_ALL(96), ORIN_DECODE_ALL(128), ORIN_DECODE_ALL(256)};

// [head dim][int8]
const Kernel append[4][2] = {{ORIN_APPEND(64, float16), ORIN_APPEND(64, int8)},
                             {ORIN_APPEND(96, float16), ORIN_APPEND(96, int8)},
                             {ORIN_APPEND(128, float16), ORIN_APPEND(128, int8)},
                             {ORIN_APPEND(256, float16), ORIN_APPEND(256, int8)}};
const Kernel prefill[4][2] = {{ORIN_PREFILL(64, 4, 64, float16, false), ORIN_PREFILL(64, 4, 32, int8, true)},
                              {ORIN_PREFILL(96, 4, 64, float16, false), ORIN_PREFILL(96, 4, 32, int8, true)},
                              {ORIN_PREFILL(128, 4, 64, float16, false), ORIN_PREFILL(128, 4, 32, int8, true)},
                              {ORIN_PREFILL(256, 8, 64, float16, false), ORIN_PREFILL(256, 8, 32, int8, true)}};
const Kernel prefill_256_4 ORIN_PREFILL(256, 4, 64, float16, false);

int index_of(int head_dim) {
  for (int i = 0; i < 4; ++i) {
    if (kDims[i] == head_dim) return i;
  }
  return -1;
}

AttentionChoice choice_of(const Attention& a) {
  return choose_attention({a.tokens, a.sequences, a.max_step, a.max_length, a.heads, a.kv_heads, a.head_dim, a.window,
                           a.kv_scale != nullptr},
                          device());
}

int check(const Attention& a) {
  if (device().sm_count == 0) return kNotInitialised;
  if (index_of(a.head_dim) < 0) {
    return bad_argument("attention: head_dim: expected 64, 96, 128 or 256, found %d", a.head_dim);
  }
  if (a.kv_heads < 1 || a.heads < 1 || a.heads % a.kv_heads) {
    return bad_argument("attention: heads: expected a multiple of kv_heads=%d, found %d", a.kv_heads, a.heads);
  }
  if (a.rotary_dim < 0 || a.rotary_dim > a.head_dim || a.rotary_dim % 16) {
    return bad_argument("attention: rotary_dim: expected a multiple of 16 up to head_dim=%d, found %d", a.head_dim,
                        a.rotary_dim);
  }
  if (a.tokens < 0 || a.sequences < 1 || a.sequences > 65535) {
    return bad_argument("attention: expected tokens >= 0 and 1 to 65535 sequences, found %d and %d", a.tokens,
                        a.sequences);
  }
  if (a.capacity < 1 || a.max_step < 1 || a.max_length < 1 || a.window < 0) {
    return bad_argument("attention: expected capacity, max_step, max_length >= 1 and window >= 0, found %d, %d, %d, %d",
                        a.capacity, a.max_step, a.max_length, a.window);
  }
  if (a.capacity < a.max_step) {
    return bad_argument("attention: capacity: expected max_step=%d or more, found %d; a step must not overwrite itself",
                        a.max_step, a.capacity);
  }
  if (!(a.scale > 0.f) || !(a.softcap >= 0.f)) {
    return bad_argument("attention: expected scale > 0 and softcap >= 0, found %g and %g", double(a.scale),
                        double(a.softcap));
  }
  return kOk;
}

AttentionParams params_of(const Attention& a, const AttentionChoice& c) {
  AttentionParams p{};
  p.qkv = a.qkv, p.kv = a.kv, p.y = a.y;
  p.kv_scale = static_cast<float*>(a.kv_scale);
  p.cu_seqlens = static_cast<const int*>(a.cu_seqlens);
  p.past_lens = static_cast<const int*>(a.past_lens);
  p.slots = static_cast<const int*>(a.slots);
  p.q_norm = static_cast<const float*>(a.q_norm), p.k_norm = static_cast<const float*>(a.k_norm);
  p.cos = static_cast<const float*>(a.cos), p.sin = static_cast<const float*>(a.sin);
  p.partials = a.workspace;
  p.counters = static_cast<int*>(a.counters);
  p.tokens = a.tokens, p.sequences = a.sequences, p.max_step = a.max_step, p.max_length = a.max_length;
  p.heads = a.heads, p.kv_heads = a.kv_heads, p.group = a.heads / a.kv_heads;
  p.group_factor = p.group == 1 ? 0 : unsigned(((uint64_t(1) << 32) + p.group - 1) / p.group);
  p.capacity = a.capacity, p.half_rotary = a.rotary_dim / 2;
  p.window = a.window, p.gate = a.gate, p.row_tiles = c.row_tiles, p.descending = c.descending;
  p.is_settled = a.settled, p.norm_eps = a.norm_eps;
  p.score_scale = kLog2E * (a.softcap > 0.f ? a.softcap : a.scale);
  p.softcap_scale = a.softcap > 0.f ? a.scale / a.softcap : 0.f;
  return p;
}

}  // namespace
}  // namespace orin

ORIN_ABI_EXPORT(attention, ORIN_ATTENTION_FIELDS)

ORIN_API int64_t orin_attention_workspace(const orin::Attention* a) {
  using namespace orin;
  if (check(*a)) return 0;
  const AttentionChoice c = choice_of(*a);
  return int64_t(a->sequences) * a->kv_heads * c.row_tiles * c.splits * c.rows * decode_partial_bytes(a->head_dim);
}

ORIN_API int64_t orin_attention_counters(const orin::Attention* a) {
  using namespace orin;
  return check(*a) ? 0 : int64_t(a->sequences) * a->kv_heads * choice_of(*a).row_tiles * 4;
}

ORIN_API int orin_attention(const orin::Attention* a, orin::Stream stream) {
  using namespace orin;
  if (const int status = check(*a)) return status;
  if (a->tokens == 0) return kOk;
  const int dim = index_of(a->head_dim);
  const bool int8 = a->kv_scale != nullptr;
  const AttentionChoice c = choice_of(*a);
  AttentionParams params = params_of(*a, c);
  if (c.is_decode) {
    if (c.splits > 1 && (!a->workspace || !a->counters)) {
      return bad_argument("attention: expected workspace and counters for %d splits, found none", c.splits);
    }
    const Dim3 grid{unsigned(c.splits), unsigned(a->kv_heads * c.row_tiles), unsigned(a->sequences)};
    const Kernel& attend = decode[dim][int8][c.rows / 8 - 1];
    int status = kOk;
    for (; params.first_token < kDecodeMaxStep * c.launches && !status; params.first_token += kDecodeMaxStep) {
      status = attend.launch(grid, {32 * kDecodeWarps}, c.shared_bytes, stream, params);
      params.is_settled = 0;  // the next one reads what this one appends
    }
    return status;
  }
  if (const int status = append[dim][int8].launch({unsigned(a->tokens)}, {128}, 0, stream, params)) return status;
  const Kernel& attend = a->head_dim == 256 && c.warps == 4 ? prefill_256_4 : prefill[dim][int8];
  return attend.launch({unsigned(c.blocks)}, {32u * c.warps}, c.shared_bytes, stream, params);
}
