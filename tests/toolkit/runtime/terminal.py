# SPDX-License-Identifier: Apache-2.0
"""orin-run with the fake engine, as a program of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys

PROGRAM = [sys.executable, "-m", "toolkit.runtime.fake_program"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "dumb"}


def _heed_interrupts() -> None:
    """A shell that runs the tests in the background lets its children ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """orin-run on a terminal of its own; a test that waits for what never comes fails after a minute."""

    def __init__(self, *arguments: str) -> None:
        self.end, other = pty.openpty()
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments, "--engine", "fake"],
            env=ENVIRONMENT,
            stdin=other,
            stdout=other,
            stderr=other,
            preexec_fn=_heed_interrupts,
        )
        os.close(other)
        self.seen = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.end)

    def read_until(self, pattern: bytes) -> bytes:
        """All that has come since the last call, up to a match."""
        while not (match := re.search(pattern, self.seen)):
            self.seen += self._read()
        part, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return part

    def finish(self) -> tuple[int, bytes]:
        """The exit code, and all that has come since the last call."""
        with contextlib.suppress(OSError):  # the other end is closed
            while True:
                self.seen += self._read()
        return self.process.wait(), self.seen

    def type(self, text: bytes) -> None:
        os.write(self.end, text)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def _read(self) -> bytes:
        if not select.select([self.end], [], [], 60)[0]:
            raise AssertionError(f"nothing came after {self.seen!r}")
        return os.read(self.end, 4096)
