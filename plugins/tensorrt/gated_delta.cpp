// SPDX-License-Identifier: Apache-2.0
#include <iterator>

#include "kernels/gated_delta/launch.h"
#include "tensorrt/op.h"

namespace orin {
namespace {

#define ORIN_LIST(I, F, S) I(key_heads) I(value_heads) I(key_dim) I(value_dim) I(conv_width) F(norm_eps)
ORIN_ATTRIBUTES(ORIN_LIST)

enum : int { kQkvz, kBa, kConvWeight, kALog, kDtBias, kNorm, kConv, kRec, kCuSeqlens, kPastLens, kSlots };
constexpr Input kInputs[] = {{"qkvz", 2, kFloat16},
                             {"ba", 2, kFloat16},
                             {"conv_weight", 2, kFloat16},
                             {"a_log", 1, kFloat32},
                             {"dt_bias", 1, kFloat32},
                             {"norm", 1, kFloat32},
                             {"conv", 3, kFloat16, Input::kState},
                             {"rec", 4, kFloat32, Input::kState},
                             {"cu_seqlens", 1, kInt32},
                             {"past_lens", 1, kInt32},
                             {"slots", 1, kInt32}};

int columns(const void* attributes) {
  const auto& own = *static_cast<const Attributes*>(attributes);
  return own.value_heads * own.value_dim;
}
Type type(const void*) { return kFloat16; }

void resize(GatedDelta& a, int tokens, int sequences) { a.tokens = tokens, a.sequences = sequences; }

GatedDelta arguments_of(const Call& call) {
  const auto& own = attributes_of<Attributes>(call);
  const auto address = [&call](int input) { return call.inputs[input].address; };
  GatedDelta a{};
  a.qkvz = address(kQkvz), a.ba = address(kBa), a.conv_weight = address(kConvWeight), a.y = call.y;
  a.a_log = address(kALog), a.dt_bias = address(kDtBias), a.norm = address(kNorm);
  a.conv = address(kConv), a.rec = address(kRec);
  a.cu_seqlens = address(kCuSeqlens), a.past_lens = address(kPastLens), a.slots = address(kSlots);
  resize(a, call.inputs[kQkvz].size(0), call.inputs[kSlots].size(0));
  a.key_heads = own.key_heads, a.value_heads = own.value_heads, a.key_dim = own.key_dim, a.value_dim = own.value_dim;
  a.conv_width = own.conv_width, a.norm_eps = own.norm_eps;
  return a;
}

int check(const Call& call) {
  const auto& own = attributes_of<Attributes>(call);
  GatedDelta a = arguments_of(call);
  const int values = own.value_heads * own.value_dim, channels = 2 * own.key_heads * own.key_dim + values;
  const int slots = call.inputs[kRec].size(0);
  int status = expect_sizes(gated_delta_op, call, kQkvz, a.tokens, channels + values);
  if (!status) status = expect_sizes(gated_delta_op, call, kBa, a.tokens, 2 * own.value_heads);
  if (!status) status = expect_sizes(gated_delta_op, call, kConvWeight, channels, own.conv_width);
  if (!status) status = expect_sizes(gated_delta_op, call, kALog, own.value_heads);
  if (!status) status = expect_sizes(gated_delta_op, call, kDtBias, own.value_heads);
  if (!status) status = expect_sizes(gated_delta_op, call, kNorm, own.value_dim);
  if (!status) status = expect_sizes(gated_delta_op, call, kConv, slots, channels, own.conv_width - 1);
  if (!status) status = expect_sizes(gated_delta_op, call, kRec, slots, own.value_heads, own.key_dim, own.value_dim);
  if (!status) status = expect_sizes(gated_delta_op, call, kCuSeqlens, a.sequences + 1);
  if (!status) status = expect_sizes(gated_delta_op, call, kPastLens, a.sequences);
  a.tokens = 0;
  return status ? status : orin_gated_delta(&a, nullptr);
}

Scratch needs(const GatedDelta& a) { return {orin_gated_delta_semaphores(&a), orin_gated_delta_workspace(&a)}; }
Scratch scratch(const Call& call) { return needs(arguments_of(call)); }
Scratch most(const Call& call) {
  const GatedDelta largest = arguments_of(call);
  return most_scratch(largest, largest.tokens, largest.sequences, resize, needs);
}

int enqueue(const Call& call, Memory memory, Stream stream) {
  GatedDelta a = arguments_of(call);
  a.workspace = memory.workspace, a.semaphores = memory.zeroed;
  return orin_gated_delta(&a, stream);
}

}  // namespace

const Op gated_delta_op{"OrinGatedDelta",
                        kAttributes,
                        int(std::size(kAttributes)),
                        kInputs,
                        int(std::size(kInputs)),
                        {kQkvz, kQkvz},
                        columns,
                        type,
                        check,
                        scratch,
                        most,
                        enqueue};

}  // namespace orin
