# SPDX-License-Identifier: Apache-2.0
"""A worker process as the supervisor holds it: started, spoken to, killed, reaped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orinkit.errors import EngineError
from orinkit.serve import wire
from orinkit.serve.handover import Handover

WORKER = (sys.executable, "-m", "orinkit.serve.worker")
REAP = 10.0
"""Seconds after SIGKILL in which a process must be gone; later it sits in the driver for good."""


@dataclass(frozen=True)
class Ending:
    """How a worker ended."""

    code: str
    """A word for the cause, from a bounded set."""
    exit: int | None
    """Exit code; -N for signal N; None: not even SIGKILL ended it."""
    message: str = ""


class Child(asyncio.Protocol):
    """One worker and the line to it. `report` is called with each report, in order, within the event loop."""

    def __init__(self, report: Callable[[wire.Report], None]) -> None:
        self._report = report
        self._splitter = wire.Splitter()
        self._transport: asyncio.Transport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._fault: wire.Fault | None = None
        self._killed_for: str | None = None
        self._is_closed = asyncio.Event()
        self._is_killed = asyncio.Event()

    @classmethod
    async def start(cls, command: Sequence[str], handover: Handover, report: Callable[[wire.Report], None]) -> Child:
        """Start a worker in a session of its own, out of reach of the terminal's signals."""
        child = cls(report)
        ours, theirs = socket.socketpair()
        with theirs:
            child._process = await asyncio.create_subprocess_exec(
                *command,
                *replace(handover, socket=theirs.fileno(), supervisor=os.getpid()).arguments(),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
            )
        await asyncio.get_running_loop().create_connection(lambda: child, sock=ours)
        return child

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for payload in self._splitter.feed(data):
                report = wire.decode_report(payload)
                if isinstance(report, wire.Fault):
                    self._fault = report
                if self._killed_for is None:
                    self._report(report)
        except EngineError:
            self.kill("bad_frame")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        self._is_closed.set()

    def send(self, order: wire.Order) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(wire.encode(order))

    def kill(self, code: str) -> None:
        """End the worker at once; `code` will be the cause unless it has told one itself."""
        self._killed_for = self._killed_for or code
        self._is_killed.set()
        with contextlib.suppress(ProcessLookupError):
            self._signal()

    def _signal(self) -> None:
        if self._process is not None:
            self._process.kill()

    async def ending(self) -> Ending:
        """Wait for the end, whoever causes it; a worker that has hung up is killed."""
        if self._process is None:
            raise EngineError("worker: expected a started process; call start() first")
        exited = asyncio.ensure_future(self._process.wait())
        hung_up = asyncio.ensure_future(self._is_closed.wait())
        killed = asyncio.ensure_future(self._is_killed.wait())
        try:
            await asyncio.wait({exited, hung_up, killed}, return_when=asyncio.FIRST_COMPLETED)
            if not exited.done() and not self._is_killed.is_set():
                await asyncio.wait({exited}, timeout=1.0)
                if not exited.done():
                    self.kill("hung_up")
            await asyncio.wait({exited}, timeout=REAP)
            if not exited.done():
                return Ending("gpu_stuck", None)
            # What it said last may still lie in the socket.
            await asyncio.wait({hung_up}, timeout=1.0)
            return self._told(exited.result())
        finally:
            for waiting in (exited, hung_up, killed):
                waiting.cancel()
            if self._transport is not None:
                self._transport.close()

    def _told(self, code: int) -> Ending:
        if self._killed_for is not None:
            return Ending(self._killed_for, code)
        if self._fault is not None:
            return Ending(self._fault.code, code, self._fault.message)
        return Ending(f"signal_{-code}" if code < 0 else f"exit_{code}", code)
