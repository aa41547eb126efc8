# SPDX-License-Identifier: Apache-2.0
"""The TensorRT of this process: its messages, its errors, our plugins in its registry, and what machine it runs on.

Names of TensorRT's Python API only, never numbers of its enums: those move between 10.x and 11.x. Methods that TensorRT
calls are overridden under the names that its bindings look up, which the bindings do not document everywhere.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tensorrt as trt
from cuda.bindings import runtime as rt

from orinkit.engines.gpu import check
from orinkit.engines.machine import Machine, read_system
from orinkit.errors import BundleError, EngineError
from orinkit.ops import DOMAIN, OPS

_FATAL = ("INTERNAL_ERROR", "FAILED_ALLOCATION", "FAILED_EXECUTION")
"""Errors after which nothing that the process computes can be trusted."""
_loaded: dict[str, Path] = {}
"""The plugin library in the registry, by its SHA-256. TensorRT refuses a second one with the same ops; none is ever
unloaded, because plans call code of it until the process ends."""


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps the last errors, so that a refusal of TensorRT can be told with its reason."""

    def __init__(self) -> None:
        super().__init__()
        self._errors: deque[str] = deque(maxlen=4)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT, from any of its threads."""
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self._errors.append(msg)

    def reason(self) -> str:
        """The last errors as one text; they are forgotten with it."""
        text = " | ".join(" ".join(message.split())[:300] for message in self._errors)
        self._errors.clear()
        return text or "TensorRT gave no reason"


class ErrorRecorder(trt.IErrorRecorder):  # type: ignore[misc]
    """Errors of an engine and its contexts by kind, the newest last."""

    def __init__(self) -> None:
        super().__init__()
        self._errors: deque[tuple[trt.ErrorCodeTRT, str]] = deque(maxlen=16)
        self._count = 0

    def report_error(self, arg0: trt.ErrorCodeTRT, arg1: str) -> bool:
        """Note an error; the answer says whether it is fatal."""
        self._errors.append((arg0, arg1))
        self._count += 1
        return arg0.name in _FATAL

    def num_errors(self) -> int:
        return len(self._errors)

    get_num_errors = num_errors
    """The name under which the bindings look for `num_errors`."""

    def get_error_code(self, arg0: int) -> trt.ErrorCodeTRT:
        return self._errors[arg0][0]

    def get_error_desc(self, arg0: int) -> str:
        return self._errors[arg0][1]

    def has_overflowed(self) -> bool:
        return self._count > len(self._errors)

    def clear(self) -> None:
        """Called by TensorRT when an engine or a context is made."""
        self._errors.clear()
        self._count = 0

    def describe(self) -> str:
        """The errors as one text; empty where there is none."""
        return " | ".join(f"{code.name}: {' '.join(text.split())[:300]}" for code, text in self._errors)

    @property
    def is_fatal(self) -> bool:
        return any(code.name in _FATAL for code, _ in self._errors)


def read_machine(root: Path = Path("/")) -> Machine:
    """What a plan would be bound to here. Raises DeviceError: no CUDA device."""
    major, minor = (
        int(check(rt.cudaDeviceGetAttribute(attribute, 0)))
        for attribute in (
            rt.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor,
            rt.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor,
        )
    )
    return Machine(
        system=read_system(root),
        sm=10 * major + minor,
        driver=_release(int(check(rt.cudaDriverGetVersion()))),
        cuda=_release(int(check(rt.cudaRuntimeGetVersion()))),
        tensorrt=str(trt.__version__),
    )


@contextmanager
def exceptions_told(log: Log, doing: str) -> Iterator[None]:
    """Turns what the bindings raise, where they give no answer, into EngineError."""
    try:
        yield
    except RuntimeError as error:
        raise EngineError(f"{doing} failed: {error} {log.reason()}") from None


def new_streams(count: int) -> list[int]:
    """Streams beside the main one, for one context; they live as long as the process. Raises DeviceError."""
    return [int(check(rt.cudaStreamCreateWithFlags(rt.cudaStreamNonBlocking))) for _ in range(count)]


def load_plugins(registry: trt.IPluginRegistry, library: Path, log: Log) -> None:
    """Load our plugins once per process and see that every op has its creator. Raises EngineError, BundleError."""
    path = library.resolve()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest not in _loaded:
        if _loaded:
            raise EngineError(
                f"{path}: expected the plugin library that this process has loaded, found another one; start a process "
                "for each bundle"
            )
        if registry.load_library(str(path)) is None:
            raise EngineError(
                f"{path}: TensorRT cannot load the plugin library: {log.reason()}; export the bundle again"
            )
        _loaded[digest] = path
    missing = [op.name for op in OPS.values() if registry.get_creator(op.name, op.version, DOMAIN) is None]
    if missing:
        op = OPS[missing[0]]
        raise BundleError(
            f"{path}: expected the plugin {op.name} version {op.version} in namespace {DOMAIN!r}, found none"
            f" ({len(missing)} missing); export the bundle with the orinkit that is installed here"
        )


def _release(version: int) -> str:
    """CUDA's 12060 as 12.6."""
    return f"{version // 1000}.{version % 1000 // 10}"
