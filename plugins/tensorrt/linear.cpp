// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <iterator>

#include "kernels/linear/launch.h"
#include "tensorrt/op.h"

namespace orin {
namespace {

#define ORIN_LIST(I, F, S) I(n) I(k) S(activation) F(norm_eps) I(float32_output)
ORIN_ATTRIBUTES(ORIN_LIST)

enum : int { kX, kWeight, kScale, kNorm, kBias, kResidual, kRows };
constexpr Input kInputs[] = {{"x", 2, kFloat16},
                             {"weight", 2, kFloat16 | kInt8},
                             {"scale", 1, kFloat16, Input::kOptional},
                             {"norm", 1, kFloat32, Input::kOptional},
                             {"bias", 1, kFloat16, Input::kOptional},
                             {"residual", 2, kFloat16, Input::kOptional},
                             {"rows", 1, kInt32, Input::kOptional}};

bool is_swiglu(const Attributes& own) { return std::strcmp(own.activation, "swiglu") == 0; }

int columns(const void* attributes) {
  const auto& own = *static_cast<const Attributes*>(attributes);
  return is_swiglu(own) ? own.n / 2 : own.n;
}
Type type(const void* attributes) {
  return static_cast<const Attributes*>(attributes)->float32_output ? kFloat32 : kFloat16;
}

Linear arguments_of(const Call& call) {
  const auto& own = attributes_of<Attributes>(call);
  Linear a{};
  a.x = call.inputs[kX].address, a.weight = call.inputs[kWeight].address, a.scale = call.inputs[kScale].address;
  a.norm = call.inputs[kNorm].address, a.bias = call.inputs[kBias].address;
  a.residual = call.inputs[kResidual].address, a.rows = call.inputs[kRows].address;
  a.y = call.y;
  a.tokens = call.inputs[kX].size(0), a.outputs = linear_op.rows(call);
  a.n = own.n, a.k = own.k, a.bits = call.inputs[kWeight].type == kInt8 ? 8 : 16;
  a.swiglu = is_swiglu(own), a.float32_output = own.float32_output, a.norm_eps = own.norm_eps;
  return a;
}

int check(const Call& call) {
  const auto& own = attributes_of<Attributes>(call);
  if (!is_swiglu(own) && std::strcmp(own.activation, "none")) {
    return bad_argument("OrinLinear: activation: expected none or swiglu, found %s", own.activation);
  }
  Linear a = arguments_of(call);
  int status = expect_sizes(linear_op, call, kX, a.tokens, own.k);
  if (!status) status = expect_sizes(linear_op, call, kWeight, own.n, own.k);
  if (!status) status = expect_sizes(linear_op, call, kScale, own.n);
  if (!status) status = expect_sizes(linear_op, call, kNorm, own.k);
  if (!status) status = expect_sizes(linear_op, call, kBias, own.n);
  if (!status) status = expect_sizes(linear_op, call, kResidual, a.outputs, columns(&own));
  a.tokens = a.outputs = 0;
  return status ? status : orin_linear(&a, nullptr);
}

Scratch needs(const Linear& a) { return {0, orin_linear_workspace(&a)}; }
Scratch scratch(const Call& call) { return needs(arguments_of(call)); }
Scratch most(const Call& call) {
  const auto resize = [](Linear& a, int tokens, int) { a.outputs = tokens; };
  return most_scratch(arguments_of(call), linear_op.rows(call), 1, resize, needs);
}

int enqueue(const Call& call, Memory memory, Stream stream) {
  Linear a = arguments_of(call);
  a.workspace = memory.workspace;
  return orin_linear(&a, stream);
}

}  // namespace

const Op linear_op{"OrinLinear",
                   kAttributes,
                   int(std::size(kAttributes)),
                   kInputs,
                   int(std::size(kInputs)),
                   {kX, kRows},
                   columns,
                   type,
                   check,
                   scratch,
                   most,
                   enqueue};

}  // namespace orin
