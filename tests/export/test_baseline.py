# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from orinkit.bundle import FileEntry, Provenance
from orinkit.recipe import Evaluation, Quantise, Recipe
from orinkit_export import baseline, graph, plan, quantise, store
from orinkit_export.calibrate import LayerRunner
from orinkit_export.plan import Plan
from orinkit_export.reference import ReferenceGraph
from programs import content, small_desk
from tolerances import LOGITS_FLOAT32

FILES = (FileEntry("model.safetensors", 1, "0" * 64),)
MADE = Provenance("orinkit 1", FILES, texts={"evaluation": "2" * 64, "calibration": "3" * 64})


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A small model with both kinds of mixer, and a text of three sequences."""
    read = plan.read(small_desk(tmp_path_factory.mktemp("small")) / "recipe.yaml")
    return changed(read, evaluation=Evaluation(sequences=3, tokens=24))


def changed(planned: Plan, **changes: Any) -> Plan:
    recipe: Recipe = replace(planned.recipe, **changes)
    return replace(planned, recipe=recipe)


def test_the_logits_are_those_of_the_whole_float_model(planned: Plan, tmp_path: Path) -> None:
    baseline.run(planned, tmp_path)
    rows = baseline.rows(planned, tmp_path)
    assert rows.shape == (3, 23, planned.spec.hidden)
    found = np.concatenate([np.concatenate(list(baseline.logits(planned, row)), axis=1) for row in rows])
    wide = changed(planned, quantise=Quantise(method="none"), activations="float32")
    with store.TensorWriter(tmp_path) as writer:
        for each in wide.stored():
            quantise.store(writer, each, wide.recipe)
    model = graph.build(wide.spec, store.read_index(tmp_path), "float32")
    graph.save(model, tmp_path / "model.onnx")
    whole = ReferenceGraph(ir.load(tmp_path / "model.onnx"))
    expected = whole.logits([ids[:-1].tolist() for ids in planned.evaluation_ids])
    assert np.abs(found - expected).max() < LOGITS_FLOAT32


def test_a_killed_run_goes_on_at_its_layer(planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline.run(planned, tmp_path / "whole")
    forward, begun = LayerRunner.forward, list[int]()

    def interrupted(self: LayerRunner, index: int, *rest: Any) -> Iterator[Any]:
        begun.append(index)
        for row in forward(self, index, *rest):
            yield row
            if begun == [0, 1, 2]:
                raise KeyboardInterrupt

    monkeypatch.setattr(LayerRunner, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        baseline.run(planned, tmp_path / "killed")
    baseline.run(planned, tmp_path / "killed")
    last = len(planned.spec.layers)
    assert begun == [0, 1, 2, *range(2, last)]
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert list(content(tmp_path / "whole")) == [f"hidden-{last}.npy"]


def test_what_the_rows_depend_on(planned: Plan) -> None:
    inputs = baseline.inputs(planned, MADE)
    assert baseline.inputs(changed(planned, quantise=Quantise(method="rtn", group_size=64)), MADE) == inputs
    assert baseline.inputs(planned, replace(MADE, tool="orinkit 2", texts={"evaluation": "2" * 64})) == inputs
    assert baseline.inputs(planned, replace(MADE, files=(FileEntry("a", 1, "1" * 64),))) != inputs
    assert baseline.inputs(planned, replace(MADE, texts={"evaluation": "4" * 64})) != inputs
