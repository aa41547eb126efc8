# SPDX-License-Identifier: Apache-2.0
"""The builder's process as its parent sees it: messages, memory, deadline, and why it ended."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orinkit import config
from orinkit.bundle import files
from orinkit.engines.machine import Machine
from orinkit.errors import BundleError, ConfigError, EngineError, GraphError, LockedError, OrinError, ResourceError
from orinkit.memory import system

_POLL_S = 0.2
_MIB = 1 << 20

Progress = Callable[[str, float], None]
"""Called with what TensorRT is doing, and the share that is done."""


_REFUSALS: dict[str, type[OrinError]] = {
    kind.__name__: kind for kind in (BundleError, ConfigError, GraphError, LockedError, ResourceError)
}
"""What a child may refuse; anything else is told as a failure of the engine."""


class Child:
    """The running builder."""

    def __init__(
        self, process: subprocess.Popen[bytes], messages: int, log: Path, root: Path, timeout_s: float
    ) -> None:
        self._process, self._messages, self._log, self._root = process, messages, log, root
        self._deadline = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._pending = b""
        self._phase = "starting"
        self._available = self._lowest = _available(root)

    @property
    def pid(self) -> int:
        return self._process.pid

    def machine(self) -> Machine:
        """What the child says of this machine. Raises EngineError: it cannot say, for lack of a GPU or of TensorRT."""
        for message in self._receive():
            if "machine" in message:
                return config.parse(message["machine"], Machine, "machine")
        raise self._verdict()

    def build(self, job: Mapping[str, Any], progress: Progress) -> None:
        """Have a job done."""
        if self._process.stdin is None:
            raise EngineError("expected a builder that takes a job, found none; report this as a fault of orinkit")
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.close()
        for message in self._receive():
            if "built" in message:
                return
            self._phase = str(message.get("phase", self._phase))
            progress(self._phase, float(message.get("done", 0)))
        raise self._verdict()

    def _receive(self) -> Iterator[dict[str, Any]]:
        """Messages until the child's end. Raises what the child refuses, and EngineError when time is up."""
        while True:
            *lines, self._pending = self._pending.split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "error" in message:
                    raise _error(message)
                yield message
            ready, _, _ = select.select([self._messages], [], [], _POLL_S)
            self._available = _available(self._root)
            self._lowest = min(self._lowest, self._available)
            if time.monotonic() > self._deadline:
                raise EngineError(
                    f"the build took longer than {self._timeout_s:g} s, in the phase {self._phase!r}; nothing was "
                    "left behind; close other programs, or give a longer --timeout"
                )
            if ready:
                received = os.read(self._messages, 1 << 16)
                if not received:
                    return
                self._pending += received

    def _verdict(self) -> OrinError:
        """Why the child ended without a word."""
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return ResourceError(
                f"the build was killed by SIGKILL in the phase {self._phase!r}, likely out of memory: MemAvailable was "
                f"{self._available // _MIB} MiB then, {self._lowest // _MIB} MiB at its lowest; nothing was left "
                "behind; close other programs or add swap, and build again"
            )
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return EngineError(
            f"the build ended {how} in the phase {self._phase!r}: {self._last_line()}; nothing was left behind; the "
            f"whole log is {self._log}"
        )

    def _last_line(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it said nothing")


@contextmanager
def running(folder: Path, root: Path, timeout_s: float) -> Iterator[Child]:
    """A builder process, which is gone when the block ends; what TensorRT writes goes to a log beside the plans."""
    log = folder / "build.log"
    read, write = os.pipe()
    with os.fdopen(read, "rb"):
        with os.fdopen(write, "wb"), files.os_errors(f"starting the builder in {folder}"), log.open("wb") as sink:
            process = subprocess.Popen(  # noqa: S603  (our own module, no shell)
                [sys.executable, "-m", "orinkit.device.builder", str(write), str(root)],
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                pass_fds=(write,),
            )
        try:
            yield Child(process, read, log, root, timeout_s)
        finally:
            process.kill()
            process.communicate()


def _available(root: Path) -> int:
    return system.available(system.read(root)) or 0


def _error(message: Mapping[str, Any]) -> OrinError:
    """The child's refusal as the error that it was."""
    kind = _REFUSALS.get(str(message.get("kind")), EngineError)
    return kind(str(message["error"]))
