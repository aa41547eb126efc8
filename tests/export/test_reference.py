# SPDX-License-Identifier: Apache-2.0
"""Whole graphs by the references of their ops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

import small_models
from orinkit.engines.base import Float32, Profile, StepInputs
from orinkit.engines.ort import OrtEngine
from orinkit.errors import GraphError, VerificationError
from orinkit.ops import DOMAIN
from orinkit.recipe import Recipe
from orinkit_export.reference import ReferenceGraph
from orinkit_export.verify import kl_divergence
from small_models import CAPACITY, CHUNK, INT4, NAMES
from tolerances import KL_INT4

Array = NDArray[Any]
SEQUENCES = [[5, 90, 3, 3, 17, 44, 8], [60], list(range(20, 50))]


def ints(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def small(name: str, folder: Path, how: Recipe) -> ir.Model:
    return ir.load(small_models.export(name, folder, how)[1])


def engine_logits(engine: OrtEngine, sequence: list[int]) -> Float32:
    """Of every position, in chunks."""
    context = engine.context(Profile("test", CHUNK, 1), engine.caches(1, CAPACITY, CHUNK))
    parts = []
    for start in range(0, len(sequence), CHUNK):
        ids = ints(*sequence[start : start + CHUNK])
        rows = np.arange(len(ids), dtype=np.int32)
        parts.append(context.run(StepInputs(ids, ints(0, len(ids)), ints(start), ints(0), rows)))
    return np.concatenate(parts)


@pytest.mark.parametrize("name", NAMES)
def test_int4_agrees_with_onnxruntime(name: str, tmp_path: Path) -> None:
    """Packed and whole here, alone and in chunks there: logits of quantised models in float16."""
    spec, path = small_models.export(name, tmp_path, INT4)
    expected = ReferenceGraph(ir.load(path)).logits(SEQUENCES)
    engine = OrtEngine(path, small_models.windows(spec), threads=1)
    found = np.concatenate([engine_logits(engine, sequence) for sequence in SEQUENCES])
    assert expected.std() > 0.3
    assert kl_divergence(expected, found).mean() < KL_INT4


def test_logits_are_those_of_a_run(tmp_path: Path) -> None:
    """`logits` packs the sequences into one step; each alone gives the same, and so do two steps."""
    model = small("qwen3_5-2-4", tmp_path, small_models.recipe("float32"))
    graph = ReferenceGraph(model)
    whole = np.split(graph.logits(SEQUENCES), np.cumsum([len(sequence) for sequence in SEQUENCES])[:-1])
    for sequence, logits in zip(SEQUENCES, whole, strict=True):
        assert np.abs(graph.logits([sequence]) - logits).max() < 1e-4
    states: dict[str, Array] = {}
    for value in model.graph.inputs:
        if str(value.name).startswith(("kv_", "conv_", "rec_")):
            sizes = [size if isinstance(size, int) else 40 for size in list(value.shape or [])[1:]]
            states[str(value.name)] = np.full([2, *sizes], np.nan, np.float32)
    sequence, parts = SEQUENCES[2], []
    for start, end in ((0, 19), (19, 30)):
        rows = np.arange(end - start, dtype=np.int32)
        step = StepInputs(ints(*sequence[start:end]), ints(0, end - start), ints(start), ints(1), rows)
        outputs = graph.run({**vars(step), **states})
        assert list(outputs) == ["logits", *(f"{name}_out" for name in states)]
        states = {name: outputs[f"{name}_out"] for name in states}
        parts.append(outputs["logits"])
    assert np.abs(np.concatenate(parts) - whole[2]).max() < 1e-4
    assert all(np.isnan(state[0]).all() for state in states.values())


def test_inputs_keep_their_values(tmp_path: Path) -> None:
    graph = ReferenceGraph(small("qwen2", tmp_path, INT4))
    kv = {f"kv_{index}": np.zeros((1, 2, 1, 40, 16), np.float16) for index in range(3)}
    given = {"input_ids": ints(4, 5), "cu_seqlens": ints(0, 2), "past_lens": ints(0), "slots": ints(0)}
    outputs = graph.run(given | kv | {"logit_rows": ints(1, -1)})
    assert outputs["logits"].shape == (2, 96)
    assert not any(cache.any() for cache in kv.values())
    assert all(outputs[f"{key}_out"].any() for key in kv)


# What does not fit into the activation type


def one_linear(weight: Array, domain: str = DOMAIN) -> ReferenceGraph:
    """x [T, 2] times `weight`, once more times `weight`."""
    fields: dict[str, int | float | str] = {"n": 2, "k": 2, "activation": "none", "norm_eps": 1e-6}
    fields |= {"float32_output": 0, "plugin_namespace": DOMAIN, "plugin_version": "1"}
    x = ir.val("x", dtype=ir.DataType.FLOAT16, shape=["T", 2])
    stored = ir.Value(name="w", const_value=ir.tensor(weight))
    first = ir.node("OrinLinear", [x, stored], fields, domain=domain, name="first")
    second = ir.node("OrinLinear", [first.outputs[0], stored], fields, domain=domain, name="second")
    first.outputs[0].name, second.outputs[0].name = "between", "y"
    return ReferenceGraph(ir.Model(ir.Graph([x], second.outputs, nodes=[first, second]), ir_version=10))


def test_the_largest_value_between_ops_is_kept() -> None:
    graph = one_linear(np.array([[-3, 0], [0, 0.5]], np.float16))
    assert graph.largest == 0
    assert graph.run({"x": np.array([[10, 4]], np.float16)})["y"].tolist() == [[90, 1]]
    assert graph.largest == 90
    graph.run({"x": np.array([[1, 1]], np.float16)})
    assert graph.largest == 90


@pytest.mark.parametrize(("x", "node"), [(30000.0, "first"), (900.0, "second")])
def test_an_overflow_names_the_node(x: float, node: str) -> None:
    """Values beyond 65504, times 70 once or twice; there is one error and no warning."""
    graph = one_linear(np.array([[70, 0], [0, 1]], np.float16))
    with pytest.raises(VerificationError, match=f"{node}: its output does not fit into float16; .* another activation"):
        graph.run({"x": np.array([[x, 0]], np.float16)})


def test_a_value_that_is_none_is_refused() -> None:
    graph = one_linear(np.eye(2, dtype=np.float16))
    with pytest.raises(VerificationError, match="first: its output does not fit"):
        graph.run({"x": np.array([[np.nan, 0]], np.float16)})


def test_a_whole_model_that_overflows(tmp_path: Path) -> None:
    down = np.full((64, 112), 6e4, np.float32)
    changed = {"model.layers.1.mlp.down_proj.weight": down}
    _, path = small_models.export("llama3", tmp_path, small_models.recipe("float16"), changed)
    with pytest.raises(VerificationError, match=r"layers.1.down: its output does not fit into float16"):
        ReferenceGraph(ir.load(path)).logits(SEQUENCES)


# Graphs that are not ours


def test_a_foreign_node() -> None:
    with pytest.raises(
        GraphError, match=r"first: expected an op of \['OrinAttention', .*\], found ai.example.OrinLinear"
    ):
        one_linear(np.eye(2, dtype=np.float16), "ai.example").run({"x": np.zeros((1, 2), np.float16)})


def test_a_missing_input() -> None:
    with pytest.raises(GraphError, match="x: expected a graph input, a weight or a node's output"):
        one_linear(np.eye(2, dtype=np.float16)).run({})
