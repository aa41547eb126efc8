# SPDX-License-Identifier: Apache-2.0
"""What the user implements, and the plugin registry. The bindings look overrides up by name; so does this."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Any

from .enums import ErrorCodeTRT, SeekPosition

ELF = b"\x7fELF"
MARK = b"\nstandin-creators: "
"""Behind it, a plugin library of the tests lists its creators as JSON: [[name, version, namespace], ...]."""


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    INTERNAL_ERROR, ERROR, WARNING = Severity.INTERNAL_ERROR, Severity.ERROR, Severity.WARNING

    def log(self, severity: ILogger.Severity, msg: str) -> None:
        raise NotImplementedError


class IErrorRecorder:
    def report_error(self, arg0: ErrorCodeTRT, arg1: str) -> bool:
        raise NotImplementedError

    def get_num_errors(self) -> int:
        raise NotImplementedError


class IProgressMonitor:
    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class IStreamReaderV2:
    def read(self, num_bytes: int, stream: int) -> Any:
        raise NotImplementedError

    def seek(self, offset: int, where: SeekPosition) -> bool:
        raise NotImplementedError


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class IPluginRegistry:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def load_library(self, plugin_path: str) -> object | None:
        content = Path(plugin_path).read_bytes()
        if not content.startswith(ELF) or MARK not in content:
            self._logger.log(ILogger.ERROR, f"Unable to load library: {plugin_path}: invalid ELF header")
            return None
        added = {tuple(item) for item in json.loads(content.split(MARK)[1])}
        if added & _CREATORS:
            self._logger.log(ILogger.ERROR, f"Unable to register creators of {plugin_path}: already registered")
            return None
        _CREATORS.update(added)
        return object()

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> object | None:  # noqa: A002
        return object() if (type, version, plugin_namespace) in _CREATORS else None


_CREATORS: set[tuple[str, ...]] = set()
"""One registry in a process, whoever asks for it."""
