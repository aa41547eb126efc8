# SPDX-License-Identifier: Apache-2.0
"""What the descriptions promise of every op, and the functions that the references share."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import op_cases
from op_cases import Case
from orinkit.errors import GraphError
from orinkit.ops import DOMAIN, OPS, VERSIONS, Op
from orinkit.ops.description import rms_norm, sigmoid, silu

CASES = [
    op_cases.embedding(1, "int4"),
    op_cases.projection(2, "int4", options="znbrp"),
    op_cases.projection(3, "int8", options="nsr"),
    op_cases.attention(4, 5, 3, gate=1, window=4),
    op_cases.gated_delta(5, 5, 3),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.op_type)
each_op = pytest.mark.parametrize("op", OPS.values(), ids=lambda op: op.name)


def test_every_op_is_among_the_cases() -> None:
    assert {case.op_type for case in CASES} == set(OPS)
    assert dict.fromkeys(OPS, "1") == VERSIONS


@each_op
def test_the_reference_has_the_described_parameters(op: Op) -> None:
    """Inputs by position, attributes by keyword, both in the described order."""
    parameters = inspect.signature(op.reference).parameters.values()
    by_position = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    by_keyword = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert by_position == [tensor.name for tensor in op.inputs]
    assert by_keyword == [attribute.name for attribute in op.attributes]


@each_op
def test_names_fit_a_plugin(op: Op) -> None:
    assert DOMAIN == "orin"
    assert op.name.startswith("Orin")
    names = [tensor.name for tensor in (*op.inputs, *op.outputs)] + [attribute.name for attribute in op.attributes]
    assert len(set(names)) == len(names)
    assert {"plugin_namespace", "plugin_version"}.isdisjoint(names)
    states = [tensor.name for tensor in op.inputs if tensor.state]
    assert [tensor.name for tensor in op.outputs if tensor.state] == [f"{name}_out" for name in states]


@each_case
def test_compute_changes_no_input(case: Case) -> None:
    before = [None if array is None else array.copy() for array in case.inputs]
    results = OPS[case.op_type].compute(case.inputs, case.attributes)
    for array in results:
        array[...] = 0  # a result that is a view of an input would change it
    for now, then in zip(case.inputs, before, strict=True):
        if now is not None and then is not None:
            assert now.tobytes() == then.tobytes()


@each_case
def test_a_missing_input(case: Case) -> None:
    op = OPS[case.op_type]
    for index, tensor in enumerate(op.inputs):
        if not tensor.optional:
            inputs = [None if i == index else array for i, array in enumerate(case.inputs)]
            with pytest.raises(GraphError, match=f"{op.name}: the input {tensor.name} is missing"):
                op.compute(inputs, case.attributes)
    with pytest.raises(GraphError, match=f"{op.name}: the input {op.inputs[0].name} is missing"):
        op.compute((), case.attributes)


@each_case
def test_an_input_of_another_type(case: Case) -> None:
    op = OPS[case.op_type]
    for index, (tensor, array) in enumerate(zip(op.inputs, case.inputs, strict=False)):
        if array is not None:
            inputs = [array.astype(np.float64) if i == index else a for i, a in enumerate(case.inputs)]
            with pytest.raises(GraphError, match=rf"{op.name}: {tensor.name} must be \(.*\), found float64"):
                op.compute(inputs, case.attributes)


@each_case
def test_too_many_inputs(case: Case) -> None:
    op = OPS[case.op_type]
    inputs = [*case.inputs, *[None] * (len(op.inputs) + 1 - len(case.inputs))]
    with pytest.raises(GraphError, match=f"expected at most {len(op.inputs)} inputs, found {len(op.inputs) + 1}"):
        op.compute(inputs, case.attributes)


@each_case
def test_unknown_and_missing_attributes(case: Case) -> None:
    op = OPS[case.op_type]
    with pytest.raises(GraphError, match=rf"{op.name}: expected attributes \[.*\], found \[.*'colour'"):
        op.compute(case.inputs, case.attributes | {"colour": 1})
    for name in case.attributes:
        fewer = {key: value for key, value in case.attributes.items() if key != name}
        with pytest.raises(GraphError, match=f"{op.name}: expected attributes"):
            op.compute(case.inputs, fewer)


@each_case
def test_an_attribute_of_another_kind(case: Case) -> None:
    """The kind decides the field's type in ONNX and in the plugin: 0 and 0.0 are not the same."""
    op = OPS[case.op_type]
    wrong: dict[str, Any] = {"int": 1.0, "float": 1, "string": 1}
    for attribute in op.attributes:
        with pytest.raises(GraphError, match=f"{op.name}: {attribute.name}: expected {attribute.kind}, found 1"):
            op.compute(case.inputs, case.attributes | {attribute.name: wrong[attribute.kind]})


def test_sigmoid_and_silu_keep_their_precision_far_from_zero() -> None:
    x = np.linspace(-80, 80, 4001)
    exact = 1 / (1 + np.exp(-x))
    assert np.abs(sigmoid(x.astype(np.float32)) / exact - 1).max() < 1e-5
    assert np.allclose(silu(x.astype(np.float32)), x * exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("x", [-3e38, 3e38])
def test_sigmoid_does_not_overflow(x: float) -> None:
    assert sigmoid(np.array([x], np.float32)).tolist() == [float(x > 0)]


def test_rms_norm() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((3, 2, 8)), rng.standard_normal(8)
    found = rms_norm(x.astype(np.float32), weight.astype(np.float32), 0.25)
    assert found.dtype == np.float32
    for row, y in zip(x.reshape(-1, 8), found.reshape(-1, 8), strict=True):
        assert np.allclose(y, row / np.sqrt((row**2).sum() / 8 + 0.25) * weight, rtol=1e-5)
