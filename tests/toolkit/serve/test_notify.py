# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from orinkit.serve.notify import Notifier


@pytest.mark.parametrize("is_abstract", [False, True])
def test_messages_arrive(tmp_path: Path, is_abstract: bool) -> None:
    address = f"@orin-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if is_abstract else address)
        Notifier({"NOTIFY_SOCKET": address}).send("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    Notifier({}).send("READY=1")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).send("READY=1")


def test_the_watchdog_hears_twice_in_its_time() -> None:
    assert Notifier({"WATCHDOG_USEC": "20000000"}).interval == 10
    assert Notifier({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}).interval == 10
    assert Notifier({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}).interval is None
    assert Notifier({"WATCHDOG_USEC": "soon"}).interval is None
