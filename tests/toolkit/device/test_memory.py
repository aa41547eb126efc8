# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from orinkit.device.memory import available

MEMINFO = "MemTotal:       64349388 kB\nMemFree:         1234567 kB\nMemAvailable:   51234568 kB\nSwapFree: 0 kB\n"


@pytest.mark.parametrize(("text", "expected"), [(MEMINFO, 51234568 << 10), ("MemTotal: 1 kB\n", 0), (None, 0)])
def test_what_the_system_tells(text: str | None, expected: int, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    if text is not None:
        (tmp_path / "proc/meminfo").write_text(text, encoding="ascii")
    assert available(tmp_path) == expected


def test_this_machine_has_memory() -> None:
    assert available() > 1 << 20
