# SPDX-License-Identifier: Apache-2.0
"""Weights made ready for rounding: which, in what order, and going on after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from orinkit.recipe import Calibration
from orinkit_export import plan as plans
from orinkit_export import prepare
from orinkit_export.layerwise import POINTS
from orinkit_export.plan import Plan
from orinkit_export.prepare import Prepared

Array = NDArray[np.float32]
RECIPE = Path(__file__).parents[2] / "recipes/demo.yaml"


def planned(method: str) -> Plan:
    found = plans.read(RECIPE)
    quantise = replace(found.recipe.quantise, method=method)  # type: ignore[arg-type]
    recipe = replace(found.recipe, quantise=quantise, calibration=Calibration(None, 4, 64))
    return replace(found, recipe=recipe)


def test_rtn_takes_the_weights_as_they_are(tmp_path: Path) -> None:
    plan = planned("rtn")
    found = list(prepare.weights(plan, tmp_path))
    assert [weight.name for weight, _, _ in found] == [weight.name for weight in plan.stored()]
    assert all(gram is None and rounded is None for _, gram, rounded in found)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prepared]:
    plan = planned("awq+gptq")
    return {found.weight.name: found for found in prepare.weights(plan, tmp_path_factory.mktemp("calibrated"))}


def stored(found: Prepared) -> Array:
    """What becomes of a weight before the head is rounded."""
    return found.rounded.dequantised() if found.rounded else np.concatenate(list(found.weight.blocks()))


def test_every_weight_comes_once_and_those_of_layers_that_have_inputs_come_rounded(
    calibrated: dict[str, Prepared],
) -> None:
    assert set(calibrated) == {weight.name for weight in planned("rtn").stored()}
    for name, found in calibrated.items():
        assert (found.rounded is not None) == (name.split(".", 2)[-1] in POINTS), name
        assert (found.gram is not None) == (name == "head.weight"), name


def test_a_run_that_was_cut_off_goes_on_with_the_same_weights(calibrated: dict[str, Prepared], tmp_path: Path) -> None:
    plan = planned("awq+gptq")
    cut = prepare.weights(plan, tmp_path)
    for weight, _, _ in cut:
        if weight.name == "layers.1.gate_up.weight":
            break
    cut.close()  # type: ignore[attr-defined]
    resumed = {found.weight.name: found for found in prepare.weights(plan, tmp_path)}
    assert "layers.0.qkvz.weight" not in resumed
    assert "layers.1.norm1" in resumed
    for name, found in resumed.items():
        assert np.array_equal(stored(found), stored(calibrated[name])), name


def test_a_run_that_was_cut_off_at_its_end_calibrates_nothing_again(tmp_path: Path) -> None:
    plan = planned("gptq")
    for _ in prepare.weights(plan, tmp_path):
        pass
    assert not [found for found in prepare.weights(plan, tmp_path) if found.weight.name.startswith("layers.")]
    prepare.tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
