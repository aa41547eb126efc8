# SPDX-License-Identifier: Apache-2.0
"""The graph file: what TensorRT and ONNX Runtime find in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import small_models
from orinkit.engines.base import Float32, Profile, StepInputs
from orinkit.engines.ort import OrtEngine
from orinkit.model import ModelSpec
from orinkit.ops import DOMAIN, OPS
from orinkit.recipe import Recipe
from orinkit_export import graph, store
from orinkit_export.nodes import INT32_MAX
from orinkit_export.reference import ReferenceGraph
from orinkit_export.store import ALIGNMENT, DATA, Entry
from small_models import CAPACITY, CHUNK, INT4, NAMES

WIDE = small_models.recipe("float16")
STEP = ["input_ids", "cu_seqlens", "past_lens", "slots", "logit_rows"]
STATES = ("kv_", "conv_", "rec_")

Exported = tuple[ModelSpec, Path, ir.Model]
Export = Callable[..., Exported]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Small models by name, each exported once."""
    made: dict[tuple[str, str], Exported] = {}

    def get(name: str, how: Recipe = WIDE) -> Exported:
        key = name, repr(how)  # a recipe holds a dict
        if key not in made:
            spec, path = small_models.export(name, tmp_path_factory.mktemp("graph"), how)
            made[key] = spec, path, ir.load(path)
        return made[key]

    return get


each_model = pytest.mark.parametrize("name", NAMES)
each_format = pytest.mark.parametrize("how", [WIDE, INT4], ids=["float16", "int4"])


def external(model: ir.Model) -> dict[str, ir.ExternalTensor]:
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    found = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, ir.ExternalTensor)}
    assert found.keys() == tensors.keys()
    return found


@each_model
@each_format
def test_every_node_is_an_op_with_all_its_attributes(name: str, how: Recipe, export: Export) -> None:
    _, _, model = export(name, how)
    for node in model.graph:
        assert node.domain == DOMAIN
        attributes = {key: attribute.value for key, attribute in node.attributes.items()}
        assert attributes.pop("plugin_namespace") == "orin"
        assert attributes.pop("plugin_version") == OPS[node.op_type].version
        OPS[node.op_type].check_attributes(attributes)
        assert all(abs(value) <= INT32_MAX for value in attributes.values() if isinstance(value, int))
    assert model.graph.opset_imports[""] <= 20
    assert len({node.name for node in model.graph}) == len(list(model.graph))


@each_model
@each_format
def test_every_node_has_its_function(name: str, how: Recipe, export: Export) -> None:
    """Nodes with other attributes or other inputs have other functions; no function is there in vain."""
    _, _, model = export(name, how)
    seen: dict[ir.OperatorIdentifier, Any] = {}
    for node in model.graph:
        attributes = sorted((key, attribute.value) for key, attribute in node.attributes.items())
        key = (attributes, [value is not None for value in node.inputs])
        assert node.op_identifier() in model.functions
        assert seen.setdefault(node.op_identifier(), key) == key
    assert seen.keys() == model.functions.keys()
    assert len({str(key) for key in seen.values()}) == len(seen)


@each_model
def test_inputs_and_outputs(name: str, export: Export) -> None:
    spec, _, model = export(name)
    inputs = {str(value.name): value for value in model.graph.inputs}
    states = [key for key in inputs if key.startswith(STATES)]
    assert list(inputs) == STEP + states
    assert [value.name for value in model.graph.outputs] == ["logits", *(f"{state}_out" for state in states)]
    logits = model.graph.outputs[0]
    assert (logits.dtype, str(logits.shape)) == (ir.DataType.FLOAT, f"[R,{spec.vocab}]")
    shapes = {key: (inputs[key].dtype, str(inputs[key].shape)) for key in inputs}
    int32 = ir.DataType.INT32
    assert [shapes[key] for key in STEP] == [(int32, f"[{size}]") for size in ("T", "B1", "B", "B", "R")]
    expected = {}
    for index, layer in enumerate(spec.layers):
        if layer.attention:
            cache = f"[S,2,{layer.attention.kv_heads},C_{index},{layer.attention.head_dim}]"
            expected[f"kv_{index}"] = (ir.DataType.FLOAT16, cache)
        if own := layer.gated_delta:
            expected[f"conv_{index}"] = (ir.DataType.FLOAT16, f"[S,{own.channels},{own.conv_width - 1}]")
            recurrent = f"[S,{own.value_heads},{own.key_dim},{own.value_dim}]"
            expected[f"rec_{index}"] = (ir.DataType.FLOAT, recurrent)
    assert {key: shapes[key] for key in states} == expected
    for value in model.graph.outputs[1:]:
        assert (value.dtype, str(value.shape)) == shapes[str(value.name).removesuffix("_out")]


