// SPDX-License-Identifier: Apache-2.0
// The end of a step and the begin of a sequence; see launch.h.
#include "common/ptx.cuh"
#include "kernels/step/params.h"

using namespace orin;

namespace {

constexpr unsigned short kInPrompt = 0x8000, kMostCount = 0x7fff;

__device__ RowState outcome(const StepParams& p, int slot, int token, int length) {
  if (token < 0) return kFailed;
  for (int i = 0; i < p.max_stops; ++i) {
    if (p.stop_ids[slot * p.max_stops + i] == token) return kStopped;
  }
  return length + 1 >= p.max_lens[slot] ? kFull : kRunning;
}

// `length`: tokens of the sequence that are in the caches now.
__device__ void pass_on(const StepParams& p, int row, int slot, int token, int length, bool is_running) {
  p.next_ids[row] = is_running ? token : -1;
  p.next_slots[row] = is_running ? slot : -1;
  p.next_past_lens[row] = is_running ? length : 0;
  if (p.next_logit_rows) p.next_logit_rows[row] = is_running ? row : -1;
}

__device__ void tell(const StepParams& p, int row, const StepEntry& entry) {
  const size_t size = sizeof(StepEntry) + 8 * size_t(p.max_logprobs);
  char* to = p.ring + (entry.step % p.ring_steps * p.ring_rows + row) * size;
  *reinterpret_cast<StepEntry*>(to) = entry;
  int* pairs = reinterpret_cast<int*>(to + sizeof(StepEntry));
  for (int i = 0; i < p.max_logprobs; ++i) {
    pairs[2 * i] = p.top_ids[row * p.max_logprobs + i];
    pairs[2 * i + 1] = __float_as_int(p.top_logprobs[row * p.max_logprobs + i]);
  }
}

__device__ void advance(const StepParams& p, int row, unsigned long long step) {
  const int slot = p.slots[row];
  StepEntry entry{step, slot, -1, 0.0f, kIdle};
  if (slot >= 0 && !(p.logit_rows && p.logit_rows[row] < 0)) {
    const int length = p.past_lens[row] + p.cu_seqlens[row + 1] - p.cu_seqlens[row];
    const RowState state = outcome(p, slot, p.tokens[row], length);
    entry.token = p.tokens[row], entry.logprob = p.logprobs[row], entry.state = state;
    if (p.counts && entry.token >= 0) {
      unsigned short& count = p.counts[size_t(slot) * p.vocab + entry.token];
      if ((count & kMostCount) < kMostCount) ++count;
    }
    const int to = p.destinations ? p.destinations[row] : row;
    if (to >= 0) pass_on(p, to, slot, entry.token, length, state == kRunning);
  }
  tell(p, row, entry);
}

}  // namespace

extern "C" __global__ void step_advance(StepParams p) {
  begin_in_turn();
  const unsigned long long step = *p.clock;
  if (threadIdx.x < p.rows) advance(p, threadIdx.x, step);
  __syncthreads();  // what others have written is released with what the first thread writes behind it
  if (threadIdx.x == 0) {
    *p.clock = step + 1;
    asm volatile("st.release.sys.global.u64 [%0], %1;\n" ::"l"(p.head), "l"(step + 1) : "memory");
  }
}

extern "C" __global__ void prompt_clear(PromptParams p) {
  begin_in_turn();
  const int slot = p.slots[blockIdx.y], id = blockIdx.x * blockDim.x + threadIdx.x;
  if (slot >= 0 && id < p.vocab) p.counts[size_t(slot) * p.vocab + id] = 0;
}

// All writers of a count write the same value.
extern "C" __global__ void prompt_mark(PromptParams p) {
  begin_in_turn();
  const int token = blockIdx.x * blockDim.x + threadIdx.x;
  for (int i = 0; i < p.sequences; ++i) {
    if (token < p.cu_seqlens[i] || token >= p.cu_seqlens[i + 1] || p.slots[i] < 0) continue;
    const int id = p.ids[token];
    if (id >= 0 && id < p.vocab) p.counts[size_t(p.slots[i]) * p.vocab + id] = kInPrompt;
  }
}
