# SPDX-License-Identifier: Apache-2.0
"""The loop that looks after the worker, and the only one that feeds systemd's watchdog.

The ping is sent between two looks at the worker's progress, so it stops when this loop does, whatever else still runs.
A worker that hangs does not stop it: that is what the worker's own deadline is for.
"""

from __future__ import annotations

import asyncio
import time
from typing import NoReturn

from orinkit.serve.notify import Notifier
from orinkit.serve.supervisor import TICK, Supervisor

MEMORY_EVERY = 1.0
"""Seconds between two looks at the memory."""


async def watch(supervisor: Supervisor, notifier: Notifier) -> NoReturn:
    """Hold the deadlines and the memory floor until cancelled."""
    looked = pinged = float("-inf")
    while True:
        now = time.monotonic()
        supervisor.look(now)
        if now - looked >= MEMORY_EVERY:
            looked = now
            supervisor.is_low = supervisor.memory.lacks() is not None
        if notifier.interval is not None and now - pinged >= notifier.interval:
            pinged = now
            notifier.send("WATCHDOG=1")
        await asyncio.sleep(TICK)
