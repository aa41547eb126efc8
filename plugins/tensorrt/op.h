// SPDX-License-Identifier: Apache-2.0
// What a runtime has to know of an op, without a word of TensorRT: its inputs, its attributes, the shape of its output,
// and how a call becomes a launch. toolkit/orinkit/ops describes the same ops; a test compares the two.
//
// The first output is y, [rows, columns]; after it come the states, each with type and shape of its input.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "common/abi.h"
#include "common/status.h"

namespace orin {

enum Type : unsigned { kFloat32 = 1, kFloat16 = 2, kInt8 = 4, kInt32 = 8 };  // bits: an input may allow several

constexpr int kMaxRank = 5;
constexpr int kMaxInputs = 12;
constexpr int kMaxOutputs = 3;
constexpr int kMaxAttributes = 9;
constexpr int kAttributeBytes = 64;
constexpr int kTextBytes = 16;  // of a text attribute, with its zero

struct Attribute {
  const char* name;
  enum Kind { kInt, kFloat, kText } kind;
  int offset;  // in the op's struct of attributes
};

// ORIN_ATTRIBUTES(LIST) declares struct Attributes and its table kAttributes from one list of I(int), F(float),
// S(text).
#define ORIN_ATTRIBUTE_INT(name) int32_t name;
#define ORIN_ATTRIBUTE_FLOAT(name) float name;
#define ORIN_ATTRIBUTE_TEXT(name) char name[kTextBytes];
#define ORIN_ROW_INT(name) {#name, Attribute::kInt, int(offsetof(Attributes, name))},
#define ORIN_ROW_FLOAT(name) {#name, Attribute::kFloat, int(offsetof(Attributes, name))},
#define ORIN_ROW_TEXT(name) {#name, Attribute::kText, int(offsetof(Attributes, name))},
#define ORIN_ATTRIBUTES(LIST)                                                              \
  struct Attributes {                                                                      \
    LIST(ORIN_ATTRIBUTE_INT, ORIN_ATTRIBUTE_FLOAT, ORIN_ATTRIBUTE_TEXT)                    \
  };                                                                                       \
  static_assert(sizeof(Attributes) <= kAttributeBytes, "make kAttributeBytes larger");     \
  constexpr Attribute kAttributes[] = {LIST(ORIN_ROW_INT, ORIN_ROW_FLOAT, ORIN_ROW_TEXT)}; \
  static_assert(std::size(kAttributes) <= kMaxAttributes, "make kMaxAttributes larger");

struct Input {
  const char* name;
  int rank;
  unsigned types;
  enum Kind { kPlain, kOptional, kState } kind = kPlain;
};

struct Tensor {
  int rank = 0;  // 0: an optional input that was left out
  int64_t sizes[kMaxRank] = {};
  Type type = kFloat16;
  void* address = nullptr;  // null only where the tensor is not there

  bool is_there() const { return rank > 0; }
  int size(int axis) const { return int(sizes[axis]); }
};

// The inputs of one node, with its attributes. While only shapes are known, y is null and no address is to be followed.
struct Call {
  const void* attributes;
  Tensor inputs[kMaxInputs];
  void* y = nullptr;
};

// Bytes that a launch needs: some set to zero before it, some with any contents.
struct Scratch {
  int64_t zeroed = 0, workspace = 0;
};

struct Memory {
  void* zeroed = nullptr;
  void* workspace = nullptr;
};

struct Op {
  const char* name;
  const Attribute* attributes;
  int num_attributes;
  const Input* inputs;
  int num_inputs;
  int rows_of[2];  // y has as many rows as the second of these inputs, or as the first where that is left out
  int (*columns)(const void* attributes);
  Type (*type)(const void* attributes);  // of y
  // kOk, or kBadArgument with a sentence: whether sizes fit each other, and the launcher would take them.
  int (*check)(const Call&);
  Scratch (*scratch)(const Call&);  // of this call
  Scratch (*most)(const Call&);     // of any call with at most so many tokens and sequences
  int (*enqueue)(const Call&, Memory, Stream);

  int num_states() const {
    int count = 0;
    for (int i = 0; i < num_inputs; ++i) count += inputs[i].kind == Input::kState;
    return count;
  }
  // The input that output `index` (1 or more) continues.
  int state(int index) const {
    int i = 0;
    for (int left = index; left > 0; ++i) left -= inputs[i].kind == Input::kState;
    return i - 1;
  }
  int rows(const Call& call) const { return call.inputs[rows_of[call.inputs[rows_of[1]].is_there()]].size(0); }
};

template <typename Attributes>
const Attributes& attributes_of(const Call& call) {
  return *static_cast<const Attributes*>(call.attributes);
}

// Refuse an input whose sizes are not these. A launcher believes what the attributes say.
template <typename... Sizes>
int expect_sizes(const Op& op, const Call& call, int input, Sizes... sizes) {
  const int64_t expected[] = {int64_t(sizes)...};
  const Tensor& found = call.inputs[input];
  for (int axis = 0; found.is_there() && axis < int(sizeof...(sizes)); ++axis) {
    if (found.sizes[axis] != expected[axis]) {
      return bad_argument("%s: %s: expected %lld along axis %d, found %lld", op.name, op.inputs[input].name,
                          static_cast<long long>(expected[axis]), axis, static_cast<long long>(found.sizes[axis]));
    }
  }
  return kOk;
}

// The most of both kinds of scratch over all steps up to `tokens` and `sequences`: more tokens may need less, because
// another kernel takes over. `resize(arguments, tokens, sequences)` makes the arguments those of a step.
template <typename Arguments, typename Resize, typename Needs>
Scratch most_scratch(Arguments arguments, int tokens, int sequences, Resize resize, Needs needs) {
  Scratch most;
  for (int b = 1; b <= sequences; ++b) {
    for (int t = 1; t <= tokens; ++t) {
      resize(arguments, t, b);
      const Scratch needed = needs(arguments);
      most = {std::max(most.zeroed, needed.zeroed), std::max(most.workspace, needed.workspace)};
    }
  }
  return most;
}

extern const Op embedding_op, int4_gemm_op, linear_op, attention_op, gated_delta_op;

}  // namespace orin
