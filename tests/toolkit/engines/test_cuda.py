# SPDX-License-Identifier: Apache-2.0
"""The `cuda` engine gives the tokens of the `onnxruntime` engine: alone, and beside neighbours that come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orinkit.bundle import Bundle
from orinkit.engines import open_engine
from orinkit.ops import VERSIONS
from orinkit.runtime.batch import Row
from orinkit.runtime.steps import Stepper

pytestmark = pytest.mark.gpu
LIBRARY = Path(__file__).parents[3] / "build/kernels/liborin_kernels.so"


@pytest.fixture(scope="module")
def steppers(demo_bundle: Path) -> dict[str, Stepper]:
    pytest.importorskip("cuda.bindings", reason="needs cuda-python", exc_type=ImportError)
    from orinkit.engines.cuda import CudaEngine
    from orinkit.errors import EngineError

    bundle = Bundle.open(demo_bundle, keys=None, supported=VERSIONS)
    model, shapes = bundle.manifest.model, bundle.manifest.recipe.shapes
    try:
        engine: Any = CudaEngine(bundle.graph, bundle.data, model, LIBRARY)
    except EngineError as error:
        pytest.skip(f"needs an NVIDIA GPU and `make kernels`: {error}")
    reference = open_engine("onnxruntime", bundle.graph, model)
    return {"cuda": Stepper(engine, shapes), "onnxruntime": Stepper(reference, shapes)}


def prefill(stepper: Stepper, slot: int, ids: tuple[int, ...]) -> int:
    chunk = stepper.shapes.chunk
    for start in range(0, len(ids), chunk):
        logits = stepper.prefill([Row(slot, start, ids[start : start + chunk])])
    return int(logits[0].argmax())


def alone(stepper: Stepper, ids: tuple[int, ...], count: int) -> list[int]:
    tokens = [prefill(stepper, 0, ids)]
    while len(tokens) < count:
        tokens.append(int(stepper.decode([Row(0, len(ids) + len(tokens) - 1, (tokens[-1],))])[0].argmax()))
    return tokens


def prompts(count: int) -> list[tuple[int, ...]]:
    return [tuple((7 * i + 13 * j) % 4000 + 1 for j in range(3 + 29 * i % 300)) for i in range(count)]


def test_fifty_prompts_alone(steppers: dict[str, Stepper]) -> None:
    for ids in prompts(50):
        assert alone(steppers["cuda"], ids, 24) == alone(steppers["onnxruntime"], ids, 24), len(ids)


def test_side_by_side(steppers: dict[str, Stepper]) -> None:
    """A sequence in each slot, of unequal length; each ends at another step."""
    stepper, slots = steppers["cuda"], steppers["cuda"].shapes.slots
    asked = prompts(slots)
    expected = [alone(steppers["onnxruntime"], ids, 8 + 4 * slot) for slot, ids in enumerate(asked)]
    found = [[prefill(stepper, slot, ids)] for slot, ids in enumerate(asked)]
    while active := [slot for slot in range(slots) if len(found[slot]) < len(expected[slot])]:
        rows = [Row(slot, len(asked[slot]) + len(found[slot]) - 1, (found[slot][-1],)) for slot in active]
        for slot, logits in zip(active, stepper.decode(rows), strict=True):
            found[slot].append(int(logits.argmax()))
    assert found == expected
