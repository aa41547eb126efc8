# SPDX-License-Identifier: Apache-2.0
"""What GPU tests and benches need of CUDA: arrays, a stream, captures, times. Import it only under the gpu marker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import runtime as rt
from numpy.typing import NDArray


def check(result: tuple[Any, ...]) -> Any:
    """The values of a CUDA runtime call. Raises RuntimeError when it failed."""
    error, *values = result
    if error != rt.cudaError_t.cudaSuccess:
        raise RuntimeError(f"{error.name}: {rt.cudaGetErrorString(error)[1].decode()}")
    return values[0] if len(values) == 1 else tuple(values)


class Array:
    """A NumPy array's copy in device memory."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.dtype, self.shape = array.dtype, array.shape
        self.nbytes = array.nbytes
        self.pointer = int(check(rt.cudaMalloc(max(1, array.nbytes))))
        self.write(array)

    def write(self, array: NDArray[Any]) -> None:
        data = np.ascontiguousarray(array, self.dtype)
        check(rt.cudaMemcpy(self.pointer, data.ctypes.data, self.nbytes, rt.cudaMemcpyKind.cudaMemcpyHostToDevice))
        # A copy from pageable memory returns before it has arrived, and no non-blocking stream waits for it.
        check(rt.cudaStreamSynchronize(0))

    def read(self) -> NDArray[Any]:
        out = np.empty(self.shape, self.dtype)
        check(rt.cudaMemcpy(out.ctypes.data, self.pointer, self.nbytes, rt.cudaMemcpyKind.cudaMemcpyDeviceToHost))
        return out

    def __del__(self) -> None:
        rt.cudaFree(self.pointer)


class Stream:
    """A non-default stream, captures of it, and times by events."""

    def __init__(self) -> None:
        check(rt.cudaFree(0))
        self.handle = int(check(rt.cudaStreamCreateWithFlags(rt.cudaStreamNonBlocking)))

    def sync(self) -> None:
        check(rt.cudaStreamSynchronize(self.handle))

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Enqueue a copy within device memory."""
        check(rt.cudaMemcpyAsync(to, source, nbytes, rt.cudaMemcpyKind.cudaMemcpyDeviceToDevice, self.handle))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture what `work` enqueues on this stream; gives the function that launches it."""
        check(rt.cudaStreamBeginCapture(self.handle, rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        try:
            work()
        finally:
            graph = check(rt.cudaStreamEndCapture(self.handle))
        executable = check(rt.cudaGraphInstantiate(graph, 0))
        return lambda: check(rt.cudaGraphLaunch(executable, self.handle))

    def microseconds(self, work: Callable[[], Any], repeats: int = 20, warmup: int = 3) -> float:
        """Median time of `work` on the device."""
        for _ in range(warmup):
            work()
        times = []
        for _ in range(repeats):
            start, end = check(rt.cudaEventCreate()), check(rt.cudaEventCreate())
            check(rt.cudaEventRecord(start, self.handle))
            work()
            check(rt.cudaEventRecord(end, self.handle))
            check(rt.cudaEventSynchronize(end))
            times.append(check(rt.cudaEventElapsedTime(start, end)) * 1e3)
            check(rt.cudaEventDestroy(start))
            check(rt.cudaEventDestroy(end))
        return float(np.median(times))
