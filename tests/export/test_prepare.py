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
from orinkit_export.plan import Plan

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
    assert [weight.name for weight, _ in found] == [weight.name for weight in plan.stored()]
    assert all(gram is None for _, gram in found)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Array, Array | None]]:
    found = {}
    for weight, gram in prepare.weights(planned("awq+gptq"), tmp_path_factory.mktemp("calibrated")):
        found[weight.name] = (np.concatenate(list(weight.blocks())), None if gram is None else gram.copy())
    return found


def test_every_weight_comes_once_and_quantised_ones_with_a_gram_matrix(
    calibrated: dict[str, tuple[Array, Array | None]],
) -> None:
    assert set(calibrated) == {weight.name for weight in planned("rtn").stored()}
    for name, (array, gram) in calibrated.items():
        is_quantised = name.endswith((".weight",)) and not name.startswith(("embedding", "layers.0.ba"))
        if is_quantised and ".ba." not in name:
            assert gram is not None, name
            assert gram.shape == (array.shape[1],) * 2
            assert np.allclose(gram, gram.T, rtol=1e-3, atol=1e-4)
            assert (np.diag(gram) >= 0).all()


def test_a_run_that_was_cut_off_goes_on_with_the_same_weights(
    calibrated: dict[str, tuple[Array, Array | None]],
    tmp_path: Path,
) -> None:
    plan = planned("awq+gptq")
    cut = prepare.weights(plan, tmp_path)
    for weight, _ in cut:
        if weight.name == "layers.1.gate_up.weight":
            break
    cut.close()  # type: ignore[attr-defined]
    resumed = {weight.name: np.concatenate(list(weight.blocks())) for weight, _ in prepare.weights(plan, tmp_path)}
    assert "layers.0.qkvz.weight" not in resumed
    assert "layers.1.norm1" in resumed
    for name, array in resumed.items():
        assert np.array_equal(array, calibrated[name][0]), name


def test_a_run_that_was_cut_off_at_its_end_calibrates_nothing_again(tmp_path: Path) -> None:
    plan = planned("gptq")
    for _ in prepare.weights(plan, tmp_path):
        pass
    assert not [weight.name for weight, _ in prepare.weights(plan, tmp_path) if weight.name.startswith("layers.")]
    prepare.tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
