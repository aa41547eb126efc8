# SPDX-License-Identifier: Apache-2.0
"""Memory that CPU and GPU share; on a Jetson the kernel's figures are a guess, so a floor is held and a probe made.

The floor is a tenth of the memory, at least 512 MiB: below it nothing new is started, what runs may end. Whether there
is as much as a worker needs, only an allocation tells: a throwaway child makes one before the first worker starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path

from orinkit.errors import ConfigError
from orinkit.memory import system

_SHARE = 0.1
_LEAST = 512 << 20
_PROBE = """
import mmap, sys
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("1000")
size = int(sys.argv[1])
with mmap.mmap(-1, max(size, mmap.PAGESIZE)) as memory:
    for at in range(0, size, mmap.PAGESIZE):
        memory[at] = 1
"""
"""Takes memory for real, page by page, and is the first to go when there is none."""


class Memory:
    """The memory of the machine whose /proc lies below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def figures(self) -> Mapping[str, int]:
        """Bytes by the names of /proc/meminfo. Raises ConfigError: the system does not tell."""
        found = system.read(self._root)
        if not {"MemTotal", "MemAvailable"} <= found.keys():
            raise ConfigError(f"root: expected {self._root}/proc/meminfo with MemTotal and MemAvailable, found none")
        return found

    def lacks(self, need: int = 0) -> Mapping[str, int] | None:
        """None if `need` bytes can be taken and the floor still holds, else what is needed and what there is."""
        found = self.figures()
        floor = max(int(_SHARE * found["MemTotal"]), _LEAST)
        if found["MemAvailable"] >= need + floor:
            return None
        return {"need": need + floor, "have": found["MemAvailable"]}


async def probe(need: int) -> bool:
    """Whether a child that takes `need` bytes lives to give them back."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", _PROBE, str(need)), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        return await child.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
