# SPDX-License-Identifier: Apache-2.0
"""The loop that feeds the watchdog, with a real socket in the place of systemd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from pathlib import Path

from orinkit.serve.meminfo import Memory
from orinkit.serve.notify import Notifier
from orinkit.serve.watch import watch
from toolkit.serve.servers import Server, tell_memory, wait_for


class Looked:
    """What the loop looks after."""

    is_low = False
    memory = Memory(Path("/"))
    looks = 0

    def look(self, _: float) -> None:
        self.looks += 1


def pings(manager: socket.socket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while manager.recv(100):
            count += 1
    return count


def test_f10_a_loop_that_is_blocked_feeds_no_watchdog(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
        manager.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"})
        looked = Looked()

        async def run() -> tuple[int, int]:
            watching = asyncio.ensure_future(watch(looked, notifier))  # type: ignore[arg-type]
            await asyncio.sleep(0.5)
            turned = pings(manager)
            time.sleep(0.5)
            blocked = pings(manager)
            watching.cancel()
            return turned, blocked

        turned, blocked = asyncio.run(run())
    assert turned >= 3
    assert blocked == 0
    assert looked.looks >= 3


def test_f9_a_stopped_supervisor_feeds_no_watchdog(bundle: Path, tmp_path: Path) -> None:
    """What systemd then does is its own business."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
        manager.bind(str(tmp_path / "n"))
        wrapper = ("env", f"NOTIFY_SOCKET={tmp_path / 'n'}", "WATCHDOG_USEC=200000")
        server = Server(bundle, wrapper=wrapper)
        server.wait_ready()
        told: list[bytes] = []

        def is_fed() -> bool:
            with contextlib.suppress(BlockingIOError):
                while True:
                    told.append(manager.recv(100))
            return told.count(b"WATCHDOG=1") >= 3

        wait_for(is_fed, server.explain)
        assert told[0] in (b"READY=1", b"WATCHDOG=1")
        assert b"READY=1" in told
        os.kill(server.process.pid, signal.SIGSTOP)
        time.sleep(0.2)
        pings(manager)
        time.sleep(0.4)
        assert pings(manager) == 0
        os.kill(server.process.pid, signal.SIGCONT)
        assert server.stop() == 0
        wait_for(lambda: is_fed() or b"STOPPING=1" in told)
        assert b"STOPPING=1" in told


def test_m3_low_memory_refuses_new_work_and_ends_when_there_is_enough(bundle: Path, tmp_path: Path) -> None:
    figures = tmp_path / "proc/meminfo"
    tell_memory(figures, 100)
    server = Server(bundle, root=str(tmp_path), delay=0.01)
    wait_for(lambda: server.readyz().json["status"] == "insufficient_memory", server.explain)
    assert "need" in server.readyz().json["reason"]
    assert server.complete().code == "insufficient_memory"
    tell_memory(figures, 4 << 20)
    server.wait_ready()
    events = server.stream("M3", max_tokens=150)
    next(events)
    tell_memory(figures, 100)
    wait_for(lambda: server.readyz().json["reason"] == "low_memory", server.explain)
    refused = server.complete()
    assert (refused.status, refused.code, "retry-after" in refused.headers) == (503, "low_memory", True)
    assert list(events)[-1] == "[DONE]"
    tell_memory(figures, 4 << 20)
    server.wait_ready()
    server.check_golden()
    assert server.stop() == 0
