# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from orinkit import config, recipe
from orinkit.errors import ConfigError
from orinkit.recipe import Bounds, Calibration, Evaluation, Golden, Quantise, Recipe, Shapes, Source

DATA = Path(__file__).parents[1] / "data"
INVALID = sorted(DATA.glob("invalid_recipe_*.yaml"))
SMALLEST = {"name": "demo", "checkpoint": {"path": "../demo"}, "shapes": {"capacity": 512}}


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_an_invalid_recipe_is_refused(path: Path) -> None:
    first_line = path.read_text(encoding="utf-8").splitlines()[0]
    with pytest.raises(ConfigError) as caught:
        recipe.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert first_line.removeprefix("# expect: ") in str(caught.value)


def test_there_are_invalid_recipes() -> None:
    assert len(INVALID) > 50


def test_what_a_recipe_may_leave_out() -> None:
    assert config.parse(SMALLEST, Recipe, "here") == Recipe(
        name="demo",
        checkpoint=Source(path="../demo", repository=None, revision=None),
        shapes=Shapes(capacity=512, slots=4, chunk=512),
        quantise=Quantise(method="awq+gptq", group_size=128, head="int4", embedding="float16", gated_delta="int4"),
        activations="float16",
        calibration=Calibration(text=None, sequences=128, tokens=512),
        evaluation=Evaluation(text=None, sequences=8, tokens=512, bounds=Bounds(None, None, None)),
        golden=Golden(),
    )


@pytest.mark.parametrize(
    "shapes",
    [
        Shapes(capacity=16, slots=1, chunk=16),
        Shapes(capacity=1 << 20, slots=256, chunk=8192),
        Shapes(capacity=512, chunk=512),
    ],
)
def test_shapes_at_their_limits_are_good(shapes: Shapes) -> None:
    shapes.validate()


@pytest.mark.parametrize("method", ["none", "import"])
def test_float32_without_quantisation_is_good(method: str) -> None:
    data = {**SMALLEST, "activations": "float32", "quantise": {"method": method}}
    assert config.parse(data, Recipe, "here").activations == "float32"


def test_a_commit_of_a_repository_is_good() -> None:
    source = Source(path="../demo", repository="Qwen/Qwen3.5-0.8B", revision="0123456789abcdef0123456789abcdef01234567")
    source.validate()
