# SPDX-License-Identifier: Apache-2.0
"""Matrices rounded one after the other: what is aimed at, and that what is stored is what was aimed with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orinkit.recipe import Calibration
from orinkit_export import damping, layerwise, prepare
from orinkit_export import plan as plans
from orinkit_export.calibrate import Hidden, LayerRunner
from orinkit_export.layerwise import target
from orinkit_export.plan import Plan
from orinkit_export.streams import Seen
from rounding_inputs import Float32, correlated, gauss

RECIPE = Path(__file__).parents[2] / "recipes/demo.yaml"


def seen(x: Float32, lacking: Float32) -> Seen:
    found = Seen(x.shape[1], lacking.shape[1])
    for part in np.array_split(np.arange(len(x)), 3):
        found.add(x[part], lacking[part])
    return found


def test_a_target_makes_up_for_all_that_its_inputs_tell_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without damping: inputs that are mixed up by a matrix are unmixed, and so are lacking outputs."""
    monkeypatch.setattr(damping, "DAMPING", 0.0)
    weight, expected = gauss(24, 32), correlated(400, 32)
    x = expected @ (np.eye(32, dtype=np.float32) + 0.05 * gauss(32, 32, seed=1))
    lacking: dict[str, Float32] = {"norm2": expected - x, "inner": np.asarray((expected - x) @ weight.T, np.float32)}
    for point in lacking:
        aimed = target(weight, point, seen(x, lacking[point]))
        assert np.linalg.norm(x @ aimed.T - expected @ weight.T) < 1e-2 * np.linalg.norm((x - expected) @ weight.T)


def test_a_target_is_the_weight_itself_where_nothing_is_lacking_or_nothing_comes_in() -> None:
    weight, x = gauss(24, 32), correlated(50, 32)
    x[:, 3] = 0
    assert np.array_equal(target(weight, "norm1", seen(x, np.zeros_like(x))), weight)
    aimed = target(weight, "inner", seen(x, gauss(50, 24, seed=2)))
    assert np.array_equal(aimed[:, 3], weight[:, 3])
    assert np.isfinite(aimed).all()


def planned(method: str) -> Plan:
    found = plans.read(RECIPE)
    quantise = replace(found.recipe.quantise, method=method)  # type: ignore[arg-type]
    return replace(found, recipe=replace(found.recipe, quantise=quantise, calibration=Calibration(None, 6, 64)))


def last_rows(plan: Plan, folder: Path) -> tuple[Float32, Float32, dict[str, Float32]]:
    """Rows of both models behind the last layer, and what is stored."""
    stored = {}
    for weight, _, rounded in prepare.weights(plan, folder):
        stored[weight.name] = rounded.dequantised() if rounded else np.concatenate(list(weight.blocks()))
    rows = Hidden(folder / prepare.CALIBRATION).read(len(plan.spec.layers))
    expected, found = np.split(np.array(rows), 2, axis=2)
    return expected, found, stored


def relative(found: Float32, expected: Float32) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_what_is_stored_makes_the_rows_that_it_was_rounded_for(tmp_path: Path) -> None:
    """Folds and all: the integers of a producer stay while its scales are divided."""
    plan = planned("awq+gptq")
    expected, found, stored = last_rows(plan, tmp_path)
    ids = plan.calibration_ids
    runner, rows = LayerRunner(plan.spec, ids.shape[1]), np.stack(list(prepare.embedded(plan.embedding(), ids)))
    shared = {name: array for name, array in stored.items() if name.startswith("rope.")}
    for index in range(len(plan.spec.layers)):
        prefix = f"layers.{index}."
        arrays = {name.removeprefix(prefix): array for name, array in stored.items() if name.startswith(prefix)}
        rows = np.stack(list(runner.forward(index, arrays, shared, rows, lambda _: None)))
    assert relative(rows, found) < 0.1 * relative(found, expected)  # scales that are divided end in float16


def test_making_up_for_what_is_lacking_pays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned("gptq")
    expected, found, _ = last_rows(plan, tmp_path / "with")
    monkeypatch.setattr(layerwise, "target", lambda weight, *_: weight)
    _, without, _ = last_rows(plan, tmp_path / "without")
    assert relative(found, expected) < 0.9 * relative(without, expected)
