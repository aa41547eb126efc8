# SPDX-License-Identifier: Apache-2.0
"""Whether a target's TensorRT can parse a deploy graph: looked at on the host, before a board does.

`operators.json` lists the standard operators that TensorRT's parser takes with their types, each release adding to
those before it (from onnx-tensorrt's docs/operators.md and the change log of NVIDIA/TensorRT).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from orinkit.errors import GraphError
from orinkit.ops import DOMAIN, OPS
from orinkit.target import Stack
from orinkit_export.nodes import INT32_MAX

_OPERATORS = Path(__file__).with_name("operators.json")
_TYPES = {
    ir.DataType.FLOAT: "FP32",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.INT8: "INT8",
    ir.DataType.INT32: "INT32",
    ir.DataType.INT64: "INT64",
    ir.DataType.BOOL: "BOOL",
}
_INPUT_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8, ir.DataType.INT32)
"""What a network input of ours may be; the parser would widen uint8."""
_PLUGIN = ("plugin_namespace", "plugin_version")


def check(model: ir.Model, stack: Stack) -> None:
    """Refuse a deploy graph that the parser of `stack` would not take. Raises GraphError with every reason."""
    found = [*_model(model, stack), *(line for node in model.graph for line in _node(node, stack))]
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise GraphError(f"deploy graph for {stack.name}: {'; '.join(found[:3])}{more}")


def operators(tensorrt: str) -> dict[str, set[str]]:
    """Types of each standard operator that this release of TensorRT parses; an older list where none is known."""
    known: dict[str, set[str]] = {}
    for release, added in json.loads(_OPERATORS.read_text(encoding="utf-8")).items():
        if not known or _number(release) <= _number(tensorrt):
            known |= {name: set(types.split()) for name, types in added.items()}
    return known


def _number(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".")[:2])


def _model(model: ir.Model, stack: Stack) -> Iterator[str]:
    if model.functions:
        yield "expected no function bodies, which some parsers prefer to plugins"
    if model.graph.initializers:
        yield f"expected every weight as an input, found the initializer {min(model.graph.initializers)}"
    opset = model.opset_imports.get("", 0)
    if opset > stack.onnx_opset_max:
        yield f"expected operator set {stack.onnx_opset_max} or older, found {opset}"
    strange = set(model.opset_imports) - {"", DOMAIN}
    if strange:
        yield f"expected the standard domain and {DOMAIN!r}, found {min(strange)!r}"
    for value in model.graph.inputs:
        if value.dtype not in _INPUT_TYPES:
            yield f"input {value.name}: expected float, float16, int8 or int32, found {value.dtype}"


def _node(node: ir.Node, stack: Stack) -> Iterator[str]:
    if node.domain == DOMAIN and node.op_type in OPS:
        yield from _ours(node, stack)
    elif node.domain:
        yield f"{node.name}: expected an op of orinkit or of ONNX, found {node.domain}.{node.op_type}"
    else:
        yield from _standard(node, stack)


def _standard(node: ir.Node, stack: Stack) -> Iterator[str]:
    known = operators(stack.tensorrt.version if stack.tensorrt else "0")
    if node.op_type not in known:
        yield f"{node.name}: expected an operator that TensorRT parses, found {node.op_type}"
        return
    for value in node.inputs:
        if value is not None and value.dtype is not None and _TYPES.get(value.dtype) not in known[node.op_type]:
            expected = ", ".join(sorted(known[node.op_type]))
            yield f"{node.name}: {node.op_type} takes {expected}, found {value.dtype} in {value.name}"


def _ours(node: ir.Node, stack: Stack) -> Iterator[str]:
    op = OPS[node.op_type]
    values = {name: attribute.value for name, attribute in node.attributes.items()}
    if tuple(values.pop(name, None) for name in _PLUGIN) != (DOMAIN, op.version):
        yield f"{node.name}: expected the attributes {' and '.join(_PLUGIN)} of {DOMAIN!r} {op.version!r}"
    try:
        op.check_attributes(values)
    except GraphError as error:
        yield f"{node.name}: {error}"
    for name, value in values.items():
        if isinstance(value, int) and abs(value) > INT32_MAX:
            yield f"{node.name}: {name}: expected a 32-bit integer, found {value}"
    if node.overload:
        yield f"{node.name}: expected no overload, found {node.overload!r}"
    for tensor, value in zip(op.inputs, node.inputs, strict=False):
        if value is None and not tensor.optional:
            yield f"{node.name}: expected the input {tensor.name}, found none"
        elif value is not None and value.dtype is not None:
            yield from _input(node, tensor.name, tensor.dtypes, value, stack)


def _input(node: ir.Node, name: str, dtypes: tuple[str, ...], value: ir.Value, stack: Stack) -> Iterator[str]:
    found = value.dtype.numpy().name if value.dtype else ""
    both = {"float16", "float32"} <= set(dtypes)
    allowed = tuple(name for name in dtypes if name != "float32") if both and stack.tensorrt else dtypes
    if found not in allowed:
        advice = "; export with activations: float16" if found in dtypes else ""
        yield f"{node.name}: {name}: expected {' or '.join(allowed)}, found {found} in {value.name}{advice}"
