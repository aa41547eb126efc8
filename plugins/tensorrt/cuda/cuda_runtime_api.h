// SPDX-License-Identifier: Apache-2.0
// What TensorRT's headers use of the CUDA runtime: two opaque types. The library itself uses none of it, so it is built
// without a CUDA toolkit.
#pragma once

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
