// SPDX-License-Identifier: Apache-2.0
#include "kernels/sampling/launch.h"

#include "common/status.h"
#include "kernels/sampling/params.h"
#include "kernels/sampling/select.h"

namespace orin {
namespace {

const Kernel survey("sampling", "sampling_survey", 0, Start::kEarly);
const Kernel draw("sampling", "sampling_draw", 0, Start::kEarly);

int parts(const Sampling& a) { return (a.vocab + kSamplingPart - 1) / kSamplingPart; }

// The pieces of the workspace, largest alignment first.
struct Layout {
  int64_t bins, tops, surveys, states, end;
};

Layout layout(const Sampling& a) {
  const int64_t rows = a.rows, num_parts = parts(a);
  Layout out{};
  out.tops = out.bins + rows * int64_t(sizeof(SamplingBins));
  out.surveys = out.tops + rows * num_parts * a.max_logprobs * int64_t(sizeof(uint64));
  out.states = out.surveys + rows * num_parts * int64_t(sizeof(Survey));
  out.end = out.states + rows * int64_t(sizeof(SamplingRow));
  return out;
}

int check(const Sampling& a) {
  if (a.vocab < 1 || a.vocab > kMostVocab) {
    return bad_argument("sampling: vocab: expected 1 to %d, found %d", kMostVocab, a.vocab);
  }
  if (a.rows < 0 || a.rows > 65535) return bad_argument("sampling: rows: expected 0 to 65535, found %d", a.rows);
  if (a.max_logprobs < 0 || a.max_logprobs > kMostLogprobs) {
    return bad_argument("sampling: max_logprobs: expected 0 to %d, found %d", kMostLogprobs, a.max_logprobs);
  }
  if (reinterpret_cast<uintptr_t>(a.workspace) % 16) {
    return bad_argument("sampling: workspace: expected an alignment of 16 bytes, found %p", a.workspace);
  }
  return kOk;
}

}  // namespace
}  // namespace orin

ORIN_ABI_EXPORT(sampling, ORIN_SAMPLING_FIELDS)

#define ORIN_TEXT_DOUBLE(name) "D " #name "\n"
#define ORIN_TEXT_UINT64(name) "U " #name "\n"

ORIN_API const char* orin_sampling_slot_fields() {
  return ORIN_SAMPLING_SLOT_FIELDS(ORIN_TEXT_DOUBLE, ORIN_TEXT_UINT64, ORIN_TEXT_INT);
}

ORIN_API int64_t orin_sampling_counters(const orin::Sampling* a) { return int64_t(2) * a->rows * sizeof(unsigned); }

ORIN_API int64_t orin_sampling_workspace(const orin::Sampling* a) { return orin::layout(*a).end; }

ORIN_API int orin_sampling(const orin::Sampling* a, orin::Stream stream) {
  using namespace orin;
  if (const int status = check(*a)) return status;
  if (a->rows == 0) return kOk;
  const Layout at = layout(*a);
  char* workspace = static_cast<char*>(a->workspace);
  const SamplingParams p{static_cast<const float*>(a->logits),
                         static_cast<const int*>(a->slots),
                         static_cast<const int*>(a->past_lens),
                         static_cast<const int*>(a->cu_seqlens),
                         static_cast<const int*>(a->logit_rows),
                         static_cast<const SamplingSlot*>(a->settings),
                         static_cast<const unsigned short*>(a->counts),
                         static_cast<const int*>(a->bias_ids),
                         static_cast<const double*>(a->bias_values),
                         static_cast<const unsigned*>(a->mask),
                         static_cast<int*>(a->tokens),
                         static_cast<float*>(a->logprobs),
                         static_cast<int*>(a->errors),
                         static_cast<int*>(a->top_ids),
                         static_cast<float*>(a->top_logprobs),
                         static_cast<unsigned*>(a->counters),
                         reinterpret_cast<SamplingRow*>(workspace + at.states),
                         reinterpret_cast<Survey*>(workspace + at.surveys),
                         reinterpret_cast<uint64*>(workspace + at.tops),
                         reinterpret_cast<SamplingBins*>(workspace + at.bins),
                         a->rows,
                         a->vocab,
                         parts(*a),
                         sampling_blocks(a->rows, parts(*a), device()),
                         a->max_biases,
                         a->max_logprobs};
  const Dim3 grid{unsigned(p.blocks), unsigned(p.rows)};
  if (const int status = survey.launch(grid, {kSamplingThreads}, 0, stream, p)) return status;
  return draw.launch(grid, {kSamplingThreads}, 0, stream, p);
}
