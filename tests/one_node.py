# SPDX-License-Identifier: Apache-2.0
"""One op as a model of its own, executed by ONNX Runtime through the function body."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from op_cases import Case
from orinkit.ops import DOMAIN, OPS
from orinkit_export import bodies
from orinkit_export.nodes import OpNodes
from tolerances import RELATIVE_ERROR, relative_error

Array = NDArray[Any]
WEIGHTS = {"table", "scale", "weight", "scales", "zeros", "norm", "bias", "columns", "conv_weight"}
"""Inputs that are initializers, as in a real graph."""


def run(case: Case) -> tuple[Array, ...]:
    """What ONNX Runtime computes for the case."""
    op = OPS[case.op_type]
    model = _model(case)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {tensor.name: array for tensor, array in zip(op.inputs, case.inputs, strict=False) if array is not None}
    wanted = {value.name for value in session.get_inputs()}
    names = [f"case.{tensor.name}" for tensor in op.outputs]
    return tuple(session.run(names, {name: array for name, array in feeds.items() if name in wanted}))


def assert_agrees(case: Case) -> None:
    """ONNX Runtime and the reference: the same types, shapes and NaN of others' state, and numbers within tolerance."""
    op = OPS[case.op_type]
    expected = op.compute(case.inputs, case.attributes)
    for tensor, a, b in zip(op.outputs, run(case), expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.array_equal(np.isnan(a), np.isnan(b)), f"{tensor.name}: foreign state changed"
        known = ~np.isnan(b)
        assert relative_error(a[known], b[known]) < RELATIVE_ERROR[case.dtype], tensor.name


def _model(case: Case) -> ir.Model:
    op = OPS[case.op_type]
    values = [
        None if array is None else _value(tensor.name, array)
        for tensor, array in zip(op.inputs, case.inputs, strict=False)
    ]
    nodes = OpNodes()
    outputs = nodes.add("case", case.op_type, values, **case.attributes)
    for output, array in zip(outputs, op.compute(case.inputs, case.attributes), strict=True):
        output.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    given = [value for value in values if value is not None]
    graph = ir.Graph(
        [value for value in given if value.const_value is None],
        outputs,
        nodes=nodes.nodes,
        initializers=[value for value in given if value.const_value is not None],
        opset_imports={"": bodies.OPSET, DOMAIN: 1, bodies.MICROSOFT: 1},
        name="case",
    )
    return ir.Model(graph, ir_version=10, functions=nodes.functions)


def _value(name: str, array: Array) -> ir.Value:
    value = ir.val(name, dtype=ir.DataType.from_numpy(array.dtype), shape=list(array.shape))
    if name in WEIGHTS:
        value.const_value = ir.tensor(array, name=name)
    return value
