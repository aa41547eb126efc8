// SPDX-License-Identifier: Apache-2.0
#include "common/driver.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "common/glibc.h"
#include "common/status.h"

namespace orin {

extern const Cubin cubins[];
extern const int num_cubins;

namespace {

// CUlaunchAttribute and CUlaunchConfig.
struct LaunchAttribute {
  int id;
  int pad;
  union {
    int allowed;
    char bytes[64];
  };
};

struct LaunchConfig {
  Dim3 grid, block;
  unsigned shared;
  Stream stream;
  LaunchAttribute* attributes;
  unsigned num_attributes;
};

// The few driver functions in use, under the names that cuda.h maps them to.
struct Driver {
  int (*init)(unsigned);
  int (*get_version)(int*);
  int (*get_current)(void**);
  int (*get_device)(int*);
  int (*get_attribute)(int*, int, int);
  int (*load)(void**, const void*);
  int (*get_function)(void**, void*, const char*);
  int (*set_attribute)(void*, int, int);
  int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream, void**, void**);
  int (*launch_with)(const LaunchConfig*, void*, void**, void**);  // null before CUDA 11.8
  int (*memset32)(uint64_t, unsigned, size_t, Stream);
  int (*copy)(uint64_t, uint64_t, size_t, Stream);
  int (*error_name)(int, const char**);
  int (*error_string)(int, const char**);
};

// CUdevice_attribute, CUfunction_attribute and CUlaunchAttributeID values that this file reads and sets.
enum : int {
  kMultiprocessorCount = 16,
  kL2CacheSize = 38,
  kMajor = 75,
  kMinor = 76,
  kMaxSharedPerBlockOptin = 97,
  kMaxDynamicSharedSize = 8,
  kProgrammaticSerialization = 6,
};

// The first architecture whose kernels can start early, and the first driver that captures such launches: 12.3.
constexpr int kFirstEarly = 90, kFirstEarlyDriver = 12030;

Driver driver;
Device facts;
bool is_ready = false, starts_early = false;
Kernel* first = nullptr;
thread_local char detail[512] = "";

template <typename Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

bool open_driver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW);
  if (library) find(library, "cuLaunchKernelEx", driver.launch_with);
  return library && find(library, "cuInit", driver.init) && find(library, "cuDriverGetVersion", driver.get_version) &&
         find(library, "cuCtxGetCurrent", driver.get_current) && find(library, "cuCtxGetDevice", driver.get_device) &&
         find(library, "cuDeviceGetAttribute", driver.get_attribute) &&
         find(library, "cuModuleLoadData", driver.load) && find(library, "cuModuleGetFunction", driver.get_function) &&
         find(library, "cuFuncSetAttribute", driver.set_attribute) && find(library, "cuLaunchKernel", driver.launch) &&
         find(library, "cuMemsetD32Async", driver.memset32) && find(library, "cuMemcpyDtoDAsync_v2", driver.copy) &&
         find(library, "cuGetErrorName", driver.error_name) && find(library, "cuGetErrorString", driver.error_string);
}

bool can_start_early() {
  int version = 0;
  return facts.arch >= kFirstEarly && !driver.get_version(&version) && version >= kFirstEarlyDriver &&
         driver.launch_with;
}

int attribute(int name, int ordinal) {
  int value = 0;
  driver.get_attribute(&value, name, ordinal);
  return value;
}

// The embedded code for a module that fits best: the same major version, the highest minor that is not above.
const Cubin* best(const char* module) {
  const Cubin* found = nullptr;
  for (int i = 0; i < num_cubins; ++i) {
    const Cubin& cubin = cubins[i];
    // sm_80 code runs on the discrete GPUs of its generation but not on Orin, which needs sm_87.
    const bool runs =
        cubin.arch == facts.arch || (facts.arch != 87 && cubin.arch / 10 == facts.arch / 10 && cubin.arch < facts.arch);
    if (std::strcmp(cubin.module, module) == 0 && runs && (!found || cubin.arch > found->arch)) found = &cubin;
  }
  return found;
}

}  // namespace

const Device& device() { return facts; }

int bad_argument(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(detail, sizeof detail, format, arguments);
  va_end(arguments);
  return kBadArgument;
}

Kernel::Kernel(const char* module, const char* function, int max_shared, Start start)
    : module_(module), function_(function), max_shared_(max_shared), start_(start), next_(first) {
  first = this;
}

