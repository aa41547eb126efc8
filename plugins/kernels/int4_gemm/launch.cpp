// SPDX-License-Identifier: Apache-2.0
#include "kernels/int4_gemm/launch.h"

#include <algorithm>
#include <cstdio>

#include "common/status.h"
#include "kernels/int4_gemm/params.h"
#include "kernels/int4_gemm/select.h"
#include "kernels/int4_gemm/stream.h"
#include "kernels/int4_gemm/tuned.h"
#include "kernels/linear/launch.h"

namespace orin {
namespace {

using namespace int4_gemm;

constexpr int kGroupSizes[] = {32, 64, 128};

#define ORIN_FEW(group, tokens, name) \
  {"int4_gemm_few", "int4_gemm_few_" #group "_" #tokens name, kMaxShared, Start::kEarly}
#define ORIN_FEW_TOKENS(group, tokens)                                            \
  {                                                                               \
    {ORIN_FEW(group, tokens, ""), ORIN_FEW(group, tokens, "_ragged")}, {          \
      ORIN_FEW(group, tokens, "_zeros"), ORIN_FEW(group, tokens, "_zeros_ragged") \
    }                                                                             \
  }
#define ORIN_FEW_GROUP(group) {ORIN_FEW_TOKENS(group, 8), ORIN_FEW_TOKENS(group, 16)}
const Kernel few[3][2][2][2] = {ORIN_FEW_GROUP(32), ORIN_FEW_GROUP(64), ORIN_FEW_GROUP(128)};

#define ORIN_NORM(group, tokens, name) \
  {"int4_gemm_few_norm", "int4_gemm_few_norm_" #group "_" #tokens name, kMaxShared, Start::kEarly}
#define ORIN_NORM_TOKENS(group, tokens)                                                                         \
  {                                                                                                             \
    {ORIN_NORM(group, tokens, ""), ORIN_NORM(group, tokens, "_phases"), ORIN_NORM(group, tokens, "_ragged")}, { \
      ORIN_NORM(group, tokens, "_zeros"), ORIN_NORM(group, tokens, "_zeros_phases"),                            \
          ORIN_NORM(group, tokens, "_zeros_ragged")                                                             \
    }                                                                                                           \
  }
#define ORIN_NORM_GROUP(group) {ORIN_NORM_TOKENS(group, 8), ORIN_NORM_TOKENS(group, 16)}
const Kernel few_norm[3][2][2][3] = {ORIN_NORM_GROUP(32), ORIN_NORM_GROUP(64), ORIN_NORM_GROUP(128)};

#define ORIN_MANY(group, tile, zeros, shared) {"int4_gemm_many", "int4_gemm_many_" #group "_" #tile zeros, shared}
#define ORIN_MANY_TILES(group, zeros)                                                \
  ORIN_MANY(group, 32x64x2, zeros, 65536), ORIN_MANY(group, 32x128x1, zeros, 65536), \
      ORIN_MANY(group, 64x128x1, zeros, 98304), ORIN_MANY(group, 64x128x2, zeros, 98304)
#define ORIN_MANY_GROUP(group)                                                      \
  {                                                                                 \
    {ORIN_MANY_TILES(group, ""), ORIN_MANY(group, 64x256x1, "", 81920)}, {          \
      ORIN_MANY_TILES(group, "_zeros"), ORIN_MANY(group, 64x128x1, "_zeros", 98304) \
    }                                                                               \
  }
const Kernel many[3][2][kNumTiles] = {ORIN_MANY_GROUP(32), ORIN_MANY_GROUP(64), ORIN_MANY_GROUP(128)};

#define ORIN_STREAM(group, tokens, stripes, name) \
  {"int4_gemm_stream", "int4_gemm_stream_" #group "_" #tokens "_" #stripes name, kMaxShared, Start::kEarly}
#define ORIN_STREAM_STRIPES(group, tokens, name) \
  {ORIN_STREAM(group, tokens, 1, name), ORIN_STREAM(group, tokens, 2, name)}
#define ORIN_STREAM_KINDS(group, name)                                               \
  {ORIN_STREAM_STRIPES(group, 1, name), ORIN_STREAM_STRIPES(group, 1, name "_norm"), \
   ORIN_STREAM_STRIPES(group, 8, name "_norm"), ORIN_STREAM_STRIPES(group, 16, name "_norm")}
#define ORIN_STREAM_GROUP(group) {ORIN_STREAM_KINDS(group, ""), ORIN_STREAM_KINDS(group, "_zeros")}
const Kernel streamed[3][2][4][2] = {ORIN_STREAM_GROUP(32), ORIN_STREAM_GROUP(64), ORIN_STREAM_GROUP(128)};

const Kernel norm_rows("int4_gemm_prepare", "int4_gemm_norm_rows");
const Kernel layout("int4_gemm_prepare", "int4_gemm_layout");

int group_index(int group_size) {
  return static_cast<int>(std::find(kGroupSizes, kGroupSizes + 3, group_size) - kGroupSizes);
}

int check_matrix(const char* op, int n, int k, int group_size) {
  if (group_index(group_size) == 3) {
    return bad_argument("%s: group_size: expected 32, 64 or 128, found %d", op, group_size);
  }
  if (n < 1) return bad_argument("%s: n: expected a positive number of rows, found %d", op, n);
  if (k < group_size || k % group_size) {
    return bad_argument("%s: k: expected a multiple of group_size %d, found %d", op, group_size, k);
  }
  return kOk;
}

int check(const Int4Gemm& a) {
  if (const int status = check_matrix("int4_gemm", a.n, a.k, a.group_size)) return status;
  if (a.tokens < 0) return bad_argument("int4_gemm: tokens: expected 0 or more, found %d", a.tokens);
  if (a.swiglu && a.n % 2) {
    return bad_argument("int4_gemm: n: expected pairs of gate and up rows for swiglu, found %d rows", a.n);
  }
  if (a.tile < 0 || a.tile > kNumTiles + 1) {
    return bad_argument("int4_gemm: tile: expected 0..%d, found %d", kNumTiles + 1, a.tile);
  }
  if (a.tile == 1 && a.tokens > kFewTokens) {
    return bad_argument("int4_gemm: tile: expected at most %d tokens for tile 1, found %d", kFewTokens, a.tokens);
  }
  if (a.zeros && a.tile > 1 && kTiles[a.tile - 2].rows > 128) {
    return bad_argument("int4_gemm: tile: expected one of up to 128 rows for a matrix with zero points, found %d",
                        a.tile);
  }
  return kOk;
}

Shape shape_of(const Int4Gemm& a) {
  const bool has_columns = a.columns != nullptr, has_norm = a.norm && !has_columns;
  return {a.tokens, a.n, a.k, a.group_size, has_norm, a.rows != nullptr, a.zeros != nullptr, has_columns};
}

// The choice of tuned.h or else select.h, with the tuner's wishes in place.
Choice choice_of(const Int4Gemm& a, const Device& device) {
  const Shape s = shape_of(a);
  if (!a.tile) return tuned_or_chosen(s, device);
  Choice c;
  c.tile = a.tile - 2;
  if (c.is_few()) {
    c = choose_few(s, device);
    const int most = s.has_norm ? most_norm_warps(s, has_phases(s)) : kMaxWarps;
    const bool all_chunks = s.has_norm && !has_phases(s);  // each warp has one chunk
    if (a.warps_k && !all_chunks) c.warps_k = std::min({a.warps_k, num_chunks(s), most});
    if (a.warps_n) c.warps_n = std::min(a.warps_n, most / c.warps_k);
    c.warps_n = std::max(1, std::min(c.warps_n, most / c.warps_k));
    const int shared = most_shared(device);
    Device fewer = device;
    if (a.blocks) fewer.sm_count = a.blocks;
    spread_tiles(s, fewer, shared, c);
    if (few_shared(s, c).bytes > shared) spread_tiles(s, device, shared, c);
    if (a.stripes && s.has_norm) {
      c.round_tiles = std::min(a.stripes, c.round_tiles);
      c.rounds = ceil_div(c.warp_tiles, c.round_tiles);
      if (few_shared(s, c).bytes > shared) spread_tiles(s, fewer, shared, c);
    }
  } else {
    const Tile& t = kTiles[c.tile];
    c.splits = std::max(1, std::min(a.splits, num_chunks(s)));
    c.blocks = ceil_div(s.tokens, t.tokens) * ceil_div(s.n, t.rows);
    c.group_m = std::min(ceil_div(s.tokens, t.tokens), a.blocks ? a.blocks : 8);
    c.normalises_first = s.has_norm || s.has_rows || s.has_columns;
  }
  return c;
}

// The workspace: normed rows, which of them few tokens are, partial sums of many.
size_t normed_bytes(const Int4Gemm& a, const Choice& c) {
  return c.normalises_first ? (size_t(a.tokens) * a.k * 2 + 255) / 256 * 256 : 0;
}

size_t picked_bytes(const Int4Gemm& a, const Choice& c) {
  return c.normalises_first && c.is_few() && a.rows ? kFewTokens * sizeof(int) : 0;
}

// Each thread of each block leaves its sums.
size_t partial_bytes(const Choice& c) {
  if (c.splits == 1) return 0;
  const Tile& t = kTiles[c.tile];
  return size_t(c.splits) * c.blocks * t.tokens * t.rows * t.shares * 4;
}

size_t workspace_bytes(const Int4Gemm& a, const Choice& c) {
  return normed_bytes(a, c) + picked_bytes(a, c) + partial_bytes(c);
}

Int4GemmParams params_of(const Int4Gemm& a, const Choice& c) {
  Int4GemmParams p{};
  p.x = a.x, p.weight = a.weight, p.scales = a.scales, p.zeros = a.zeros;
  p.norm = static_cast<const float*>(a.norm);
  p.bias = a.bias, p.residual = a.residual, p.y = a.y;
  p.rows = static_cast<const int*>(a.rows);
  p.partials = reinterpret_cast<float*>(static_cast<char*>(a.workspace) + normed_bytes(a, c));
  p.semaphores = static_cast<int*>(a.semaphores);
  p.tokens = a.tokens, p.n = a.n, p.k = a.k;
  p.swiglu = a.swiglu, p.float32_output = a.float32_output, p.norm_eps = a.norm_eps;
  p.is_plain = !a.bias && !a.rows && !a.swiglu && !a.float32_output && a.n % 2 == 0;
  p.chunks = num_chunks(shape_of(a)), p.row_bytes = 2 * a.k;
  p.splits = c.splits, p.group_m = c.group_m;
  return p;
}

// Rows of x picked, normalised and gathered into the workspace, where `p` then finds them.
int prepare(const Int4Gemm& a, const Choice& c, Int4GemmParams& p, Stream stream) {
  int* picked = picked_bytes(a, c) ? reinterpret_cast<int*>(p.partials) : nullptr;
  const auto columns = static_cast<const int*>(a.columns);
  const NormRowsParams params{a.x, p.norm, p.rows, columns, a.workspace, picked, a.k, a.norm_eps};
  p.x = a.workspace, p.norm = nullptr;
  if (picked) p.rows = picked;
  return norm_rows.launch({unsigned(a.tokens)}, {256}, ceil_div(a.k, 256) * 4, stream, params);
}

int launch_few(const Int4Gemm& a, const Choice& c, Int4GemmParams p, Stream stream) {
  const Shape s = shape_of(a);
  const FewShared at = few_shared(s, c);
  const int groups = s.k / s.group_size, step = c.blocks * c.warps_n;
  p.tiles = few_tiles(s), p.warp_tiles = c.warp_tiles, p.round_tiles = c.round_tiles, p.rounds = c.rounds;
  p.warp_chunks = num_chunks(s) / c.warps_k, p.more_chunks = num_chunks(s) % c.warps_k;
  p.stripe_bytes = 4 * s.k, p.stripe_scale_bytes = 16 * groups, p.stripe_zero_bytes = 8 * ((groups + 1) / 2);
  p.tile_step_bytes = 2 * step * p.stripe_bytes, p.tile_step_scale_bytes = 2 * step * p.stripe_scale_bytes;
  p.buffer_bytes = at.buffer_bytes, p.squares_at = at.squares_at;
  p.short_chunk = s.k % kChunkColumns ? num_chunks(s) - 1 : -1;
  p.inverse_k = 1.f / s.k;
  const int group = group_index(a.group_size);
  const bool many_tokens = a.tokens > 8, has_zeros = a.zeros != nullptr;
  const Kernel& kernel = s.has_norm ? few_norm[group][many_tokens][has_zeros][is_ragged(s) ? 2 : has_phases(s)]
                                    : few[group][many_tokens][has_zeros][is_ragged(s)];
  const Dim3 block{32, unsigned(c.warps_k), unsigned(c.warps_n)};
  return kernel.launch({unsigned(c.blocks)}, block, at.bytes, stream, p);
}

// The streaming path's choice with the tuner's wishes in place.
StreamChoice stream_choice_of(const Int4Gemm& a, const Device& device) {
  const Shape s = shape_of(a);
  StreamChoice c = choose_stream(s, device);
  if (!a.tile) return c;
  const StreamChoice chosen = c;
  if (a.warps_k) c.warps = std::min(a.warps_k, kStreamWarps);
  const int wish = a.stripes > 1 ? 2 : 1;
  if (a.stripes && has_units(s, wish)) c.stripes = wish;
  c.blocks = a.blocks ? a.blocks : device.sm_count;
  const int shared = most_shared(device);
  spread_pieces(s, shared, c);
  return stream_shared(s, c).bytes <= shared ? c : chosen;
}

// Each thread has eight columns of the token in registers, and their part of each row of the block.
bool takes_beside(const Int4Gemm& a, const Linear& beside) {
  const Shape s = shape_of(a);
  // A residual could lie where the other's y does: who places values may take it for read by then.
  if (a.tokens != 1 || !s.has_norm || s.has_rows || a.residual || !streams(s, device())) return false;
  const bool is_same = beside.x == a.x && beside.norm == a.norm && beside.norm_eps == a.norm_eps && beside.k == a.k;
  const bool is_plain = !beside.scale && !beside.bias && !beside.residual && !beside.rows && !beside.swiglu;
  const StreamChoice c = stream_choice_of(a, device());
  return is_same && is_plain && !beside.float32_output && beside.tokens == 1 && beside.outputs == 1 &&
         beside.bits == 16 && a.k <= 8 * 32 * c.warps && beside.n <= kBesideRows * c.blocks;
}

int launch_streamed(const Int4Gemm& a, const StreamChoice& c, const Int4GemmParams& gemm, Stream stream) {
  const Shape s = shape_of(a);
  const StreamShared at = stream_shared(s, c);
  const int groups = s.k / s.group_size, units = num_units(s, c), chunks = num_chunks(s);
  Int4StreamParams p{};
  p.x = gemm.x, p.weight = gemm.weight, p.scales = gemm.scales, p.norm = gemm.norm;
  p.tokens = s.tokens, p.chunks = chunks, p.has_rows = gemm.rows != nullptr;
  p.leads = c.warp_pieces > kStreamStages;
  p.block_units = units / c.blocks, p.more_units = units % c.blocks, p.warp_pieces = c.warp_pieces;
  p.unit_magic = magic(unit_pieces(s, c)), p.pieces_magic = magic(c.warp_pieces), p.tokens_magic = magic(s.tokens);
  p.parts = c.parts;
  p.y = a.y, p.residual = a.residual, p.n = a.n, p.inverse_k = 1.f / s.k, p.norm_eps = a.norm_eps;
  const bool is_gated = a.swiglu && !a.bias && !a.residual && !a.rows && !a.float32_output;
  p.end = gemm.is_plain ? kEndPlain : is_gated ? kEndGated : kEndAny;
  p.offsets_at = at.offsets, p.factors_at = at.factors, p.squares_at = at.squares;
  p.ring_at = at.ring, p.parts_at = at.parts;
  if (const auto beside = static_cast<const Linear*>(a.beside)) {
    p.beside = beside->weight, p.beside_y = beside->y, p.beside_rows = beside->n, p.has_beside = true;
  }
  p.gemm = gemm;
  p.gemm.stripe_zero_bytes = 8 * ((groups + 1) / 2), p.gemm.inverse_k = 1.f / s.k;
  const int kind = s.tokens > 8 ? 3 : s.tokens > 1 ? 2 : s.has_norm;
  const Kernel& kernel = streamed[group_index(a.group_size)][s.has_zeros][kind][c.stripes - 1];
  return kernel.launch({unsigned(c.blocks)}, {unsigned(32 * c.warps)}, at.bytes, stream, p);
}

}  // namespace
}  // namespace orin

ORIN_ABI_EXPORT(int4_gemm, ORIN_INT4_GEMM_FIELDS)
ORIN_ABI_EXPORT(int4_layout, ORIN_INT4_LAYOUT_FIELDS)

ORIN_API int64_t orin_int4_gemm_workspace(const orin::Int4Gemm* a) {
  using namespace orin;
  if (check(*a) || a->tokens == 0) return 0;
  const Choice c = choice_of(*a, device());
  return int64_t(workspace_bytes(*a, c));
}

ORIN_API int64_t orin_int4_gemm_semaphores(const orin::Int4Gemm*) { return 4 * orin::int4_gemm::kSemaphores; }

ORIN_API int64_t orin_int4_gemm_takes_beside(const orin::Int4Gemm* a) {
  using namespace orin;
  return !check(*a) && a->beside && takes_beside(*a, *static_cast<const Linear*>(a->beside));
}

ORIN_API const char* orin_int4_gemm_choice(const orin::Int4Gemm* a, int sm_count, int max_shared_bytes) {
  using namespace orin;
  static thread_local char text[128];
  Device device;
  device.sm_count = sm_count, device.max_shared_bytes = max_shared_bytes;
  const Choice c = choice_of(*a, device);
  const char* norm = c.normalises_first ? ", norm first" : "";
  if (c.is_few() && streams(shape_of(*a), device)) {
    const StreamChoice stream = stream_choice_of(*a, device);
    std::snprintf(text, sizeof text, "stream %d warps, %d blocks of units of %d rows, %d pieces of a warp%s",
                  stream.warps, stream.blocks, kStripeRows * stream.stripes, stream.warp_pieces, norm);
  } else if (c.is_few()) {
    std::snprintf(text, sizeof text, "few %dx%d warps, %d blocks, %d tiles in %d rounds%s", c.warps_n, c.warps_k,
                  c.blocks, c.warp_tiles, c.rounds, norm);
  } else {
    std::snprintf(text, sizeof text, "many %dx%dx%d, %d tiles, %d splits, %d deep%s", kTiles[c.tile].tokens,
                  kTiles[c.tile].rows, kTiles[c.tile].shares, c.blocks, c.splits, c.group_m, norm);
  }
  return text;
}

ORIN_API int orin_int4_gemm(const orin::Int4Gemm* a, orin::Stream stream) {
  using namespace orin;
  if (const int status = check(*a)) return status;
  if (a->tokens == 0) return kOk;
  const Choice c = choice_of(*a, device());
  if (c.splits > 1 && (!a->semaphores || c.blocks > kSemaphores)) {
    return bad_argument("int4_gemm: semaphores: expected room for %d tiles, found %d", c.blocks,
                        a->semaphores ? kSemaphores : 0);
  }
  if (!a->workspace && (c.splits > 1 || c.normalises_first)) {
    return bad_argument("int4_gemm: workspace: expected %zu bytes, found none", workspace_bytes(*a, c));
  }
  if (a->beside && !takes_beside(*a, *static_cast<const Linear*>(a->beside))) {
    return bad_argument(
        "int4_gemm: beside: expected a product that orin_int4_gemm_takes_beside allows, found n %d, k %d",
        static_cast<const Linear*>(a->beside)->n, static_cast<const Linear*>(a->beside)->k);
  }
  Int4GemmParams p = params_of(*a, c);
  if (c.normalises_first) {
    if (const int status = prepare(*a, c, p, stream)) return status;
  }
  if (c.is_few() && streams(shape_of(*a), device()))
    return launch_streamed(*a, stream_choice_of(*a, device()), p, stream);
  if (c.is_few()) return launch_few(*a, c, p, stream);
  const Tile& tile = kTiles[c.tile];
  const Kernel& kernel = many[group_index(a->group_size)][a->zeros != nullptr][c.tile];
  return kernel.launch({unsigned(c.blocks), unsigned(c.splits)}, {unsigned(tile.threads)},
                       many_shared(shape_of(*a), tile), stream, p);
}

ORIN_API int orin_int4_layout(const orin::Int4Layout* a, orin::Stream stream) {
  using namespace orin;
  if (const int status = check_matrix("int4_layout", a->n, a->k, a->group_size)) return status;
  const Int4LayoutParams params{a->weight,    a->scales, a->zeros, a->weight_out,       a->scales_out,
                                a->zeros_out, a->n,      a->k,     a->k / a->group_size};
  const unsigned blocks = static_cast<unsigned>(std::min<int64_t>((int64_t(a->n) * a->k / 8 + 255) / 256, 65536));
  return layout.launch({blocks}, {256}, 0, stream, params);
}
