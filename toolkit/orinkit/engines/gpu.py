# SPDX-License-Identifier: Apache-2.0
"""The CUDA runtime through cuda-python, as far as an engine needs it: memory, copies, streams, captures.

Everything is allocated before the first request; `Gpu.num_allocations` lets a test prove it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from cuda.bindings import runtime as rt
from numpy.typing import NDArray

from orinkit.errors import DeviceError
from orinkit.memory.arena import ALIGNMENT


def check(result: tuple[Any, ...]) -> Any:
    """The values of a runtime call. Raises EngineError: the call failed."""
    error, *values = result
    if error != _SUCCESS:
        _, text = rt.cudaGetErrorString(error)
        raise DeviceError(f"CUDA error {int(error)}, {error.name}: {text.decode()}", int(error))
    return values[0] if len(values) == 1 else tuple(values)


class Memory:
    """A piece of device memory that is kept as long as the object lives."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.address = int(check(rt.cudaMalloc(max(nbytes, ALIGNMENT))))

    def __del__(self) -> None:
        if hasattr(self, "address"):
            rt.cudaFree(self.address)


class Pinned:
    """Host memory that the device copies from and to without the host's help, as a NumPy array."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        nbytes = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self.address = int(check(rt.cudaHostAlloc(nbytes, rt.cudaHostAllocDefault)))
        raw = (ctypes.c_byte * nbytes).from_address(self.address)
        self.array: NDArray[Any] = np.frombuffer(raw, dtype, int(np.prod(shape))).reshape(shape)

    def __del__(self) -> None:
        if hasattr(self, "address"):
            rt.cudaFreeHost(self.address)


class Gpu:
    """Device 0 and the stream on which everything runs."""

    def __init__(self) -> None:
        """Raises EngineError: no driver, no device."""
        check(rt.cudaSetDevice(0))
        check(rt.cudaFree(0))
        self.stream = int(check(rt.cudaStreamCreateWithFlags(rt.cudaStreamNonBlocking)))
        self.num_allocations = 0

    def allocate(self, nbytes: int) -> Memory:
        """Device memory with any contents. Raises EngineError."""
        self.num_allocations += 1
        return Memory(nbytes)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Pinned:
        """Pinned host memory with any contents. Raises EngineError."""
        self.num_allocations += 1
        return Pinned(shape, dtype)

    def upload(self, address: int, host: NDArray[Any]) -> None:
        """Copy a contiguous host array to the device and wait for it."""
        check(rt.cudaMemcpyAsync(address, host.ctypes.data, host.nbytes, _TO_DEVICE, self.stream))
        self.synchronise()

    def send(self, address: int, host: Pinned, nbytes: int, offset: int = 0) -> None:
        """Enqueue a copy of `nbytes` from `offset` of `host` to the device."""
        check(rt.cudaMemcpyAsync(address, host.address + offset, nbytes, _TO_DEVICE, self.stream))

    def receive(self, host: Pinned, address: int, nbytes: int) -> None:
        """Enqueue a copy to the host."""
        check(rt.cudaMemcpyAsync(host.address, address, nbytes, _TO_HOST, self.stream))

    def copy(self, to: tuple[int, int], source: tuple[int, int], width: int, count: int) -> None:
        """Enqueue a copy within the device: `count` parts of `width` bytes, of which both sides give the address of
        the first and the bytes from part to part."""
        check(rt.cudaMemcpy2DAsync(*to, *source, width, count, _ON_DEVICE, self.stream))

    def synchronise(self) -> None:
        check(rt.cudaStreamSynchronize(self.stream))

    def fill(self, address: int, byte: int, nbytes: int) -> None:
        """Enqueue setting every byte."""
        check(rt.cudaMemsetAsync(address, byte, nbytes, self.stream))

    def event(self) -> int:
        """A marker for `record` and `wait`."""
        return int(check(rt.cudaEventCreateWithFlags(rt.cudaEventDisableTiming)))

    def record(self, event: int) -> None:
        """Enqueue a marker."""
        check(rt.cudaEventRecord(event, self.stream))

    def wait(self, event: int) -> None:
        """Wait until the stream has passed a marker; one that was never recorded counts as passed."""
        check(rt.cudaEventSynchronize(event))

    def look(self) -> None:
        """Raises DeviceError: something enqueued before has failed. Does not wait."""
        error, *_ = rt.cudaStreamQuery(self.stream)
        if error != rt.cudaError_t.cudaErrorNotReady:
            check((error,))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture what `work` enqueues; gives the function that launches it. Raises EngineError."""
        mode = rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(rt.cudaStreamBeginCapture(self.stream, mode))
        try:
            work()
        finally:
            graph = check(rt.cudaStreamEndCapture(self.stream))
        executable = check(rt.cudaGraphInstantiate(graph, 0))
        check(rt.cudaGraphDestroy(graph))
        stream = rt.cudaStream_t(self.stream)  # a number would be made one at every launch
        return lambda: check(rt.cudaGraphLaunch(executable, stream))


_SUCCESS = rt.cudaError_t.cudaSuccess
_TO_DEVICE = rt.cudaMemcpyKind.cudaMemcpyHostToDevice
_TO_HOST = rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
_ON_DEVICE = rt.cudaMemcpyKind.cudaMemcpyDeviceToDevice
