// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/abi.h"

// OrinLinear. tokens: rows of x. outputs: rows of y; equal to tokens unless `rows` picks them. bits: 16 or 8 (int8 with
// `scale`). norm, bias, residual and rows may be null. x and weight must be aligned to 16 bytes, k to 16 bytes of
// weight. int64_t orin_linear_workspace(const orin::Linear*) gives the bytes of `workspace`, whose contents mean
// nothing.
#define ORIN_LINEAR_FIELDS(P, I, F) \
  P(x)                              \
  P(weight)                         \
  P(scale)                          \
  P(norm)                           \
  P(bias)                           \
  P(residual) P(rows) P(y) P(workspace) I(tokens) I(outputs) I(n) I(k) I(bits) I(swiglu) I(float32_output) F(norm_eps)

ORIN_ABI(Linear, linear, ORIN_LINEAR_FIELDS)

ORIN_API int64_t orin_linear_workspace(const orin::Linear* arguments);
