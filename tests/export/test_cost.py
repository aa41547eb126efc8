# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from orinkit.errors import ResourceError
from orinkit_export import cost


def test_time_and_memory_of_a_stage(tmp_path: Path) -> None:
    size = 64 << 20

    def make(folder: Path) -> None:
        assert np.ones(size, np.int8).sum() == size
        time.sleep(0.05)
        (folder / "made").touch()

    cost.measured(make)(tmp_path)
    found = cost.read(tmp_path)
    assert (tmp_path / "made").is_file()
    assert found.seconds >= 0.05
    assert found.peak_bytes > size


def test_a_stage_that_fails_has_no_cost(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        raise ResourceError("full")

    with pytest.raises(ResourceError, match="full"):
        cost.measured(make)(tmp_path)
    assert list(tmp_path.iterdir()) == []
