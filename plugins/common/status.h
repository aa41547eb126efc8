// SPDX-License-Identifier: Apache-2.0
// What a launcher returns: 0, a CUresult of the driver (positive), or one of these (negative).
#pragma once

namespace orin {

enum Status : int {
  kOk = 0,
  kBadArgument = -1,      // orin_detail() says which, what was expected and what was found
  kNotInitialised = -2,   // orin_init was not called, or failed
  kNoDriver = -3,         // libcuda.so.1 is not on this machine
  kNoCodeForDevice = -4,  // the library holds no device code that this GPU can run
};

// Remembers a sentence for orin_detail() of this thread and returns kBadArgument.
int bad_argument(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace orin
