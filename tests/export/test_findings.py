# SPDX-License-Identifier: Apache-2.0
"""What is kept for the report while a model is made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orinkit.memory.formats import Format
from orinkit_export.calibrate import Statistics
from orinkit_export.findings import OUTLIER, Findings, sampled
from orinkit_export.rounding import plain_loss
from orinkit_export.smoothing import MAX_ROWS, Smoothing
from orinkit_export.weights import Weight


def weight(matrix: NDArray[np.float32], rows: int = 64) -> Weight:
    def blocks() -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(matrix), rows):
            yield matrix[start : start + rows]

    return Weight("layers.0.down", "projection", matrix.shape, (), blocks)


def kept(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def test_an_error_is_kept_under_the_name_of_its_matrix(tmp_path: Path) -> None:
    matrix = weight(np.ones((8, 128), np.float32))
    Findings(tmp_path).error(matrix, 0.25)
    assert kept(tmp_path, "layers.0.down") == {"error": 0.25}


def test_a_matrix_without_an_error_leaves_nothing(tmp_path: Path) -> None:
    Findings(tmp_path).error(weight(np.ones((8, 128), np.float32)), None)
    assert not (tmp_path / "report").exists()


def test_plain_rounding_is_compared_with_where_int4_is_stored(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    matrix, x = rng.standard_normal((16, 128)).astype(np.float32), rng.standard_normal((300, 128)).astype(np.float32)
    gram = np.asarray(x.T @ x, np.float32)
    findings = Findings(tmp_path)
    findings.before(weight(matrix), Format.of("int8"), gram)
    assert not (tmp_path / "report").exists()
    findings.before(weight(matrix), Format.of("int4-g64"), gram)
    assert kept(tmp_path, "layers.0.down.before") == {"error": pytest.approx(plain_loss(matrix, 64, gram))}


def test_a_fold_is_kept_with_its_spread(tmp_path: Path) -> None:
    found = Smoothing(np.array([0.5, 1, 2], np.float32), "duo", 0.6, 0.8)
    Findings(tmp_path).fold("layers.0.norm2", found)
    assert kept(tmp_path, "layers.0.norm2.fold") == {"kind": "duo", "alpha": 0.6, "ratio": 0.8, "spread": 4.0}


def test_loud_channels_are_counted(tmp_path: Path) -> None:
    x = np.ones((10, 32), np.float32)
    x[:, 5] *= OUTLIER * 2
    x[3, 7] = -OUTLIER  # loud once, not on average
    statistics = Statistics(32)
    statistics.add(x)
    Findings(tmp_path).inputs("layers.1.norm1", statistics)
    found = kept(tmp_path, "layers.1.norm1.inputs")
    assert (found["channel"], found["outliers"]) == (5, 1)
    assert found["largest"] == 2 * OUTLIER


@pytest.mark.parametrize("rows", [7, 64, 4 * MAX_ROWS])
def test_sampled_rows_do_not_depend_on_how_the_matrix_is_read(rows: int) -> None:
    matrix = np.arange(3 * MAX_ROWS, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)
    found = sampled(weight(matrix, rows))
    assert len(found) == MAX_ROWS
    np.testing.assert_array_equal(found, sampled(weight(matrix, 1000)))
    assert found[0, 0] == 0
    assert np.all(np.diff(found[:, 0]) > 0)
