// SPDX-License-Identifier: Apache-2.0
#include "kernels/gated_delta/launch.h"

#include "common/status.h"
#include "kernels/gated_delta/params.h"
#include "kernels/gated_delta/select.h"

namespace orin {
namespace {

// Dynamic shared memory as laid out in the kernels; rows of a tile are 8 halves longer than their data.
constexpr int tile_bytes(int width) { return 2 * kChunk * (width + 8); }
constexpr int carry_bytes(int dim, int tiles) {
  const int stage = tile_bytes(dim) + tile_bytes(kChunk) + tile_bytes(16 * tiles) + 4 * 2 * kChunk;
  return 3 * stage + tiles * 32 * (dim + 2 * kChunk);
}
constexpr int output_bytes(int dim) { return 2 * tile_bytes(dim) + 2 * dim * dim + 4 * (kChunk + dim); }

const Kernel step_32("gated_delta_step", "gated_delta_step_32", 0, Start::kEarly);
const Kernel step_64("gated_delta_step", "gated_delta_step_64", 0, Start::kEarly);
const Kernel step_128("gated_delta_step", "gated_delta_step_128", 0, Start::kEarly);
const Kernel step_64_split("gated_delta_step", "gated_delta_step_64_split", 0, Start::kEarly);
const Kernel step_128_split("gated_delta_step", "gated_delta_step_128_split", 0, Start::kEarly);
const Kernel step_64_split_one("gated_delta_step", "gated_delta_step_64_split_one", 0, Start::kEarly);
const Kernel step_128_split_one("gated_delta_step", "gated_delta_step_128_split_one", 0, Start::kEarly);
const Kernel restore("gated_delta_step", "gated_delta_restore");
const Kernel convolve_64("gated_delta_convolve", "gated_delta_convolve_64");
const Kernel convolve_128("gated_delta_convolve", "gated_delta_convolve_128");
const Kernel invert_64("gated_delta_invert", "gated_delta_invert_64");
const Kernel invert_128("gated_delta_invert", "gated_delta_invert_128");
const Kernel carry_64_1("gated_delta_carry", "gated_delta_carry_64_1", carry_bytes(64, 1));
const Kernel carry_64_2("gated_delta_carry", "gated_delta_carry_64_2", carry_bytes(64, 2));
const Kernel carry_128_1("gated_delta_carry", "gated_delta_carry_128_1", carry_bytes(128, 1));
const Kernel carry_128_2("gated_delta_carry", "gated_delta_carry_128_2", carry_bytes(128, 2));
const Kernel output_64("gated_delta_output", "gated_delta_output_64", output_bytes(64));
const Kernel output_128("gated_delta_output", "gated_delta_output_128", output_bytes(128));

// Any of a head size runs tokens of any lengths; `_one` is made for a token of each sequence.
const Kernel& step_kernel(int dim, bool is_split, bool is_one) {
  if (!is_split) return dim == 32 ? step_32 : dim == 64 ? step_64 : step_128;
  if (dim == 64) return is_one ? step_64_split_one : step_64_split;
  return is_one ? step_128_split_one : step_128_split;
}

const Kernel& carry_kernel(int dim, int tiles) {
  if (dim == 64) return tiles == 1 ? carry_64_1 : carry_64_2;
  return tiles == 1 ? carry_128_1 : carry_128_2;
}

// What both launchers demand of a shape.
template <typename Arguments>
int check_shape(const Arguments& a) {
  if (a.key_dim != a.value_dim || (a.key_dim != 32 && a.key_dim != 64 && a.key_dim != 128)) {
    return bad_argument("gated_delta: key_dim, value_dim: expected both 32, 64 or 128, found %d and %d", a.key_dim,
                        a.value_dim);
  }
  if (a.conv_width != kConvTaps) {
    return bad_argument("gated_delta: conv_width: expected %d, found %d", kConvTaps, a.conv_width);
  }
  if (a.key_heads < 1 || a.value_heads < 1 || a.value_heads % a.key_heads) {
    return bad_argument("gated_delta: value_heads: expected a multiple of %d key heads, found %d", a.key_heads,
                        a.value_heads);
  }
  if (a.sequences < 1) return bad_argument("gated_delta: sequences: expected 1 or more, found %d", a.sequences);
  return kOk;
}

GatedDeltaChoice choose(const GatedDelta& a) {
  return choose_gated_delta(a.tokens, a.sequences, a.value_heads, a.value_dim, a.rec_steps, device());
}

// Parts of the workspace one after the other; null from a null base.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
  void* take(int64_t bytes) {
    void* part = base_ ? base_ + size_ : nullptr;
    size_ += (bytes + 255) / 256 * 256;
    return part;
  }
  int64_t size() const { return size_; }

