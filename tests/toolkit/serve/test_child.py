# SPDX-License-Identifier: Apache-2.0
"""A worker as a process: what it may say, how it ends."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from orinkit.serve import child as children
from orinkit.serve import wire
from orinkit.serve.child import Child, Ending
from orinkit.serve.handover import Handover
from toolkit.serve.servers import is_running

HANDOVER = Handover(Path("bundle"), "fake", None)
PROLOGUE = "import os, socket, sys, time\nline = socket.socket(fileno=int(sys.argv[-2]))\n"


def run(code: str, kill: str | None = None) -> tuple[Ending, list[wire.Report], int]:
    """The ending of a process that does this, what it reported, and its number."""

    async def lived() -> tuple[Ending, list[wire.Report], int]:
        told: list[wire.Report] = []
        child = await Child.start((sys.executable, "-c", PROLOGUE + code), HANDOVER, told.append)
        if kill is not None:
            child.kill(kill)
        return await child.ending(), told, child.pid

    return asyncio.run(lived())


def sent(frame: wire.Report) -> str:
    return f"line.sendall({wire.encode(frame)!r})\n"


def test_a_fault_that_was_told_is_the_cause() -> None:
    ending, told, pid = run(sent(wire.Ready(1.0)) + sent(wire.Fault("cuda_700", "words", 70)) + "os._exit(70)")
    assert ending == Ending("cuda_700", 70, "words")
    assert [type(report).__name__ for report in told] == ["Ready", "Fault"]
    assert not is_running(pid)


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("sys.exit(3)", Ending("exit_3", 3)),
        ("os.kill(os.getpid(), 9)", Ending("signal_9", -9)),
        ("line.close(); os.close(int(sys.argv[-2])) if 0 else time.sleep(60)", Ending("hung_up", -9)),
    ],
)
def test_a_worker_that_ends_without_a_word(code: str, ending: Ending) -> None:
    assert run(code)[0] == ending


@pytest.mark.parametrize("junk", [b"\xff" * 8, b"\0\0\0\x02{}", b"\0\0\0\x01\x80", b"\0\0\0\x0ccos\nsystem\n('"])
def test_a47_a_worker_that_says_what_is_no_frame_is_killed(junk: bytes) -> None:
    ending, told, pid = run(f"line.sendall({junk!r}); time.sleep(60)")
    assert (ending, told) == (Ending("bad_frame", -9), [])
    assert not is_running(pid)


def test_f7_a_worker_is_killed_for_a_reason() -> None:
    assert run("time.sleep(60)", kill="step_deadline")[0] == Ending("step_deadline", -9)


def test_f8_a_worker_that_not_even_sigkill_ends_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that does not deliver the signal is played by a kill that does nothing."""
    monkeypatch.setattr(children, "REAP", 0.2)
    monkeypatch.setattr(Child, "_signal", lambda _: None)

    async def lived() -> tuple[Ending, bool]:
        child = await Child.start((sys.executable, "-c", f"{PROLOGUE}time.sleep(60)"), HANDOVER, lambda _: None)
        child.kill("step_deadline")
        ending, is_alive = await child.ending(), is_running(child.pid)
        monkeypatch.undo()
        child.kill("for real")
        await child.ending()
        return ending, is_alive

    assert asyncio.run(lived()) == (Ending("gpu_stuck", None), True)
