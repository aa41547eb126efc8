// SPDX-License-Identifier: Apache-2.0
// The CUDA driver API, found in libcuda.so.1 at run time, and the kernels that live in the embedded cubins.
// No CUDA header is needed to compile the host side.
#pragma once

#include <cstddef>
#include <cstdint>

namespace orin {

using Stream = void*;  // CUstream

struct Cubin {
  const char* module;
  int arch;  // compute capability times ten
  const unsigned char* image;
};

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

// Facts of the device that choices depend on; read once by orin_init.
struct Device {
  int arch = 0;
  int sm_count = 0;
  int l2_bytes = 0;
  int max_shared_bytes = 0;  // of one block, opted in
};

const Device& device();

// When a kernel may start: behind the one in front of it, or, where the GPU can, while that still runs. All wait for it
// before they need it (common/dependent.cuh); what would not use the time had better not take the place of others.
enum class Start { kInTurn, kEarly };

// One __global__ function. Objects are static; orin_init resolves them all, so that nothing loads under capture.
class Kernel {
 public:
  // `max_shared` bytes of dynamic shared memory are allowed at launch, or as many as the GPU has; 0 = the default 48
  // KiB.
  Kernel(const char* module, const char* function, int max_shared = 0, Start start = Start::kInTurn);

  // Enqueue with one parameter passed by value. Never synchronises, never allocates.
  template <typename Params>
  int launch(Dim3 grid, Dim3 block, unsigned shared, Stream stream, const Params& params) const {
    void* arguments[] = {const_cast<Params*>(&params)};
    return enqueue(grid, block, shared, stream, arguments);
  }

  int resolve(void* module);
  const char* module() const { return module_; }
  Kernel* next() const { return next_; }

 private:
  int enqueue(Dim3 grid, Dim3 block, unsigned shared, Stream stream, void** arguments) const;

  const char* module_;
  const char* function_;
  int max_shared_;
  Start start_;
  void* handle_ = nullptr;
  Kernel* next_;
};

// Set `bytes` (a multiple of 4) of device memory to zero on the stream.
int zero_async(void* pointer, size_t bytes, Stream stream);

// Copy within device memory on the stream.
int copy_async(void* to, const void* from, size_t bytes, Stream stream);

}  // namespace orin
