# SPDX-License-Identifier: Apache-2.0
"""The worker: owns bundle, engine and scheduler, serves one supervisor over a socket, and opens no other.

It tells a fault and leaves: nothing is freed and no destructor runs, for after a sticky error each of them may hang. It
ends within moments of its supervisor, whose death closes the socket and, on Linux, kills it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from orinkit.bundle import Bundle, GoldenCase, load_keys
from orinkit.errors import (
    ArtefactError,
    ConfigError,
    DeviceError,
    EngineError,
    RequestError,
    ResourceError,
    VerificationError,
)
from orinkit.ops import VERSIONS
from orinkit.runtime.request import Event, Finished, Request, Timings, Token
from orinkit.runtime.scheduler import Scheduler
from orinkit.runtime.selftest import selftest
from orinkit.runtime.start import start
from orinkit.serve import faults, wire
from orinkit.serve.handover import Handover

_PR_SET_PDEATHSIG = 1
_MOMENT = 0.002
_TOGETHER = 0.016
"""Seconds within which steps are told together: a screen shows no more, and each report takes time from the steps."""
_NICE = 5
"""Below the supervisor, which has little to do, but somebody waits for it."""
_OOM_SCORE = "500"
"""The kernel's choice when memory runs out should be the worker, which is started again."""


def main() -> NoReturn:
    """Serve the supervisor that started this process; leaves with an exit code of `faults`, 0 when it has gone."""
    handover = Handover.of(sys.argv[1:])
    _bind_to(handover.supervisor)
    line = Line(socket.socket(fileno=handover.socket))
    try:
        _serve(handover, line)
    except (BrokenPipeError, ConnectionResetError, EOFError):
        os._exit(0)
    except BaseException as error:  # noqa: BLE001  (whatever it is, the supervisor must learn of it)
        _leave(line, error)


class _UntrueError(VerificationError):
    """A self-test has failed that this process had passed before."""


