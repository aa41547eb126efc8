# SPDX-License-Identifier: Apache-2.0
"""Every function body, executed by ONNX Runtime, agrees with the reference of its op."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from op_cases import Case, all_cases
from tolerances import RELATIVE_ERROR, relative_error

from orinkit.ops import DOMAIN, OPS
from orinkit_export import bodies
from orinkit_export.nodes import OpNodes

WEIGHTS = {"table", "scale", "weight", "scales", "zeros", "norm", "bias", "conv_weight"}


def one_node_model(case: Case, expected: tuple[NDArray[Any], ...]) -> ir.Model:
    """A model of the case; weights are initializers, as in a real graph."""
    op = OPS[case.op_type]
    values: list[ir.Value | None] = []
    for tensor, array in zip(op.inputs, case.inputs, strict=False):
        values.append(None if array is None else _value(tensor.name, array))
    nodes = OpNodes()
    outputs = nodes.add("case", case.op_type, values, **case.attributes)
    for output, array in zip(outputs, expected, strict=True):
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


def _value(name: str, array: NDArray[Any]) -> ir.Value:
    value = ir.val(name, dtype=ir.DataType.from_numpy(array.dtype), shape=list(array.shape))
    if name in WEIGHTS:
        value.const_value = ir.tensor(array, name=name)
    return value


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case.dtype}-{case.name}") for case in all_cases()])
def test_body_agrees_with_reference(case: Case, tmp_path: Path) -> None:
    op = OPS[case.op_type]
    expected = op.compute(case.inputs, case.attributes)
    model = one_node_model(case, expected)
    ir.save(model, tmp_path / "case.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "case.onnx", providers=["CPUExecutionProvider"])
    known_inputs = {value.name for value in session.get_inputs()}
    feeds = {
        tensor.name: array
        for tensor, array in zip(op.inputs, case.inputs, strict=False)
        if array is not None and tensor.name in known_inputs
    }
    found = session.run([f"case.{tensor.name}" for tensor in op.outputs], feeds)
    for tensor, a, b in zip(op.outputs, found, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.array_equal(np.isnan(a), np.isnan(b)), f"{tensor.name}: foreign state changed"
        known = ~np.isnan(b)
        assert relative_error(a[known], b[known]) < RELATIVE_ERROR[case.dtype], tensor.name