 private:
  char* base_;
  int64_t size_ = 0;
};

int64_t carve(const GatedDelta& a, GatedDeltaParams& p) {
  Carver carver(a.workspace);
  const int64_t places = chunk_places(a.tokens, a.sequences), dim = a.value_dim, heads = places * a.value_heads;
  p.qkv = carver.take(places * (2 * a.key_heads + a.value_heads) * kChunk * dim * 2);
  p.t = carver.take(heads * kChunk * kChunk * 2);
  p.decay = static_cast<float*>(carver.take(heads * 3 * kChunk * 4));
  p.delta = carver.take(heads * kChunk * dim * 2);
  p.states = carver.take(heads * dim * dim * 2);
  return carver.size();
}

int launch_chunks(const GatedDelta& a, GatedDeltaParams& p, int tiles, Stream stream) {
  carve(a, p);
  const int dim = a.value_dim, conv_heads = 2 * a.key_heads + a.value_heads;
  const unsigned places = chunk_places(a.tokens, a.sequences), heads = a.value_heads;
  const Dim3 columns{unsigned(a.value_heads * dim / (16 * tiles)), unsigned(a.sequences)};
  int status = (dim == 64 ? convolve_64 : convolve_128).launch({places, unsigned(conv_heads)}, {256}, 0, stream, p);
  if (!status) status = (dim == 64 ? invert_64 : invert_128).launch({places, heads}, {128}, 0, stream, p);
  if (!status) status = carry_kernel(dim, tiles).launch(columns, {128}, carry_bytes(dim, tiles), stream, p);
  if (status) return status;
  return (dim == 64 ? output_64 : output_128).launch({places, heads}, {128}, output_bytes(dim), stream, p);
}

// Bytes of what must be zero between launches.
int64_t carve_semaphores(const GatedDelta& a, bool is_split, GatedDeltaParams& p) {
  Carver carver(a.semaphores);
  const int64_t heads = is_split ? int64_t(a.sequences) * a.value_heads : 0;
  p.exchange = static_cast<Exchange*>(carver.take(heads * sizeof(Exchange)));
  p.readers = static_cast<unsigned*>(carver.take(int64_t(a.sequences) * a.key_heads * sizeof(unsigned)));
  return carver.size();
}

int launch_steps(const GatedDelta& a, GatedDeltaParams& p, bool is_split, Stream stream) {
  carve_semaphores(a, is_split, p);
  const int dim = a.value_dim, splits = is_split ? dim / kSplitColumns : 1;
  const Kernel& kernel = step_kernel(dim, is_split, a.tokens <= a.sequences);
  const Dim3 grid{unsigned(a.value_heads / a.key_heads * splits), unsigned(a.key_heads), unsigned(a.sequences)};
  return kernel.launch(grid, {unsigned(2 * dim)}, 0, stream, p);
}

}  // namespace
}  // namespace orin

ORIN_ABI_EXPORT(gated_delta, ORIN_GATED_DELTA_FIELDS)
ORIN_ABI_EXPORT(gated_delta_restore, ORIN_GATED_DELTA_RESTORE_FIELDS)

ORIN_API int64_t orin_gated_delta_workspace(const orin::GatedDelta* a) {
  orin::GatedDeltaParams params{};
  return orin::choose(*a).is_chunked ? orin::carve(*a, params) : 0;
}

ORIN_API int64_t orin_gated_delta_semaphores(const orin::GatedDelta* a) {
  const orin::GatedDeltaChoice choice = orin::choose(*a);
  orin::GatedDeltaParams params{};
  return choice.is_chunked ? 0 : orin::carve_semaphores(*a, choice.is_split, params);
}

ORIN_API int orin_gated_delta(const orin::GatedDelta* a, orin::Stream stream) {
  using namespace orin;
  if (const int status = check_shape(*a)) return status;
  if (!a->rec_steps != !a->conv_steps) {
    return bad_argument("gated_delta: rec_steps, conv_steps: expected both or none");
  }
  if (a->tokens == 0) return kOk;
  GatedDeltaParams params{};
  params.qkvz = a->qkvz, params.ba = a->ba, params.conv_weight = a->conv_weight;
  params.a_log = static_cast<const float*>(a->a_log), params.dt_bias = static_cast<const float*>(a->dt_bias);
  params.norm = static_cast<const float*>(a->norm);
  params.conv = a->conv, params.rec = static_cast<float*>(a->rec);
  params.cu_seqlens = static_cast<const int*>(a->cu_seqlens);
  params.past_lens = static_cast<const int*>(a->past_lens), params.slots = static_cast<const int*>(a->slots);
  params.y = a->y;
  params.rec_steps = static_cast<float*>(a->rec_steps), params.conv_steps = a->conv_steps;
  params.tokens = a->tokens, params.sequences = a->sequences;
  params.key_heads = a->key_heads, params.value_heads = a->value_heads, params.norm_eps = a->norm_eps;
  params.is_settled = a->settled;
  const GatedDeltaChoice choice = choose(*a);
  if (choice.is_chunked) {
    if (!a->workspace) return bad_argument("gated_delta: workspace: expected one for %d tokens", a->tokens);
    return launch_chunks(*a, params, choice.carry_tiles, stream);
  }
  if (!a->semaphores) return bad_argument("gated_delta: semaphores: expected them for %d tokens", a->tokens);
  return launch_steps(*a, params, choice.is_split, stream);
}

ORIN_API int orin_gated_delta_restore(const orin::GatedDeltaRestore* a, orin::Stream stream) {
  using namespace orin;
  if (const int status = check_shape(*a)) return status;
  const int channels = 2 * a->key_heads * a->key_dim + a->value_heads * a->value_dim;
  const RestoreParams params{a->rec_steps,
                             a->conv_steps,
                             a->rec,
                             a->conv,
                             static_cast<const int*>(a->cu_seqlens),
                             static_cast<const int*>(a->slots),
                             static_cast<const int*>(a->accepted),
                             a->value_heads * a->key_dim * a->value_dim / 4,
                             channels * (kConvTaps - 1) / 8};
  const unsigned blocks = (params.rec_vectors + params.conv_vectors + 255) / 256;
  return restore.launch({blocks, unsigned(a->sequences)}, {256}, 0, stream, params);
}
