// SPDX-License-Identifier: Apache-2.0
// An INT4 table is in the kernel layout when a plan runs, as products' weights are: a tied head has the same bytes.
#include <iterator>

#include "kernels/embedding/launch.h"
#include "tensorrt/op.h"

namespace orin {
namespace {

#define ORIN_LIST(I, F, S) I(hidden) I(group_size) I(float32_output)
ORIN_ATTRIBUTES(ORIN_LIST)

enum : int { kIds, kTable, kScale };
constexpr Input kInputs[] = {
    {"ids", 1, kInt32}, {"table", 2, kFloat16 | kInt8}, {"scale", 0, kFloat16, Input::kOptional}};

Embedding arguments_of(const Call& call) {
  const auto& own = attributes_of<Attributes>(call);
  Embedding a{};
  a.ids = call.inputs[kIds].address, a.table = call.inputs[kTable].address, a.scale = call.inputs[kScale].address;
  a.y = call.y;
  a.tokens = call.inputs[kIds].size(0), a.vocab = call.inputs[kTable].size(0), a.hidden = own.hidden;
  a.bits = call.inputs[kTable].type == kFloat16 ? 16 : own.group_size ? 4 : 8;
  a.group_size = own.group_size, a.kernel_layout = a.bits == 4;
  return a;
}

int check(const Call& call) {
  const auto& own = attributes_of<Attributes>(call);
  if (own.float32_output)
    return bad_argument("OrinEmbedding: float32_output: expected 0, found %d", own.float32_output);
  Embedding a = arguments_of(call);
  const int width = a.bits == 4 ? own.hidden / 2 : own.hidden;
  if (const int status = expect_sizes(embedding_op, call, kTable, a.vocab, width)) return status;
  if (const int status = expect_sizes(embedding_op, call, kScale, a.vocab)) return status;
  a.tokens = 0;
  return orin_embedding(&a, nullptr);
}

int columns(const void* attributes) { return static_cast<const Attributes*>(attributes)->hidden; }
Type type(const void*) { return kFloat16; }
Scratch scratch(const Call&) { return {}; }

int enqueue(const Call& call, Memory, Stream stream) {
  const Embedding a = arguments_of(call);
  return orin_embedding(&a, stream);
}

}  // namespace

const Op embedding_op{"OrinEmbedding",
                      kAttributes,
                      int(std::size(kAttributes)),
                      kInputs,
                      int(std::size(kInputs)),
                      {kIds, kIds},
                      columns,
                      type,
                      check,
                      scratch,
                      scratch,
                      enqueue};

}  // namespace orin
