# SPDX-License-Identifier: Apache-2.0
"""The deploy graph: the nodes of the bundle's graph, without bodies and weights, and an index of those weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import small_models
from orinkit.engines.deploy import PACKED, decode, encode
from orinkit.model import ModelSpec
from orinkit_export import deploy, store
from small_models import CAPACITY, INT4, NAMES

STEP = {"input_ids": ["T"], "cu_seqlens": ["B1"], "past_lens": ["B"], "slots": ["B"], "logit_rows": ["R"]}

Made = tuple[ModelSpec, Path, ir.Model]


@pytest.fixture(scope="module", params=NAMES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("deploy")
    spec, path = small_models.export(request.param, folder, INT4)
    return spec, path, deploy.build(spec, store.read_index(folder), INT4)


def test_the_nodes_are_those_of_the_graph(made: Made, tmp_path: Path) -> None:
    _, path, model = made
    ir.save(model, tmp_path / "deploy.onnx")
    for found, expected in zip(ir.load(tmp_path / "deploy.onnx").graph, ir.load(path).graph, strict=True):
        assert (found.name, found.op_type, found.domain, found.overload) == (
            expected.name,
            expected.op_type,
            expected.domain,
            "",
        )
        assert {name: item.value for name, item in found.attributes.items()} == {
            name: item.value for name, item in expected.attributes.items()
        }
        before = [str(value.name) if value else None for value in expected.inputs]
        after = [str(value.name).removesuffix(PACKED) if value else None for value in found.inputs]
        assert after == before


def test_nothing_is_left_that_a_parser_could_trip_over(made: Made, tmp_path: Path) -> None:
    model = made[2]
    assert not model.functions
    assert not model.graph.initializers
    assert dict(model.opset_imports) == {"": 20, "orin": 1}
    assert model.ir_version == 9
    ir.save(model, tmp_path / "deploy.onnx")
    assert list(tmp_path.iterdir()) == [tmp_path / "deploy.onnx"]


def test_only_the_sizes_of_a_step_vary(made: Made) -> None:
    spec, _, model = made
    for value in model.graph.inputs:
        sizes = [size if isinstance(size, int) else str(size.value) for size in value.shape or ()]
        assert sizes == STEP.get(str(value.name), [size for size in sizes if isinstance(size, int)]), value.name
    values = {str(value.name): value for value in (*model.graph.inputs, *model.graph.outputs)}
    for index, layer in enumerate(spec.layers):
        for name in (f"kv_{index}", f"kv_{index}_out") if layer.attention else ():
            rows = 64 if layer.attention and layer.attention.window else CAPACITY
            assert list(values[name].shape or ())[0::3] == [INT4.shapes.slots, rows]


def test_every_int4_matrix_is_wanted_in_the_kernel_layout_and_nothing_else(made: Made) -> None:
    model = made[2]
    packed = {str(value.name) for value in model.graph.inputs if str(value.name).endswith(PACKED)}
    for node in model.graph:
        names = {str(value.name) for value in node.inputs if value is not None}
        is_int4 = node.op_type == "OrinInt4Gemm" or (node.op_type == "OrinEmbedding" and len(names) == 3)
        assert names & packed == ({str(value.name) for value in node.inputs[1:4] if value} if is_int4 else set())
    embedding = next(node for node in model.graph if node.op_type == "OrinEmbedding")
    assert [str(value.name) for value in embedding.inputs[1:] if value] == [
        f"embedding.weight{PACKED}",
        f"embedding.scales{PACKED}",
    ]


def test_a_table_of_another_format_stays_as_it_is(tmp_path: Path) -> None:
    recipe = replace(INT4, quantise=replace(INT4.quantise, embedding="int8", head="int8"))
    spec, _ = small_models.export("qwen3", tmp_path, recipe)
    model = deploy.build(spec, store.read_index(tmp_path), recipe)
    embedding = next(node for node in model.graph if node.op_type == "OrinEmbedding")
    assert [str(value.name) for value in embedding.inputs[1:] if value] == ["embedding.weight", "embedding.scale"]


def test_the_index_leads_to_the_bytes(made: Made) -> None:
    _, path, model = made
    entries = store.read_index(path.parent)
    index = deploy.weights(model, entries)
    assert decode(encode(index)) == index
    named = {weight.name: weight for weight in index.weights}
    inputs = {str(value.name): value for value in model.graph.inputs}
    assert named.keys() == {name for name in inputs if name not in STEP and "_out" not in name} - {
        name for name in inputs if name.startswith(("kv_", "conv_", "rec_"))
    }
    data = np.memmap(path.parent / "model.data", np.uint8, "r")
    original = ir.load(path).graph.initializers
    for name, weight in named.items():
        value = inputs[name]
        assert weight.shape == tuple(int(size) for size in value.shape or ())  # type: ignore[arg-type]
        assert value.dtype is not None
        assert weight.dtype == value.dtype.numpy().name
        expected = original[name.removesuffix(PACKED)].const_value
        assert expected is not None
        assert data[weight.offset : weight.offset + weight.nbytes].tobytes() == expected.numpy().tobytes()
    assert {product.weight for product in index.packed} == {name for name in named if name.endswith(f"weight{PACKED}")}


def test_a_tied_head_and_the_embedding_are_one_input(tmp_path: Path) -> None:
    """So a plan holds the table once: every byte of it has one input."""
    spec, _ = small_models.export("qwen3", tmp_path, INT4)
    assert spec.tied
    entries = store.read_index(tmp_path)
    model = deploy.build(spec, entries, INT4)
    nodes = [node for node in model.graph if node.op_type == "OrinEmbedding" or node.name == "head"]
    assert [node.inputs[1] for node in nodes] == [nodes[0].inputs[1]] * 2
    index = deploy.weights(model, entries)
    offsets = [weight.offset for weight in index.weights]
    assert len(set(offsets)) == len(offsets)
    assert [matrix.weight for matrix in index.packed].count(f"embedding.weight{PACKED}") == 1
