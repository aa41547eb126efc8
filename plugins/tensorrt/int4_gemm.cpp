// SPDX-License-Identifier: Apache-2.0
// Weight, scales and zeros are in the kernel layout when a plan runs: whoever binds them converts them.
#include <cstring>
#include <iterator>

#include "kernels/int4_gemm/launch.h"
#include "tensorrt/op.h"

namespace orin {
namespace {

#define ORIN_LIST(I, F, S) I(n) I(k) I(group_size) S(activation) F(norm_eps) I(float32_output)
ORIN_ATTRIBUTES(ORIN_LIST)

enum : int { kX, kWeight, kScales, kZeros, kNorm, kBias, kResidual, kRows, kColumns };
constexpr Input kInputs[] = {{"x", 2, kFloat16},
                             {"weight", 2, kInt8},
                             {"scales", 2, kFloat16},
                             {"zeros", 2, kInt8, Input::kOptional},
                             {"norm", 1, kFloat32, Input::kOptional},
                             {"bias", 1, kFloat16, Input::kOptional},
                             {"residual", 2, kFloat16, Input::kOptional},
                             {"rows", 1, kInt32, Input::kOptional},
                             {"columns", 1, kInt32, Input::kOptional}};

bool is_swiglu(const Attributes& own) { return std::strcmp(own.activation, "swiglu") == 0; }

int columns(const void* attributes) {
  const auto& own = *static_cast<const Attributes*>(attributes);
  return is_swiglu(own) ? own.n / 2 : own.n;
}
Type type(const void* attributes) {
  return static_cast<const Attributes*>(attributes)->float32_output ? kFloat32 : kFloat16;
}

Int4Gemm arguments_of(const Call& call) {
  const auto& own = attributes_of<Attributes>(call);
  Int4Gemm a{};
  a.x = call.inputs[kX].address, a.weight = call.inputs[kWeight].address, a.scales = call.inputs[kScales].address;
  a.zeros = call.inputs[kZeros].address, a.norm = call.inputs[kNorm].address, a.bias = call.inputs[kBias].address;
  a.residual = call.inputs[kResidual].address, a.rows = call.inputs[kRows].address;
  a.columns = call.inputs[kColumns].address;
  a.y = call.y;
  a.tokens = int4_gemm_op.rows(call);
  a.n = own.n, a.k = own.k, a.group_size = own.group_size;
  a.swiglu = is_swiglu(own), a.float32_output = own.float32_output, a.norm_eps = own.norm_eps;
  return a;
}

int check(const Call& call) {
  const auto& own = attributes_of<Attributes>(call);
  if (!is_swiglu(own) && std::strcmp(own.activation, "none")) {
    return bad_argument("OrinInt4Gemm: activation: expected none or swiglu, found %s", own.activation);
  }
  Int4Gemm a = arguments_of(call);
  const int tokens = a.tokens;
  a.tokens = 0;
  int status = orin_int4_gemm(&a, nullptr);  // first: what follows divides by the size of a group
  if (!status) status = expect_sizes(int4_gemm_op, call, kX, call.inputs[kX].size(0), own.k);
  if (!status) status = expect_sizes(int4_gemm_op, call, kWeight, own.n, own.k / 2);
  if (!status) status = expect_sizes(int4_gemm_op, call, kScales, own.n, own.k / own.group_size);
  if (!status) status = expect_sizes(int4_gemm_op, call, kZeros, own.n, (own.k / own.group_size + 1) / 2);
  if (!status) status = expect_sizes(int4_gemm_op, call, kNorm, own.k);
  if (!status) status = expect_sizes(int4_gemm_op, call, kBias, own.n);
  if (!status) status = expect_sizes(int4_gemm_op, call, kColumns, own.k);
  return status ? status : expect_sizes(int4_gemm_op, call, kResidual, tokens, columns(&own));
}

// Only a launch that splits columns looks at semaphores, and such a launch has a workspace.
Scratch needs(const Int4Gemm& a) {
  const int64_t workspace = orin_int4_gemm_workspace(&a);
  return {workspace ? orin_int4_gemm_semaphores(&a) : 0, workspace};
}
Scratch scratch(const Call& call) { return needs(arguments_of(call)); }
Scratch most(const Call& call) {
  const auto resize = [](Int4Gemm& a, int tokens, int) { a.tokens = tokens; };
  return most_scratch(arguments_of(call), int4_gemm_op.rows(call), 1, resize, needs);
}

int enqueue(const Call& call, Memory memory, Stream stream) {
  Int4Gemm a = arguments_of(call);
  a.workspace = memory.workspace, a.semaphores = memory.zeroed;
  return orin_int4_gemm(&a, stream);
}

}  // namespace

const Op int4_gemm_op{"OrinInt4Gemm",
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
