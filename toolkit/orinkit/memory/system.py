# SPDX-License-Identifier: Apache-2.0
"""How much memory a machine has and could give now, by the figures of /proc/meminfo."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_LINE = re.compile(r"^([\w()]+):\s+(\d+)( kB)?$", re.MULTILINE)


def read(root: Path = Path("/")) -> dict[str, int]:
    """The lines of /proc/meminfo below `root`, in bytes where they have a unit; empty where the system has none."""
    try:
        text = (root / "proc/meminfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    return {line[1]: int(line[2]) << (10 if line[3] else 0) for line in _LINE.finditer(text)}


def available(figures: Mapping[str, int]) -> int | None:
    """Bytes that programs can have without swapping, page cache included; None: the system does not tell."""
    return figures.get("MemAvailable")


def allocatable(figures: Mapping[str, int]) -> int | None:
    """Bytes that the GPU of a Tegra can have; None: the system does not tell.

    NVIDIA's formula (CUDA for Tegra application note): what the host uses goes to swap as far as it fits. Page cache
    counts as used.
    """
    try:
        total, free, swap = figures["MemTotal"], figures["MemFree"], figures["SwapFree"]
    except KeyError:
        return None
    nvmap = figures.get("NvMapMemUsed", 0)
    host = total - free - nvmap
    return total - nvmap if host < swap else total - (host - swap)
