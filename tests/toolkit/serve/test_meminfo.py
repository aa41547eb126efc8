# SPDX-License-Identifier: Apache-2.0
"""The rules of unified memory with recorded figures, and a probe that takes memory for real."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from orinkit.errors import ConfigError
from orinkit.memory import system
from orinkit.serve.meminfo import Memory, probe

GIB = 1 << 20
"""In kB, as the file counts."""


def memory(folder: Path, total: float, available: float, free: float = 1, swap: float = 0, nvmap: float = 0) -> Memory:
    """A machine with these GiB."""
    lines = {"MemTotal": total, "MemFree": free, "MemAvailable": available, "SwapFree": swap, "NvMapMemUsed": nvmap}
    (folder / "proc").mkdir(exist_ok=True)
    text = "".join(f"{name}:       {int(value * GIB)} kB\n" for name, value in lines.items())
    (folder / "proc/meminfo").write_text(text)
    return Memory(folder)


def test_this_machine_can_be_read() -> None:
    figures = Memory(Path("/")).figures()
    assert 0 < figures["MemAvailable"] <= figures["MemTotal"]


def test_m3_the_floor_is_a_tenth_and_at_least_512_mib(tmp_path: Path) -> None:
    assert memory(tmp_path, total=64, available=6).lacks() == {"need": int(6.4 * (1 << 30)), "have": 6 << 30}
    assert memory(tmp_path, total=64, available=6.5).lacks() is None
    assert memory(tmp_path, total=2, available=0.4).lacks() is not None
    assert memory(tmp_path, total=2, available=0.6).lacks() is None


def test_m1_what_would_break_the_floor_is_refused_with_both_numbers(tmp_path: Path) -> None:
    made = memory(tmp_path, total=8, available=4)
    assert made.lacks(3 << 30) is None
    assert made.lacks(4 << 30) == {"need": (4 << 30) + (8 << 30) // 10, "have": 4 << 30}


def test_m5_a_full_page_cache_is_no_lack(tmp_path: Path) -> None:
    assert memory(tmp_path, total=32, free=1, available=24).lacks(8 << 30) is None


@pytest.mark.parametrize(("swap", "nvmap", "expected"), [(0, 0, 20), (4, 0, 24), (16, 0, 32), (16, 2, 30), (4, 2, 26)])
def test_m7_swap_counts_as_in_the_formula_of_nvidia(tmp_path: Path, swap: int, nvmap: int, expected: int) -> None:
    figures = memory(tmp_path, total=32, available=20, free=20, swap=swap, nvmap=nvmap).figures()
    assert system.allocatable(figures) == expected << 30


def test_a_system_that_does_not_tell_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="root: expected"):
        Memory(tmp_path).figures()


def test_m1_a_probe_tells_whether_memory_can_be_had() -> None:
    assert asyncio.run(probe(8 << 20))
    assert not asyncio.run(probe(1 << 62))
