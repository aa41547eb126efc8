// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace orin {

struct LinearParams {
  const void* x;         // float16 [tokens, k]
  const void* weight;    // float16 or int8 [n, k], rows as in the file
  const void* scale;     // float16 [n] with an int8 weight
  const float* norm;     // [k] or null
  const void* bias;      // float16 [n] or null
  const void* residual;  // float16 [outputs, n'] or null; n' = n, or n/2 for swiglu
  const int* rows;       // [outputs] or null: y is zero where a row is outside 0..tokens-1
  const int* source;     // [outputs] row of x behind each output, or null: x lies in the order of the outputs
  void* y;               // float16 or float32 [outputs, n']
  int tokens;
  int outputs;
  int n;
  int k;
  int swiglu;
  int float32_output;
  float norm_eps;
  int block_tokens;  // of one block of a streamed kernel
};

struct LinearNormParams {
  const void* x;
  const float* norm;
  const int* rows;
  void* y;  // float16 [outputs, k]; zeros where a row is outside 0..tokens-1
  int tokens;
  int outputs;
  int k;
  float norm_eps;
};

}  // namespace orin
