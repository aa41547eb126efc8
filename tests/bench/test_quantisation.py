# SPDX-License-Identifier: Apache-2.0
"""The comparison is fair: outlier channels change no function, and AWQ is what was published."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from orinkit_export.calibrate import LayerRunner
from orinkit_export.prepare import embedded

ROOT = Path(__file__).parents[2]
Float32 = NDArray[np.float32]
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """The scripts import each other, as they do when one of them is run."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module


def test_outlier_channels_are_large_and_change_no_function(load: Load) -> None:
    bench = load("quantisation")
    plan = bench.planned(ROOT / "tests/data/demo-model", 1, 64)
    other = load("outliers").injected(plan)
    ids = plan.calibration_ids
    arrays = bench.floats(plan), bench.floats(other)
    clean, changed = (bench.rows_of(plan, which, ids) for which in arrays)
    assert np.abs(changed - clean).max() < 1e-3 * np.abs(clean).max()
    spreads = []
    for which in arrays:
        mine = {name.removeprefix("layers.0."): array for name, array in which.items() if name.startswith("layers.0.")}
        statistics, rows = LayerRunner(plan.spec, 64).run(
            0, mine, {}, np.stack(list(embedded(plan.embedding(), ids))), lambda _: None
        )
        assert len(list(rows)) == 1
        spreads.append([found.mean_abs.max() / np.median(found.mean_abs) for found in statistics.values()])
    assert (np.array(spreads[1]) > 3 * np.array(spreads[0])).all()


def test_published_integers_by_hand(load: Load) -> None:
    """Range -3..12 over 15 steps: s = 1 and z = 3; 0.4 and 5.6 go to 0 and 6."""
    weight = np.zeros((1, 128), np.float32)
    weight[0, :4] = -3, 12, 0.4, 5.6
    found = load("published_awq").nearest(weight)
    assert found[0, :4].tolist() == [-3, 12, 0, 6]
    assert not found[0, 4:].any()


def test_clipping_loses_no_more_than_the_whole_range(load: Load) -> None:
    awq, rng = load("published_awq"), np.random.default_rng(0)
    weight = rng.standard_t(4, (16, 256)).astype(np.float32)
    x = rng.standard_normal((300, 256)).astype(np.float32)
    gram = x.T @ x

    def error(rounded: Float32, columns: slice) -> Float32:
        difference = (rounded - weight)[:, columns]
        return np.asarray(np.einsum("nk,nk->n", difference @ gram[columns, columns], difference))

    clipped, whole, kept = awq.clipped(weight, gram), awq.nearest(weight), awq.clipped(weight, gram, 4)
    for columns in (slice(0, 128), slice(128, 256)):
        assert (error(clipped, columns) <= error(whole, columns) * (1 + 1e-5)).all()
        assert error(clipped, columns).sum() < 0.97 * error(whole, columns).sum()
    assert np.array_equal(kept[:4], whole[:4])
    assert np.array_equal(kept[4:], clipped[4:])
