// SPDX-License-Identifier: Apache-2.0
// Calls the C ABI of a kernel library and tells what it said, one line of JSON each.
//
//   kernels_host LIBRARY LAUNCHER ...     orin_init, the device, the fields of each launcher, two choices of kernels
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "kernels/int4_gemm/launch.h"

namespace {

template <typename Function>
Function* find(void* library, const std::string& name) {
  auto* function = reinterpret_cast<Function*>(dlsym(library, name.c_str()));
  if (!function) std::fprintf(stderr, "no %s\n", name.c_str()), std::exit(2);
  return function;
}

}  // namespace

int main(int count, char** words) {
  void* library = count > 1 ? dlopen(words[1], RTLD_NOW) : nullptr;
  if (!library) return std::fprintf(stderr, "%s\n", dlerror()), 2;
  const int status = find<int()>(library, "orin_init")();
  int device[4] = {};
  find<void(int*)>(library, "orin_device")(device);
  std::printf("{\"init\": %d, \"error\": \"%s\", \"arch\": %d, \"sm_count\": %d}\n", status,
              find<const char*(int)>(library, "orin_error")(status), device[0], device[1]);
  for (int i = 2; i < count; ++i) {
    const char* fields = find<const char*()>(library, std::string("orin_") + words[i] + "_fields")();
    std::printf("{\"launcher\": \"%s\", \"fields\": \"", words[i]);
    for (; *fields; ++fields) std::printf(*fields == '\n' ? "\\n" : "%c", *fields);
    std::printf("\"}\n");
  }
  const auto choice = find<const char*(const orin::Int4Gemm*, int, int)>(library, "orin_int4_gemm_choice");
  for (int tokens : {1, 512}) {
    orin::Int4Gemm gemm{};
    gemm.tokens = tokens, gemm.n = 4096, gemm.k = 1024, gemm.group_size = 128;
    std::printf("{\"tokens\": %d, \"choice\": \"%s\"}\n", tokens, choice(&gemm, 16, 163 * 1024));
  }
  return 0;
}
