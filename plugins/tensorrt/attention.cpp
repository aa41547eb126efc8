// SPDX-License-Identifier: Apache-2.0
// The lengths of the sequences of a step lie in device memory, so the adapter goes by shapes: a step with no more
// tokens than sequences has one token of each at most; any other may have all its tokens in one sequence, up to what
// its cache holds.
#include <iterator>

#include "kernels/attention/launch.h"
#include "tensorrt/op.h"

namespace orin {
namespace {

#define ORIN_LIST(I, F, S) \
  I(heads) I(kv_heads) I(head_dim) I(rotary_dim) I(window) F(scale) F(softcap) I(gate) F(norm_eps)
ORIN_ATTRIBUTES(ORIN_LIST)

enum : int { kQkv, kKv, kCuSeqlens, kPastLens, kSlots, kQNorm, kKNorm, kCos, kSin };
constexpr Input kInputs[] = {{"qkv", 2, kFloat16},
                             {"kv", 5, kFloat16, Input::kState},
                             {"cu_seqlens", 1, kInt32},
                             {"past_lens", 1, kInt32},
                             {"slots", 1, kInt32},
                             {"q_norm", 1, kFloat32, Input::kOptional},
                             {"k_norm", 1, kFloat32, Input::kOptional},
                             {"cos", 2, kFloat32},
                             {"sin", 2, kFloat32}};

int columns(const void* attributes) {
  const auto& own = *static_cast<const Attributes*>(attributes);
  return own.heads * own.head_dim;
}
Type type(const void*) { return kFloat16; }

void resize(Attention& a, int tokens, int sequences) {
  a.tokens = tokens, a.sequences = sequences;
  a.max_step = tokens <= sequences ? 1 : std::min(tokens, a.capacity);
}

Attention arguments_of(const Call& call) {
  const auto& own = attributes_of<Attributes>(call);
  const auto address = [&call](int input) { return call.inputs[input].address; };
  Attention a{};
  a.qkv = address(kQkv), a.kv = address(kKv), a.y = call.y;
  a.cu_seqlens = address(kCuSeqlens), a.past_lens = address(kPastLens), a.slots = address(kSlots);
  a.q_norm = address(kQNorm), a.k_norm = address(kKNorm), a.cos = address(kCos), a.sin = address(kSin);
  a.capacity = call.inputs[kKv].size(3);
  resize(a, call.inputs[kQkv].size(0), call.inputs[kSlots].size(0));
  const int positions = call.inputs[kCos].size(0);
  a.max_length = own.window ? positions : std::min(positions, a.capacity);
  a.heads = own.heads, a.kv_heads = own.kv_heads, a.head_dim = own.head_dim, a.rotary_dim = own.rotary_dim;
  a.window = own.window, a.gate = own.gate, a.scale = own.scale, a.softcap = own.softcap, a.norm_eps = own.norm_eps;
  return a;
}

int check(const Call& call) {
  const auto& own = attributes_of<Attributes>(call);
  Attention a = arguments_of(call);
  const int width = (own.heads * (own.gate ? 2 : 1) + 2 * own.kv_heads) * own.head_dim;
  const int positions = call.inputs[kCos].size(0);
  int status = expect_sizes(attention_op, call, kQkv, a.tokens, width);
  if (!status) {
    status = expect_sizes(attention_op, call, kKv, call.inputs[kKv].size(0), 2, own.kv_heads, a.capacity, own.head_dim);
  }
  if (!status) status = expect_sizes(attention_op, call, kCuSeqlens, a.sequences + 1);
  if (!status) status = expect_sizes(attention_op, call, kPastLens, a.sequences);
  if (!status) status = expect_sizes(attention_op, call, kQNorm, own.head_dim);
  if (!status) status = expect_sizes(attention_op, call, kKNorm, own.head_dim);
  if (!status) status = expect_sizes(attention_op, call, kCos, positions, own.rotary_dim / 2);
  if (!status) status = expect_sizes(attention_op, call, kSin, positions, own.rotary_dim / 2);
  a.tokens = 0;
  return status ? status : orin_attention(&a, nullptr);
}

Scratch needs(const Attention& a) { return {orin_attention_counters(&a), orin_attention_workspace(&a)}; }
Scratch scratch(const Call& call) { return needs(arguments_of(call)); }
Scratch most(const Call& call) {
  const Attention largest = arguments_of(call);
  return most_scratch(largest, largest.tokens, largest.sequences, resize, needs);
}

int enqueue(const Call& call, Memory memory, Stream stream) {
  Attention a = arguments_of(call);
  a.workspace = memory.workspace, a.counters = memory.zeroed;
  return orin_attention(&a, stream);
}

}  // namespace

const Op attention_op{"OrinAttention",
                      kAttributes,
                      int(std::size(kAttributes)),
                      kInputs,
                      int(std::size(kInputs)),
                      {kQkv, kQkv},
                      columns,
                      type,
                      check,
                      scratch,
                      most,
                      enqueue};

}  // namespace orin
