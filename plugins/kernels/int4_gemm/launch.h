// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "common/abi.h"

// OrinInt4Gemm. weight, scales and zeros in the kernel layout (orin_int4_layout; toolkit/orinkit/int4.py draws it); x
// and y float16, y float32 with float32_output. tokens counts the rows of y; with `rows` these are picked rows of x.
// With `columns`, int32 [k], column j of W meets column columns[j] of the normed x: a kernel before the product
// gathers.
//
// workspace: orin_int4_gemm_workspace bytes, contents arbitrary, not shared by launches that may run at the same time.
// semaphores: orin_int4_gemm_semaphores bytes, zeroed once by the caller; a launch leaves them zero. The same rule.
//
// beside: null, or a Linear struct (kernels/linear/launch.h) on the host, read by the call: a product with float16
// weights of the same x and norm, which the same launch computes. orin_int4_gemm_takes_beside says of which shapes.
//
// tile, splits, warps_n, warps_k, stripes, blocks: 0 = chosen by select.h and stream.h; else the tuner's wish, as far
// as registers and shared memory allow. tile: 1 = the paths for few tokens, 2.. = kTiles. splits: of columns, more than
// 16 tokens. stripes: streaming: stripes of a unit, 1 or 2; else tiles of a warp between two barriers, few tokens with
// a norm. warps_k: streaming: warps of a block. blocks: few tokens: most blocks; else tiles along the tokens that run
// together.
// clang-format off
#define ORIN_INT4_GEMM_FIELDS(P, I, F)                                                                     \
  P(x) P(weight) P(scales) P(zeros) P(norm) P(bias) P(residual) P(rows) P(columns) P(y)                    \
  P(workspace) P(semaphores) P(beside)                                                                     \
  I(tokens) I(n) I(k) I(group_size) I(swiglu) I(float32_output) F(norm_eps)                                \
  I(tile) I(splits) I(warps_n) I(warps_k) I(stripes) I(blocks)
// clang-format on

ORIN_ABI(Int4Gemm, int4_gemm, ORIN_INT4_GEMM_FIELDS)
ORIN_API int64_t orin_int4_gemm_workspace(const orin::Int4Gemm* arguments);
ORIN_API int64_t orin_int4_gemm_semaphores(const orin::Int4Gemm* arguments);
ORIN_API int64_t orin_int4_gemm_takes_beside(const orin::Int4Gemm* arguments);  // 0 or 1, on this GPU
// "few 1x8 warps, 112 blocks, 4 tiles in 1 rounds" and the like, valid until the thread's next call.
ORIN_API const char* orin_int4_gemm_choice(const orin::Int4Gemm* arguments, int sm_count, int max_shared_bytes);

// Canonical weights to the kernel layout, not in place; zeros may be absent.
#define ORIN_INT4_LAYOUT_FIELDS(P, I, F) \
  P(weight) P(scales) P(zeros) P(weight_out) P(scales_out) P(zeros_out) I(n) I(k) I(group_size)

ORIN_ABI(Int4Layout, int4_layout, ORIN_INT4_LAYOUT_FIELDS)