def test_a_layer_is_five_or_six_nodes(export: Export) -> None:
    _, _, model = export("qwen3_5-2-4", INT4)
    kinds = [node.op_type.removeprefix("Orin") for node in model.graph]
    linear = ["Int4Gemm", "Linear", "GatedDelta", "Int4Gemm", "Int4Gemm", "Int4Gemm"]
    full = ["Int4Gemm", "Attention", "Int4Gemm", "Int4Gemm", "Int4Gemm"]
    assert kinds == ["Embedding", *linear * 3, *full, "Int4Gemm"]


# Weights


@each_model
@each_format
def test_weights_lie_in_one_file_and_apart(name: str, how: Recipe, export: Export) -> None:
    """Every stored tensor is an initializer and every initializer is read."""
    _, path, model = export(name, how)
    entries, tensors = store.read_index(path.parent), external(model)
    assert tensors.keys() == entries.keys()
    size, end = (path.parent / DATA).stat().st_size, 0
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset or 0):
        entry = entries[str(tensor.name)]
        assert (tensor.location, tensor.offset, tensor.length) == (DATA, entry.offset, entry.nbytes)
        assert (tuple(tensor.shape), tensor.dtype.numpy().name) == (entry.shape, entry.dtype)
        assert entry.offset % ALIGNMENT == 0
        assert entry.offset >= end
        end = entry.offset + entry.nbytes
    assert end == size
    assert {str(value.name) for node in model.graph for value in node.inputs if value} >= tensors.keys()


@pytest.mark.parametrize(
    ("name", "settings", "shared"),
    [
        ("qwen3_5-2-2", {"head": "int4", "embedding": "int4"}, True),
        ("qwen3_5-2-2", {"head": "int8", "embedding": "int8"}, True),
        ("qwen3_5-2-2", {"head": "float16", "embedding": "float16"}, True),
        ("qwen3_5-2-2", {"head": "int4", "embedding": "float16"}, False),
        ("llama3", {"head": "int4", "embedding": "int4"}, False),
    ],
)
def test_a_tied_head_of_the_same_format_reads_the_embedding(
    name: str, settings: dict[str, str], shared: bool, export: Export
) -> None:
    _, _, model = export(name, small_models.recipe("float16", group_size=32, **settings))
    nodes = {str(node.name): node for node in model.graph}
    assert (nodes["head"].inputs[1] is nodes["embedding"].inputs[1]) == shared
    assert ("head.weight" in model.graph.initializers) != shared


def test_the_same_model_gives_the_same_bytes(export: Export, tmp_path: Path) -> None:
    _, path, _ = export("qwen3_5-2-2", INT4)
    _, again = small_models.export("qwen3_5-2-2", tmp_path, INT4)
    assert again.read_bytes() == path.read_bytes()
    assert (again.parent / DATA).read_bytes() == (path.parent / DATA).read_bytes()


# Files of more than 2 GiB


def logits(path: Path, spec: ModelSpec, ids: list[int]) -> Float32:
    engine = OrtEngine(path, small_models.windows(spec), threads=1)
    context = engine.context(Profile("test", CHUNK, 1), engine.caches(1, CAPACITY, CHUNK))
    count = len(ids)
    step = {"cu_seqlens": [0, count], "past_lens": [0], "slots": [0], "logit_rows": range(count)}
    return context.run(StepInputs(np.array(ids, np.int32), **{key: np.array(v, np.int32) for key, v in step.items()}))


def sparse_copy(source: Path, target: Path, moved: dict[str, Entry]) -> None:
    """The data of a store at the places of `moved`, with holes between that take no space on disk."""
    data = (source / DATA).read_bytes()
    with (target / DATA).open("wb") as file:
        file.truncate(max(entry.offset + entry.nbytes for entry in moved.values()))
        for name, entry in store.read_index(source).items():
            file.seek(moved[name].offset)
            file.write(data[entry.offset : entry.offset + entry.nbytes])


@pytest.mark.parametrize("name", ["llama3", "qwen3_5-2-4"])
@each_format
def test_weights_beyond_4_gib(name: str, how: Recipe, export: Export, tmp_path: Path) -> None:
    """Offsets of more than 32 bits in front of most weights, and a table of more than 2 GiB."""
    spec, path, _ = export(name, how)
    moved = {key: replace(e, offset=e.offset + (5 << 30)) for key, e in store.read_index(path.parent).items()}
    table = moved["embedding.weight"]
    rows = (3 << 30) // (table.nbytes // table.shape[0])
    moved["embedding.weight"] = replace(
        table, offset=ALIGNMENT, shape=(rows, table.shape[1]), nbytes=rows * (table.nbytes // table.shape[0])
    )
    sparse_copy(path.parent, tmp_path, moved)
    graph.save(graph.build(spec, moved, how.activations), tmp_path / "model.onnx")
    ids = [1, 17, 95, 4]
    expected = logits(path, spec, ids)
    assert np.abs(expected).max() > 0.1
    assert np.array_equal(logits(tmp_path / "model.onnx", spec, ids), expected)
    assert np.array_equal(
        ReferenceGraph(ir.load(tmp_path / "model.onnx")).logits([ids]), ReferenceGraph(ir.load(path)).logits([ids])
    )
