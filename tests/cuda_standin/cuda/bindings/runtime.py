# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: N801, N802, N815, N816
"""A CUDA runtime in host memory under the names of cuda-python, for machines without a GPU. Ours, and only for tests.

Device memory is host memory full of 0xFF, so that what nobody wrote is NaN. Work runs when it is enqueued, or, under
capture, when the capture is launched. An address outside of live memory is an error 700, which sticks: every call after
it fails, as in a real process.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 256
SETTINGS: dict[str, Any] = json.loads(os.environ.get("TENSORRT_STANDIN", "{}"))
"""`cuda` and `driver` releases such as 12060, `sm` such as 87; `capture`: "fails"."""

cudaStreamNonBlocking = 1
cudaHostAllocDefault = 0
cudaEventDisableTiming = 2


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class cudaDeviceAttr(enum.IntEnum):
    cudaDevAttrMultiProcessorCount = 16
    cudaDevAttrIntegrated = 18
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


Work = Callable[[], None]


class FaultError(Exception):
    """Raised by work that a real device would end with a sticky error."""

    def __init__(self, error: cudaError_t) -> None:
        super().__init__(error.name)
        self.error = error


@dataclass
class Stream:
    """Where work is enqueued."""

    captured: list[Work] | None = None
    is_invalid: bool = False


@dataclass
class Device:
    """Everything that a process has of CUDA."""

    memory: dict[int, tuple[int, NDArray[np.uint8]]] = field(default_factory=dict)
    left: dict[int, tuple[int, NDArray[np.uint8]]] = field(default_factory=dict)
    streams: dict[int, Stream] = field(default_factory=dict)
    graphs: dict[int, tuple[Work, ...]] = field(default_factory=dict)
    sticky: cudaError_t | None = None
    num_launches: int = 0
    num_events: int = 0

    def reset(self) -> None:
        """As in a new process. Memory that is yet to be freed stays: its addresses must not be given out again."""
        self.left |= self.memory
        self.memory, self.streams, self.graphs, self.sticky = {}, {}, {}, None

    def allocate(self, nbytes: int) -> int:
        raw = np.full(nbytes + ALIGNMENT, 0xFF, np.uint8)
        address = -(-raw.ctypes.data // ALIGNMENT) * ALIGNMENT
        self.memory[address] = nbytes, raw
        return address

    def check(self, address: int, nbytes: int) -> None:
        """Raises FaultError: these bytes are not all of one live piece of memory."""
        for start, (size, _) in self.memory.items():
            if start <= address and address + nbytes <= start + size:
                return
        raise FaultError(cudaError_t.cudaErrorIllegalAddress)

    def enqueue(self, stream: int, work: Work) -> cudaError_t:
        if self.sticky is not None:
            return self.sticky
        found = self.streams[stream]
        if found.captured is not None:
            found.captured.append(work)
            return cudaError_t.cudaSuccess
        return self.run(work)

    def run(self, work: Work) -> cudaError_t:
        try:
            work()
        except FaultError as fault:
            self.sticky = fault.error
        # As on a device, the call that enqueued it does not tell of a fault; the next one does.
        return cudaError_t.cudaSuccess

    def is_capturing(self, stream: int) -> bool:
        return self.streams[stream].captured is not None


DEVICE = Device()

cudaStream_t = int
Result = tuple[cudaError_t]


def _status() -> cudaError_t:
    return DEVICE.sticky or cudaError_t.cudaSuccess


def cudaSetDevice(device: int) -> Result:
    return (_status(),)


def cudaDeviceGetAttribute(attribute: cudaDeviceAttr, device: int) -> tuple[cudaError_t, int]:
    sm = int(SETTINGS.get("sm", 87))
    values = {
        cudaDeviceAttr.cudaDevAttrMultiProcessorCount: 16,
        cudaDeviceAttr.cudaDevAttrIntegrated: 1,
        cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor: sm // 10,
        cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor: sm % 10,
    }
    return _status(), values[attribute]


def cudaDriverGetVersion() -> tuple[cudaError_t, int]:
    return _status(), int(SETTINGS.get("driver", 12060))


def cudaRuntimeGetVersion() -> tuple[cudaError_t, int]:
    return _status(), int(SETTINGS.get("cuda", 12060))


def cudaGetErrorString(error: cudaError_t) -> tuple[cudaError_t, bytes]:
    return cudaError_t.cudaSuccess, error.name.encode()


def cudaMalloc(nbytes: int) -> tuple[cudaError_t, int]:
    status = _status()
    return status, DEVICE.allocate(nbytes) if status == cudaError_t.cudaSuccess else 0


def cudaFree(address: int) -> Result:
    if address and DEVICE.left.pop(address, None) is None:
        DEVICE.memory.pop(address, None)
    return (_status(),)


def cudaHostAlloc(nbytes: int, flags: int) -> tuple[cudaError_t, int]:
    return cudaMalloc(nbytes)


cudaFreeHost = cudaFree


def cudaStreamCreateWithFlags(flags: int) -> tuple[cudaError_t, int]:
    handle = len(DEVICE.streams) + 1
    DEVICE.streams[handle] = Stream()
    return _status(), handle


def cudaStreamSynchronize(stream: int) -> Result:
    if DEVICE.is_capturing(stream):
        DEVICE.streams[stream].is_invalid = True
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    return (_status(),)


def cudaStreamQuery(stream: int) -> Result:
    return (_status(),)


def cudaEventCreateWithFlags(flags: int) -> tuple[cudaError_t, int]:
    DEVICE.num_events += 1
    return _status(), DEVICE.num_events


def cudaEventRecord(event: int, stream: int) -> Result:
    return (DEVICE.enqueue(stream, lambda: None),)


def cudaEventSynchronize(event: int) -> Result:
    return (_status(),)


def cudaMemGetInfo() -> tuple[cudaError_t, int, int]:
    return _status(), 60 << 30, 64 << 30


def cudaMemsetAsync(address: int, value: int, nbytes: int, stream: int) -> Result:
    def work() -> None:
        DEVICE.check(address, nbytes)
        ctypes.memset(address, value, nbytes)

    return (DEVICE.enqueue(stream, work),)


def cudaMemcpyAsync(target: int, source: int, nbytes: int, kind: cudaMemcpyKind, stream: int) -> Result:
    def work() -> None:
        if kind != cudaMemcpyKind.cudaMemcpyDeviceToHost:
            DEVICE.check(target, nbytes)
        if kind != cudaMemcpyKind.cudaMemcpyHostToDevice:
            DEVICE.check(source, nbytes)
        ctypes.memmove(target, source, nbytes)

    return (DEVICE.enqueue(stream, work),)


def cudaMemcpy2DAsync(
    target: int, pitch: int, source: int, source_pitch: int, width: int, height: int, kind: cudaMemcpyKind, stream: int
) -> Result:
    if width > min(pitch, source_pitch):
        return (cudaError_t.cudaErrorInvalidValue,)
    for row in range(height):
        status = cudaMemcpyAsync(target + row * pitch, source + row * source_pitch, width, kind, stream)
    return status


def cudaStreamBeginCapture(stream: int, mode: cudaStreamCaptureMode) -> Result:
    DEVICE.streams[stream].captured = []
    DEVICE.streams[stream].is_invalid = False
    return (_status(),)


def cudaStreamEndCapture(stream: int) -> tuple[cudaError_t, int]:
    found = DEVICE.streams[stream]
    works, found.captured = tuple(found.captured or ()), None
    if found.is_invalid or SETTINGS.get("capture") == "fails":
        return cudaError_t.cudaErrorStreamCaptureInvalidated, 0
    handle = len(DEVICE.graphs) + 1
    DEVICE.graphs[handle] = works
    return _status(), handle


def cudaGraphInstantiate(graph: int, flags: int) -> tuple[cudaError_t, int]:
    handle = len(DEVICE.graphs) + 1
    DEVICE.graphs[handle] = DEVICE.graphs[graph]
    return _status(), handle


def cudaGraphDestroy(graph: int) -> Result:
    DEVICE.graphs[graph] = ()
    return (_status(),)


def cudaGraphLaunch(graph: int, stream: int) -> Result:
    DEVICE.num_launches += 1

    def work() -> None:
        for item in DEVICE.graphs[graph]:
            item()

    return (DEVICE.enqueue(stream, work),)
