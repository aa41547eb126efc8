# SPDX-License-Identifier: Apache-2.0
"""The device under the stand-in: memory of the host, which the stand-in for CUDA keeps. `gpu.py` has the same names."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING

from cuda.bindings import runtime as rt

if TYPE_CHECKING:
    import onnx_ir as ir

    from .executor import Executor


def lost() -> str:
    """The error that has ended the device; empty while it lives."""
    return rt.DEVICE.sticky.name if rt.DEVICE.sticky is not None else ""


def lose() -> None:
    """End the device with an illegal address."""
    rt.DEVICE.sticky = rt.cudaError_t.cudaErrorIllegalAddress


def is_capturing(stream: int) -> bool:
    return bool(rt.DEVICE.is_capturing(stream))


def spoil_capture(stream: int) -> None:
    """A call that no capture allows."""
    rt.DEVICE.streams[stream].is_invalid = True


def enqueue(stream: int, work: Callable[[], None]) -> bool:
    return bool(rt.DEVICE.enqueue(stream, work) == rt.cudaError_t.cudaSuccess)


def executor(model: ir.Model) -> Executor:
    """What computes a plan, imported here because a build has no use for it."""
    from .executor import Executor

    return Executor(model)


def scratch(address: int, nbytes: int, stream: int) -> None:
    """Nothing that lies there outlives a step."""
    rt.DEVICE.check(address, nbytes)
    ctypes.memset(address, 0xFF, nbytes)