class Line:
    """The socket to the supervisor."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._splitter = wire.Splitter()
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)

    def send(self, frame: wire.Report) -> None:
        self._socket.sendall(wire.encode(frame))

    def receive(self, seconds: float | None) -> list[wire.Order]:
        """What has come, or comes within `seconds`; None: wait for it.

        Raises EOFError: the supervisor has gone; EngineError: what came is no frame.
        """
        if not self._poll.poll(None if seconds is None else seconds * 1e3):
            return []
        data = self._socket.recv(1 << 16)
        if not data:
            raise EOFError
        return [_decoded(payload) for payload in self._splitter.feed(data)]


def _decoded(payload: bytes) -> wire.Order:
    try:
        return wire.decode_order(payload)
    except RequestError as error:
        # The supervisor checks every request, so one that is refused here is its mistake.
        raise EngineError(f"frame: expected a checked request, found: {error}") from None


def _serve(handover: Handover, line: Line) -> NoReturn:
    if "ORIN_FI" in os.environ:
        raise ConfigError("ORIN_FI: expected no fault injection in a release, found it set; remove it")
    bundle = Bundle.open(
        handover.bundle, keys=None if handover.keys is None else load_keys(handover.keys), supported=VERSIONS
    )
    begin, scheduler = _loaded(bundle, handover.engine)
    gc.collect()
    gc.freeze()  # all of this stays; to look through it later would hold up every answer for tens of milliseconds
    line.send(wire.Ready(time.monotonic() - begin, scheduler.degraded))
    Loop(scheduler, bundle.manifest.golden, line).run()


def _loaded(bundle: Bundle, engine: str) -> tuple[float, Scheduler]:
    """A scheduler that has passed its self-test, and when that began. Raises what is wrong with bundle or machine."""
    try:
        scheduler = start(bundle, engine)
        begin = time.monotonic()
        selftest(scheduler, bundle.manifest.golden)
    except DeviceError:
        raise
    except EngineError as error:
        # Nothing of the device: the same bundle will fail the same way the next time.
        raise ArtefactError(str(error)) from error
    return begin, scheduler


class Loop:
    """Orders in, steps, reports out; a report for each step or a few quick ones, so a silent worker hangs."""

    def __init__(self, scheduler: Scheduler, golden: Sequence[GoldenCase], line: Line) -> None:
        self._scheduler = scheduler
        self._golden = golden
        self._line = line
        self._num_slots = scheduler.num_free_slots
        self._name: dict[int, int] = {}
        """Requests of the supervisor: the scheduler's number -> its own."""
        self._fresh: set[int] = set()
        """Those of them that have no token yet."""
        self._held: list[Event] = []
        """What is still to be told, with the names of the supervisor."""
        self._told = self._slowest = 0.0
        self._is_urgent = False
        self._cases: dict[int, tuple[GoldenCase, list[int]]] = {}
        """A self-test on its way: the scheduler's number -> case and tokens so far."""

    def run(self) -> NoReturn:
        while True:
            for order in self._line.receive(self._patience()):
                self._obey(order)
            if not self._scheduler.is_idle:
                self._step()

    def _patience(self) -> float | None:
        """How long an order may be waited for: while nothing but grammars is worked on, a moment."""
        if self._scheduler.is_idle:
            return None
        is_waiting = self._scheduler.num_queued and self._scheduler.num_free_slots == self._num_slots
        return _MOMENT if is_waiting else 0

    def _obey(self, order: wire.Order) -> None:
        match order:
            case wire.Submit():
                self._submit(order)
            case wire.Cancel():
                for number, name in self._name.items():
                    if name == order.id:
                        self._scheduler.cancel(number)
            case wire.Check():
                self._check()

    def _submit(self, order: wire.Submit) -> None:
        try:
            number = self._scheduler.submit(order.request)
        except RequestError as error:
            end = Finished(order.id, "error", "", Timings(len(order.request.prompt), 0, 0, 0, 0), error)
            self._line.send(wire.Stepped(0, (), (end,)))
        else:
            self._name[number] = order.id
            self._fresh.add(number)

    def _check(self) -> None:
        if not self._cases:
            for case in self._golden:
                request = Request(case.prompt_tokens, max_tokens=len(case.tokens))
                self._cases[self._scheduler.submit(request)] = (case, [])

    def _step(self) -> None:
        begin = time.monotonic()
        events = self._scheduler.step()
        seconds = time.monotonic() - begin
        self._judge(events)
        for event in events:
            if event.request in self._name:
                self._held.append(replace(event, request=self._name[event.request]))
                is_last = isinstance(event, Finished)
                self._is_urgent |= is_last or event.request in self._fresh
                self._fresh.discard(event.request)
                if is_last:
                    del self._name[event.request]
        self._tell(seconds)
        self._compare(events)

    def _tell(self, seconds: float) -> None:
        """Report the steps since the last report, unless that was just now and nothing has begun or ended."""
        self._slowest = max(self._slowest, seconds)
        now = time.monotonic()
        if not self._is_urgent and not self._scheduler.is_idle and now - self._told < _TOGETHER:
            return
        tokens = tuple(event for event in self._held if isinstance(event, Token))
        ends = tuple(event for event in self._held if isinstance(event, Finished))
        self._line.send(wire.Stepped(self._slowest, tokens, ends))
        self._held.clear()
        self._told, self._slowest, self._is_urgent = now, 0.0, False

    def _judge(self, events: Sequence[Event]) -> None:
        """Raise what must end this process; after any other failure of the engine the golden tokens have to be right.

        Raises EngineError.
        """
        for event in events:
            if isinstance(event, Finished) and isinstance(event.error, EngineError):
                if faults.is_fatal(event.error):
                    raise event.error
                self._check()

    def _compare(self, events: Sequence[Event]) -> None:
        """Follow a self-test. Raises _UntrueError: a case ended otherwise than it must."""
        for event in events:
            if event.request not in self._cases:
                continue
            case, found = self._cases[event.request]
            if isinstance(event, Token):
                found.append(event.token)
            elif event.error is not None or tuple(found) != case.tokens:
                raise _UntrueError(f"golden prompt {case.prompt!r}: expected its tokens, found others")
            else:
                del self._cases[event.request]
                if not self._cases:
                    self._line.send(wire.Checked())


def _bind_to(supervisor: int) -> None:
    """End with the supervisor, be the first to go when memory runs out, leave no core dump."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:
        raise ConfigError("worker: expected to be started by orin-run serve; use that")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def _leave(line: Line, error: BaseException) -> NoReturn:
    """Tell what has happened and be gone."""
    code, number = _verdict(error)
    with contextlib.suppress(OSError, EngineError):
        line.send(wire.Fault(code, f"{type(error).__name__}: {error}", number))
    os._exit(number)


def _verdict(error: BaseException) -> tuple[str, int]:
    """A word for the cause, and the exit code."""
    if isinstance(error, (MemoryError, ResourceError)) or (
        isinstance(error, DeviceError) and error.code == faults.OUT_OF_MEMORY
    ):
        return "memory", faults.EXIT_MEMORY
    if isinstance(error, _UntrueError):
        return "golden", faults.EXIT_FAULT
    if isinstance(error, (ArtefactError, ConfigError, VerificationError)):
        return "artefact", faults.EXIT_ARTEFACT
    return faults.code_of(error), faults.EXIT_FAULT


if __name__ == "__main__":
    main()
