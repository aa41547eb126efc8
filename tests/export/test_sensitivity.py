# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from orinkit.memory.formats import Format
from orinkit.recipe import Quantise
from orinkit_export import graph, int8, plan, quantise, sensitivity, store
from orinkit_export.calibrate import LayerRunner
from orinkit_export.plan import Plan
from orinkit_export.reference import ReferenceGraph
from orinkit_export.verify import kl_divergence
from orinkit_export.weights import Weight
from programs import small_desk

NAMES = ("layers.1.gate_up.weight", "layers.3.qkv.weight", "head.weight")
INT8 = (Format("int8"),)
ALL = (Format("int4", 64), Format("int4", 32), Format("int8"))


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A small model with both kinds of mixer."""
    return plan.read(small_desk(tmp_path_factory.mktemp("small")) / "recipe.yaml")


def as_int8(weight: Weight) -> Weight:
    array = int8.nearest(np.concatenate(list(weight.blocks()))).dequantised()
    return replace(weight, blocks=lambda: iter([array]))


def logits(planned: Plan, rounded: str, folder: Path) -> NDArray[np.float32]:
    """Of the reference of the whole float graph, one of whose matrices is rounded to int8."""
    recipe = replace(planned.recipe, quantise=Quantise(method="none"), activations="float32")
    with store.TensorWriter(folder) as writer:
        for weight in replace(planned, recipe=recipe).stored():
            quantise.store(writer, as_int8(weight) if weight.name == rounded else weight, recipe)
    graph.save(graph.build(planned.spec, store.read_index(folder), "float32"), folder / "model.onnx")
    whole = ReferenceGraph(ir.load(folder / "model.onnx"))
    return whole.logits([ids[:-1].tolist() for ids in planned.probe_ids])


def test_the_divergence_is_that_of_the_whole_model_with_one_matrix_rounded(planned: Plan, tmp_path: Path) -> None:
    expected = logits(planned, "none", tmp_path / "none")
    for measured in sensitivity.run(planned, dict.fromkeys(NAMES, INT8), tmp_path):
        found = logits(planned, f"{measured.name}.weight", tmp_path / measured.name)
        assert measured.kl == pytest.approx(kl_divergence(expected, found).mean(), rel=0.02)


def test_wider_formats_lose_less(planned: Plan, tmp_path: Path) -> None:
    found = sensitivity.run(planned, dict.fromkeys(NAMES, ALL), tmp_path)
    assert [f"{measured.name}.weight" for measured in found] == list(NAMES)
    for measured in found:
        assert list(measured.errors) == ["int4-g64", "int4-g32", "int8"]
        assert 0.1 > measured.errors["int4-g64"] > measured.errors["int4-g32"] > 30 * measured.errors["int8"] > 0
        assert measured.kl_of("int4-g64") == pytest.approx(measured.kl, rel=1e-12)
        ratio = measured.errors["int8"] / measured.errors["int4-g64"]
        assert measured.kl_of("int8") == pytest.approx(measured.kl * ratio)


def test_a_killed_run_goes_on_at_its_layer(planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats = dict.fromkeys(NAMES, ALL)
    whole = sensitivity.run(planned, formats, tmp_path / "whole")
    forward, begun = LayerRunner.forward, list[int]()

    def interrupted(self: LayerRunner, index: int, *rest: Any) -> Iterator[Any]:
        begun.append(index)
        for row in forward(self, index, *rest):
            yield row
            if begun == [0, 1, 1]:
                raise KeyboardInterrupt

    monkeypatch.setattr(LayerRunner, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sensitivity.run(planned, formats, tmp_path / "killed")
    begun.clear()
    assert sensitivity.run(planned, formats, tmp_path / "killed") == whole
    assert min(begun) == 1
