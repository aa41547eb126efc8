// SPDX-License-Identifier: Apache-2.0
#include "kernels/step/launch.h"

#include "common/status.h"
#include "kernels/step/params.h"

namespace orin {
namespace {

constexpr int kMostRows = 1024;  // one block

const Kernel advance("step", "step_advance", 0, Start::kEarly);
const Kernel clear("step", "prompt_clear");
const Kernel mark("step", "prompt_mark");

unsigned blocks(int64_t threads) { return unsigned((threads + 255) / 256); }

}  // namespace
}  // namespace orin

ORIN_ABI_EXPORT(step, ORIN_STEP_FIELDS)
ORIN_ABI_EXPORT(prompt, ORIN_PROMPT_FIELDS)

#define ORIN_TEXT_UINT64(name) "U " #name "\n"

ORIN_API const char* orin_step_entry_fields() {
  return ORIN_STEP_ENTRY_FIELDS(ORIN_TEXT_UINT64, ORIN_TEXT_INT, ORIN_TEXT_FLOAT);
}

ORIN_API int64_t orin_step_head(const orin::Step* a) {
  return int64_t(__atomic_load_n(static_cast<const uint64_t*>(a->head), __ATOMIC_ACQUIRE));
}

ORIN_API int orin_step(const orin::Step* a, orin::Stream stream) {
  using namespace orin;
  if (a->rows < 1 || a->rows > kMostRows) {
    return bad_argument("step: rows: expected 1 to %d, found %d", kMostRows, a->rows);
  }
  if (a->ring_steps < 1) return bad_argument("step: ring_steps: expected 1 or more, found %d", a->ring_steps);
  const StepParams p{static_cast<const int*>(a->tokens),
                     static_cast<const float*>(a->logprobs),
                     static_cast<const int*>(a->top_ids),
                     static_cast<const float*>(a->top_logprobs),
                     static_cast<const int*>(a->slots),
                     static_cast<const int*>(a->past_lens),
                     static_cast<const int*>(a->cu_seqlens),
                     static_cast<const int*>(a->logit_rows),
                     static_cast<const int*>(a->destinations),
                     static_cast<int*>(a->next_ids),
                     static_cast<int*>(a->next_slots),
                     static_cast<int*>(a->next_past_lens),
                     static_cast<int*>(a->next_logit_rows),
                     static_cast<unsigned short*>(a->counts),
                     static_cast<const int*>(a->stop_ids),
                     static_cast<const int*>(a->max_lens),
                     static_cast<unsigned long long*>(a->clock),
                     static_cast<char*>(a->ring),
                     static_cast<unsigned long long*>(a->head),
                     a->rows,
                     a->vocab,
                     a->max_stops,
                     a->max_logprobs,
                     a->ring_steps,
                     a->ring_rows};
  if (a->ring_rows < a->rows) {
    return bad_argument("step: ring_rows: expected at least %d, found %d", a->rows, a->ring_rows);
  }
  return advance.launch({1}, {unsigned((a->rows + 31) / 32 * 32)}, 0, stream, p);
}

ORIN_API int orin_prompt(const orin::Prompt* a, orin::Stream stream) {
  using namespace orin;
  if (a->vocab < 1) return bad_argument("prompt: vocab: expected 1 or more, found %d", a->vocab);
  if (a->sequences < 1 || a->sequences > 65535) {
    return bad_argument("prompt: sequences: expected 1 to 65535, found %d", a->sequences);
  }
  const PromptParams p{static_cast<const int*>(a->ids),
                       static_cast<const int*>(a->cu_seqlens),
                       static_cast<const int*>(a->slots),
                       static_cast<unsigned short*>(a->counts),
                       a->tokens,
                       a->sequences,
                       a->vocab};
  if (const int status = clear.launch({blocks(a->vocab), unsigned(a->sequences)}, {256}, 0, stream, p)) return status;
  return a->tokens > 0 ? mark.launch({blocks(a->tokens)}, {256}, 0, stream, p) : int(kOk);
}
