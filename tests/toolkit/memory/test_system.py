# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's formula with figures that are small enough to follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from orinkit.memory.system import allocatable, available, read


def test_meminfo_is_read_in_bytes_and_pages(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    text = "MemTotal:        7000 kB\nMemAvailable: 10 kB\nActive(anon):  2 kB\nHugePages_Total:      16\nnonsense\n"
    (tmp_path / "proc/meminfo").write_text(text)
    figures = read(tmp_path)
    assert figures == {
        "MemTotal": 7000 * 1024,
        "MemAvailable": 10 * 1024,
        "Active(anon)": 2 * 1024,
        "HugePages_Total": 16,
    }
    assert available(figures) == 10 * 1024


def test_a_system_without_the_file_tells_nothing(tmp_path: Path) -> None:
    assert read(tmp_path) == {}
    assert available({}) is None
    assert allocatable({}) is None


@pytest.mark.parametrize(
    ("free", "nvmap", "swap", "expected"),
    [
        (60, 10, 0, 70),  # the host holds 30 that cannot go anywhere
        (60, 10, 20, 90),  # 20 of the 30 can be swapped out
        (60, 10, 30, 100),  # all of it, and nothing of the GPU's
        (60, 10, 31, 90),  # swap holds more than the host has
        (60, 0, 31, 91),
    ],
)
def test_allocatable(free: int, nvmap: int, swap: int, expected: int) -> None:
    figures = {"MemTotal": 100, "MemFree": free, "NvMapMemUsed": nvmap, "SwapFree": swap}
    assert allocatable(figures) == expected
