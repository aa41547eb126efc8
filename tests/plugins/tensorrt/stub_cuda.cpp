// SPDX-License-Identifier: Apache-2.0
// A stand-in for libcuda.so.1, for tests on machines without a GPU, also
// emulated ones. It has the facts of a Jetson AGX Orin, looks at device code as
// far as ELF goes, refuses launches that such a GPU would refuse, and computes
// nothing.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

enum : int { kInvalidValue = 1, kInvalidImage = 200, kNoBinary = 209, kNotFound = 500 };
constexpr int kSm = 87, kSharedOptin = 163 * 1024, kShared = 48 * 1024;

struct Module {
  const unsigned char* image;
  uint64_t size;
};

struct Function {
  char name[128];
  int max_shared;
};

// Bytes of an ELF file without program headers behind its sections.
uint64_t size_of(const unsigned char* image) {
  uint64_t sections, segments;
  uint16_t section_size, section_count, segment_size, segment_count;
  std::memcpy(&segments, image + 32, 8), std::memcpy(&sections, image + 40, 8);
  std::memcpy(&segment_size, image + 54, 2), std::memcpy(&segment_count, image + 56, 2);
  std::memcpy(&section_size, image + 58, 2), std::memcpy(&section_count, image + 60, 2);
  const uint64_t a = sections + uint64_t(section_size) * section_count,
                 b = segments + uint64_t(segment_size) * segment_count;
  return a > b ? a : b;
}

bool holds(const Module& module, const char* text) {
  return memmem(module.image, module.size, text, std::strlen(text) + 1) != nullptr;
}

int complain(const char* what, const char* name, long found) {
  std::fprintf(stderr, "stub_cuda: %s %s: %ld\n", what, name, found);
  return kInvalidValue;
}

char context;

}  // namespace

extern "C" {

int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* version) { return *version = 12060, 0; }
int cuDeviceGet(int* device, int) { return *device = 0; }
int cuDevicePrimaryCtxRetain(void** out, int) { return *out = &context, 0; }
int cuCtxSetCurrent(void*) { return 0; }
int cuCtxSynchronize() { return 0; }
int cuCtxGetCurrent(void** out) { return *out = &context, 0; }
int cuCtxGetDevice(int* device) { return *device = 0; }
int cuGetErrorName(int, const char** out) { return *out = "CUDA_ERROR_OF_THE_STUB", 0; }
int cuGetErrorString(int, const char** out) { return *out = "refused by the stand-in", 0; }

int cuDeviceGetAttribute(int* value, int attribute, int) {
  switch (attribute) {
    case 16:
      return *value = 16, 0;
    case 38:
      return *value = 4 << 20, 0;
    case 75:
      return *value = kSm / 10, 0;
    case 76:
      return *value = kSm % 10, 0;
    case 97:
      return *value = kSharedOptin, 0;
    default:
      return complain("no attribute", "", attribute);
  }
}

int cuModuleLoadData(void** out, const void* data) {
  const auto* image = static_cast<const unsigned char*>(data);
  uint16_t machine;
  uint32_t flags;
  std::memcpy(&machine, image + 18, 2), std::memcpy(&flags, image + 48, 4);
  if (std::memcmp(image,
                  "\x7f"
                  "ELF",
                  4) != 0 ||
      machine != 190)
    return kInvalidImage;
  const unsigned sm = image[7] == 51 ? flags & 0xFF : flags >> 8 & 0xFF;
  if (sm != kSm) return kNoBinary;
  return *out = new Module{image, size_of(image)}, 0;
}

int cuModuleGetFunction(void** out, void* module, const char* name) {
  char section[160];
  std::snprintf(section, sizeof section, ".text.%s", name);
  if (!holds(*static_cast<Module*>(module), section)) {
    complain("no kernel", name, 0);
    return kNotFound;
  }
  auto* function = new Function{{}, kShared};
  std::snprintf(function->name, sizeof function->name, "%s", name);
  return *out = function, 0;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (attribute != 8 || value > kSharedOptin)
    return complain("shared memory of", static_cast<Function*>(function)->name, value);
  return static_cast<Function*>(function)->max_shared = value, 0;
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void*, void** parameters, void**) {
  const auto& kernel = *static_cast<Function*>(function);
  const uint64_t threads = uint64_t(bx) * by * bz;
  if (threads < 1 || threads > 1024) return complain("threads of", kernel.name, long(threads));
  if (gx < 1 || gy < 1 || gz < 1 || gx > 2147483647u || gy > 65535 || gz > 65535)
    return complain("grid of", kernel.name, gy);
  if (int(shared) > (kernel.max_shared > kShared ? kernel.max_shared : kShared))
    return complain("shared memory of", kernel.name, shared);
  if (!parameters) return complain("parameters of", kernel.name, 0);
  return 0;
}

int cuMemAlloc_v2(void** out, size_t bytes) {
  return *out = std::aligned_alloc(256, (bytes + 255) / 256 * 256), *out ? 0 : 2;
}
int cuMemFree_v2(void* pointer) { return std::free(pointer), 0; }
int cuMemcpyHtoD_v2(void* to, const void* from, size_t bytes) { return std::memcpy(to, from, bytes), 0; }
int cuMemcpyDtoH_v2(void* to, const void* from, size_t bytes) { return std::memcpy(to, from, bytes), 0; }
int cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t bytes, void*) { return std::memcpy(to, from, bytes), 0; }
int cuMemsetD8_v2(void* to, unsigned char value, size_t bytes) { return std::memset(to, value, bytes), 0; }
int cuMemsetD32Async(void* to, unsigned value, size_t count, void*) {
  for (size_t i = 0; i < count; ++i) static_cast<unsigned*>(to)[i] = value;
  return 0;
}
int cuStreamCreate(void** out, unsigned) { return *out = &context, 0; }
int cuStreamSynchronize(void*) { return 0; }
int cuStreamBeginCapture_v2(void*, int) { return 0; }
int cuStreamEndCapture(void*, void** out) { return *out = &context, 0; }
int cuGraphInstantiateWithFlags(void** out, void*, unsigned long long) { return *out = &context, 0; }
int cuGraphLaunch(void*, void*) { return 0; }
int cuGraphExecDestroy(void*) { return 0; }
int cuGraphDestroy(void*) { return 0; }
}
