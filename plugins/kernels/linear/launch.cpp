// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear/launch.h"

#include "common/status.h"
#include "kernels/linear/params.h"
#include "kernels/linear/select.h"

namespace orin {
namespace {

// By [int8], and [more than 8 tokens].
const Kernel narrow[2] = {{"linear_streamed", "linear_narrow_float16"}, {"linear_streamed", "linear_narrow_int8"}};
const Kernel middle[2][2] = {
    {{"linear_streamed", "linear_middle_float16_8"}, {"linear_streamed", "linear_middle_float16_16"}},
    {{"linear_streamed", "linear_middle_int8_8"}, {"linear_streamed", "linear_middle_int8_16"}}};
const Kernel wide[2][2] = {
    {{"linear_streamed", "linear_wide_float16_8"}, {"linear_streamed", "linear_wide_float16_16"}},
    {{"linear_streamed", "linear_wide_int8_8"}, {"linear_streamed", "linear_wide_int8_16"}}};

struct Tile {
  int size;
  unsigned threads;
  unsigned shared;  // stages of two tiles of 64 halves a row
  Kernel float16, int8;
};

constexpr unsigned stages(int count, int size) { return unsigned(count * 2 * size * 64 * 2); }

const Tile tiles[] = {
    {128,
     256,
     stages(3, 128),
     {"linear_tiled", "linear_tiled_float16_128", int(stages(3, 128))},
     {"linear_tiled", "linear_tiled_int8_128", int(stages(3, 128))}},
    {64,
     128,
     stages(4, 64),
     {"linear_tiled", "linear_tiled_float16_64", int(stages(4, 64))},
     {"linear_tiled", "linear_tiled_int8_64", int(stages(4, 64))}},
    {32, 64, stages(5, 32), {"linear_tiled", "linear_tiled_float16_32"}, {"linear_tiled", "linear_tiled_int8_32"}}};

const Kernel norm("linear_tiled", "linear_norm");
const Kernel dots("linear_dots", "linear_dots_float16", 0, Start::kEarly);

int check(const Linear& a) {
  if (a.bits != 16 && a.bits != 8) return bad_argument("linear: bits: expected 16 or 8, found %d", a.bits);
  if ((a.bits == 8) != (a.scale != nullptr)) {
    return bad_argument("linear: scale: expected one with int8 weights only, found bits %d and %s", a.bits,
                        a.scale ? "a scale" : "none");
  }
  const int multiple = 128 / a.bits;
  if (a.k <= 0 || a.k % multiple) {
    return bad_argument("linear: k: expected a positive multiple of %d, found %d", multiple, a.k);
  }
  if (a.n <= 0 || (a.swiglu && a.n % 2)) {
    return bad_argument("linear: n: expected a positive number, even for swiglu, found %d", a.n);
  }
  if (!a.rows && a.outputs != a.tokens) {
    return bad_argument("linear: outputs: expected %d as there are no rows, found %d", a.tokens, a.outputs);
  }
  for (const void* pointer : {a.x, a.weight}) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16) {
      return bad_argument("linear: expected x and weight aligned to 16 bytes, found %p and %p", a.x, a.weight);
    }
  }
  return kOk;
}

int run_tiled(LinearParams p, const Linear& a, int size, Stream stream) {
  if (a.norm) {
    if (!a.workspace) return bad_argument("linear: workspace: expected one for more than 16 rows with a norm");
    const LinearNormParams before{a.x, p.norm, p.rows, a.workspace, a.tokens, a.outputs, a.k, a.norm_eps};
    if (const int status = norm.launch({unsigned(ceil_div(a.outputs, 4))}, {128}, 0, stream, before)) return status;
    p.x = a.workspace, p.source = nullptr;
  }
  for (const Tile& tile : tiles) {
    if (tile.size != size) continue;
    const Dim3 grid{unsigned(ceil_div(a.outputs, size)), unsigned(ceil_div(a.n, size))};
    return (a.bits == 8 ? tile.int8 : tile.float16).launch(grid, {tile.threads}, tile.shared, stream, p);
  }
  return bad_argument("linear: no kernel with tiles of %d", size);
}

int run_streamed(const LinearParams& p, const Linear& a, const LinearChoice& choice, Stream stream) {
  const bool is_int8 = a.bits == 8, is_high = choice.tokens > 8;
  const Kernel& kernel = choice.kind == LinearChoice::kNarrow   ? narrow[is_int8]
                         : choice.kind == LinearChoice::kMiddle ? middle[is_int8][is_high]
                                                                : wide[is_int8][is_high];
  const Dim3 grid{unsigned(ceil_div(a.n, choice.columns)), unsigned(ceil_div(a.outputs, choice.tokens))};
  return kernel.launch(grid, {256}, 0, stream, p);
}

}  // namespace
}  // namespace orin

ORIN_ABI_EXPORT(linear, ORIN_LINEAR_FIELDS)

ORIN_API int64_t orin_linear_workspace(const orin::Linear* a) {
  const bool is_needed = a->norm && a->outputs > orin::kMostStreamedTokens;
  return is_needed ? int64_t(a->outputs) * a->k * 2 : 0;
}

ORIN_API int orin_linear(const orin::Linear* a, orin::Stream stream) {
  using namespace orin;
  if (const int status = check(*a)) return status;
  if (a->outputs == 0) return kOk;
  const auto* rows = static_cast<const int*>(a->rows);
  LinearParams p{a->x,
                 a->weight,
                 a->scale,
                 static_cast<const float*>(a->norm),
                 a->bias,
                 a->residual,
                 rows,
                 rows,
                 a->y,
                 a->tokens,
                 a->outputs,
                 a->n,
                 a->k,
                 a->swiglu,
                 a->float32_output,
                 a->norm_eps,
                 0};
  if (is_of_dots(a->outputs, a->n, a->bits, a->swiglu)) {
    return dots.launch({unsigned(a->n), unsigned(a->outputs)}, {128}, 0, stream, p);
  }
  const LinearChoice choice = choose_linear(a->outputs, a->n, device());
  p.block_tokens = choice.tokens;
  return choice.kind == LinearChoice::kTiled ? run_tiled(p, *a, choice.columns, stream)
                                             : run_streamed(p, *a, choice, stream);
}
