// SPDX-License-Identifier: Apache-2.0
// Programmatic dependent launch, which GPUs from SM90 on have (PTX ISA, "griddepcontrol"): a kernel may start while the
// one in front of it on the stream still runs, do what needs nothing of it, and wait. On other GPUs a kernel starts
// when the one in front of it is complete, and nothing here does anything.
//
// So that a kernel never meets what runs two places in front of it, every kernel waits before it lets the next one
// start. In front of the wait it writes nothing, and of what it reads nothing can be on its way:
//
//   weights                      whoever makes them waits for that before using them
//   states, lengths and slots    only where the caller says that they are settled: complete before the launch in front
//                                of this one began
//
// That the L1 cache then holds nothing older either is written nowhere; tests/plugins/test_settled.py looks.
#pragma once

namespace orin {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kStartsEarly = true;
#else
constexpr bool kStartsEarly = false;
#endif

// Until all kernels in front of this one are complete and what they wrote can be seen. By all threads.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}

// The same, and the next kernel may start when all blocks have come so far.
__device__ __forceinline__ void begin_in_turn() {
  wait_for_previous();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

}  // namespace orin