int Kernel::resolve(void* module) {
  if (const int status = driver.get_function(&handle_, module, function_)) return status;
  if (!max_shared_) return kOk;
  constexpr int kStatic = 1024;  // arrays of fixed size take their part of what a block may have
  return driver.set_attribute(handle_, kMaxDynamicSharedSize, std::min(max_shared_, facts.max_shared_bytes - kStatic));
}

int Kernel::enqueue(Dim3 grid, Dim3 block, unsigned shared, Stream stream, void** arguments) const {
  if (!is_ready) return kNotInitialised;
  if (start_ == Start::kEarly && starts_early) {
    LaunchAttribute early{kProgrammaticSerialization, 0, {1}};
    const LaunchConfig config{grid, block, shared, stream, &early, 1};
    return driver.launch_with(&config, handle_, arguments, nullptr);
  }
  return driver.launch(handle_, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared, stream, arguments, nullptr);
}

int zero_async(void* pointer, size_t bytes, Stream stream) {
  if (!is_ready) return kNotInitialised;
  return driver.memset32(reinterpret_cast<uint64_t>(pointer), 0, bytes / 4, stream);
}

int copy_async(void* to, const void* from, size_t bytes, Stream stream) {
  if (!is_ready) return kNotInitialised;
  return driver.copy(reinterpret_cast<uint64_t>(to), reinterpret_cast<uint64_t>(from), bytes, stream);
}

}  // namespace orin

#define ORIN_API extern "C" __attribute__((visibility("default")))

// Load the device code for the device of the calling thread's current context. Call it once, before anything else.
ORIN_API int orin_init() {
  using namespace orin;
  if (is_ready) return kOk;
  if (!driver.init && !open_driver()) return kNoDriver;
  if (const int status = driver.init(0)) return status;
  void* context = nullptr;
  if (const int status = driver.get_current(&context)) return status;
  if (!context) return bad_argument("orin_init: expected a current CUDA context, found none; select a device first");
  int ordinal = 0;
  if (const int status = driver.get_device(&ordinal)) return status;
  facts = {attribute(kMajor, ordinal) * 10 + attribute(kMinor, ordinal), attribute(kMultiprocessorCount, ordinal),
           attribute(kL2CacheSize, ordinal), attribute(kMaxSharedPerBlockOptin, ordinal)};
  starts_early = can_start_early();
  struct Loaded {
    const Cubin* cubin;
    void* module;
  } loaded[64];
  int count = 0;
  for (Kernel* kernel = first; kernel; kernel = kernel->next()) {
    const Cubin* cubin = best(kernel->module());
    if (!cubin) return kNoCodeForDevice;
    int i = 0;
    while (i < count && loaded[i].cubin != cubin) ++i;
    if (i == count) {
      if (count == 64) return bad_argument("orin_init: more than 64 modules of device code");
      loaded[count].cubin = cubin;
      if (const int status = driver.load(&loaded[count].module, cubin->image)) return status;
      ++count;
    }
    if (const int status = kernel->resolve(loaded[i].module)) return status;
  }
  is_ready = true;
  return kOk;
}

// A sentence for a code that a launcher returned; valid until the thread's next call.
ORIN_API const char* orin_error(int code) {
  using namespace orin;
  switch (code) {
    case kOk:
      return "no error";
    case kBadArgument:
      return detail;
    case kNotInitialised:
      return "the kernel library is not initialised; call orin_init first";
    case kNoDriver:
      return "libcuda.so.1 was not found; install the NVIDIA driver";
    case kNoCodeForDevice:
      return "the kernel library holds no code for this GPU; build it for its architecture";
    default:
      break;
  }
  const char *name = nullptr, *text = nullptr;
  if (!driver.error_name || driver.error_name(code, &name) || driver.error_string(code, &text)) return "unknown error";
  std::snprintf(detail, sizeof detail, "CUDA error %d, %s: %s", code, name, text);
  return detail;
}

// SM count, L2 bytes, shared memory of a block, architecture: what kernel choices depend on.
ORIN_API void orin_device(int* out) {
  using namespace orin;
  out[0] = facts.arch, out[1] = facts.sm_count, out[2] = facts.l2_bytes, out[3] = facts.max_shared_bytes;
}
