// SPDX-License-Identifier: Apache-2.0
// Functions that launchers and device code share: NVRTC takes what is not marked for the host's.
#pragma once

#ifdef __CUDACC__
#define ORIN_BOTH_SIDES __host__ __device__
#else
#define ORIN_BOTH_SIDES
#endif
