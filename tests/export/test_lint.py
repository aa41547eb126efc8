# SPDX-License-Identifier: Apache-2.0
"""What a target's TensorRT would not parse is refused on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

import small_models
from orinkit import target
from orinkit.errors import GraphError
from orinkit.model import ModelSpec
from orinkit.target import Stack
from orinkit_export import deploy, lint, store

STACKS = sorted((Path(__file__).parents[2] / "targets").glob("*.yaml"))
JETPACK, HOST = (
    target.read(STACKS[0].with_name(name)).stack for name in ("agx-orin-64gb-jetpack-6.2.yaml", "host.yaml")
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, Path]:
    folder = tmp_path_factory.mktemp("lint")
    return small_models.export("qwen3_5-2-4", folder, small_models.INT4)[0], folder


@pytest.fixture
def model(exported: tuple[ModelSpec, Path]) -> ir.Model:
    spec, folder = exported
    return deploy.build(spec, store.read_index(folder), small_models.INT4)


def standard(model: ir.Model, op_type: str, dtype: ir.DataType = ir.DataType.FLOAT16, domain: str = "") -> None:
    """Append a node that reads a new input."""
    value = ir.Value(name="extra", type=ir.TensorType(dtype), shape=ir.Shape([1]))
    model.graph.inputs.append(value)
    model.graph.append(ir.Node(domain, op_type, [value], name="extra_node"))


@pytest.mark.parametrize("path", STACKS, ids=lambda path: path.stem)
def test_every_target_takes_what_the_exporter_writes(path: Path, model: ir.Model) -> None:
    lint.check(model, target.read(path).stack)


def test_float32_is_for_a_host(tmp_path: Path) -> None:
    recipe = small_models.recipe("float32")
    spec, _ = small_models.export("qwen3", tmp_path, recipe)
    wide = deploy.build(spec, store.read_index(tmp_path), recipe)
    lint.check(wide, HOST)
    with pytest.raises(GraphError, match=r"expected float16.*found float32.*activations: float16.*more\)"):
        lint.check(wide, JETPACK)


def test_an_order_of_columns_is_an_input_like_others(model: ir.Model) -> None:
    node = next(node for node in model.graph if node.op_type == "OrinInt4Gemm")
    node.resize_inputs(9)
    order = ir.Value(name="order", type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape([64]))
    model.graph.inputs.append(order)
    node.replace_input_with(8, order)
    lint.check(model, JETPACK)
    order.dtype = ir.DataType.INT64
    with pytest.raises(GraphError, match="columns: expected int32, found int64 in order"):
        lint.check(model, JETPACK)


@pytest.mark.parametrize(
    ("op_type", "dtype", "stack", "message"),
    [
        ("Add", ir.DataType.FLOAT16, JETPACK, None),
        ("MatMulNBits", ir.DataType.FLOAT16, JETPACK, "an operator that TensorRT parses, found MatMulNBits"),
        ("Sigmoid", ir.DataType.INT32, JETPACK, "Sigmoid takes BF16, FP16, FP32, found INT32 in extra"),
        ("RMSNormalization", ir.DataType.FLOAT16, JETPACK, "found RMSNormalization"),
        ("RMSNormalization", ir.DataType.FLOAT16, "10.16.2.10", None),
        ("Swish", ir.DataType.FLOAT16, "10.16.2.10", "found Swish"),
        ("Swish", ir.DataType.FLOAT16, "11.4.1", None),
    ],
)
def test_standard_operators(
    op_type: str, dtype: ir.DataType, stack: Stack | str, message: str | None, model: ir.Model
) -> None:
    standard(model, op_type, dtype)
    if isinstance(stack, str):
        assert JETPACK.tensorrt is not None
        stack = replace(JETPACK, tensorrt=replace(JETPACK.tensorrt, version=stack))
    if message is None:
        lint.check(model, stack)
        return
    with pytest.raises(GraphError, match=f"JetPack.*extra_node: .*{message}"):
        lint.check(model, stack)


def _function(model: ir.Model) -> None:
    function = ir.Function("orin", "Other", graph=ir.Graph([], [], nodes=[]), attributes=[])
    model.functions[function.identifier()] = function


def _initializer(model: ir.Model) -> None:
    model.graph.register_initializer(ir.Value(name="w", const_value=ir.tensor([1.0], name="w")))


def _attribute(name: str, value: int | str | None) -> Callable[[ir.Model], None]:
    def change(model: ir.Model) -> None:
        node = next(node for node in model.graph if node.op_type == "OrinInt4Gemm")
        if value is None:
            del node.attributes[name]
        else:
            maker = ir.AttrInt64 if isinstance(value, int) else ir.AttrString
            node.attributes.add(maker(name, value))  # type: ignore[arg-type]

    return change


def _without_table(model: ir.Model) -> None:
    next(node for node in model.graph if node.op_type == "OrinEmbedding").replace_input_with(1, None)


MISTAKES: dict[str, tuple[Callable[[ir.Model], None], str]] = {
    "a function": (_function, "expected no function bodies"),
    "an initializer": (_initializer, "expected every weight as an input, found the initializer w"),
    "a newer opset": (lambda model: model.opset_imports.update({"": 21}), "set 20 or older, found 21"),
    "another domain": (lambda model: model.opset_imports.update({"com.microsoft": 1}), "found 'com.microsoft'"),
    "a node of another domain": (
        lambda model: standard(model, "MatMulNBits", domain="com.microsoft"),
        r"found com\.microsoft\.MatMulNBits",
    ),
    "an input that the parser widens": (
        lambda model: standard(model, "Cast", ir.DataType.UINT8),
        "input extra: expected float, float16, int8 or int32, found UINT8",
    ),
    "no namespace": (_attribute("plugin_namespace", None), "attributes plugin_namespace and plugin_version of 'orin'"),
    "another version": (_attribute("plugin_version", "2"), "plugin_version of 'orin' '1'"),
    "an attribute that is missing": (_attribute("group_size", None), "expected attributes"),
    "an integer beyond 32 bits": (_attribute("k", 1 << 40), "k: expected a 32-bit integer, found 1099511627776"),
    "an overload": (lambda model: setattr(model.graph[0], "overload", "v1"), "expected no overload, found 'v1'"),
    "an input that is missing": (_without_table, "embedding: expected the input table, found none"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_no_release_takes(mistake: str, model: ir.Model) -> None:
    change, message = MISTAKES[mistake]
    change(model)
    for stack in (JETPACK, HOST):
        with pytest.raises(GraphError, match=message):
            lint.check(model, stack)
