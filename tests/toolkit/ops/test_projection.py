# SPDX-License-Identifier: Apache-2.0
"""OrinInt4Gemm and OrinLinear against their formula in float64, term by term."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import op_cases
from op_cases import Case
from orinkit.errors import GraphError
from orinkit.ops import OPS, projection
from tolerances import RELATIVE_ERROR, relative_error

Array = NDArray[Any]
Float64 = NDArray[np.float64]
KINDS = ("int4", "wide", "int8")
OPTIONS = ["".join(chosen) for size in range(6) for chosen in itertools.combinations("nbrps", size)]


def named(case: Case) -> dict[str, Array | None]:
    op = OPS[case.op_type]
    padded = [*case.inputs, *[None] * (len(op.inputs) - len(case.inputs))]
    return {tensor.name: array for tensor, array in zip(op.inputs, padded, strict=True)}


def wide_weight(given: dict[str, Array | None], attributes: dict[str, Any]) -> Float64:
    """W [N, K] weight by weight."""
    n, k = attributes["n"], attributes["k"]
    stored, scales, zeros = given["weight"], given.get("scales"), given.get("zeros")
    assert stored is not None
    if scales is None:
        scale = given["scale"]
        rows = np.ones(n) if scale is None else scale.astype(np.float64)
        return np.asarray(stored.astype(np.float64) * rows[:, None])
    weight = np.empty((n, k))
    for row, column in itertools.product(range(n), range(k)):
        group = column // attributes["group_size"]
        q = int(stored[row, column // 2]) % 256 >> 4 * (column % 2) & 15
        zero = 8 if zeros is None else int(zeros[row, group // 2]) % 256 >> 4 * (group % 2) & 15
        weight[row, column] = (q - zero) * float(scales[row, group])
    return weight


def expected_output(case: Case) -> Float64:
    given, attributes = named(case), case.attributes
    x, norm, bias, residual, rows = (given[name] for name in ("x", "norm", "bias", "residual", "rows"))
    columns = given.get("columns")
    assert x is not None
    weight = wide_weight(given, attributes)
    out = []
    for index, source in enumerate(range(len(x)) if rows is None else rows):
        token = x[source].astype(np.float64)
        if norm is not None:
            token = token / math.sqrt((token**2).sum() / len(token) + attributes["norm_eps"]) * norm
        if columns is not None:
            token = np.array([token[column] for column in columns])
        y = np.array([(row * token).sum() for row in weight])
        y = y if bias is None else y + bias
        if attributes["activation"] == "swiglu":
            y = np.array([gate / (1 + math.exp(-gate)) * up for gate, up in y.reshape(-1, 2)])
        out.append(y if residual is None else y + residual[index])
    return np.array(out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_combination(kind: str, dtype: Any, options: str) -> None:
    with_zeros = kind == "int4" and len(options) % 2 == 1
    case = op_cases.projection(len(options), kind, dtype, 3, 12, 96, options=options + "z" * with_zeros)
    (found,) = OPS[case.op_type].compute(case.inputs, case.attributes)
    expected = expected_output(case)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert relative_error(found, expected) < RELATIVE_ERROR[np.dtype(dtype).name]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("options", ["c", "nc", "pc", "nbrpszc"])
def test_columns_are_gathered_behind_the_norm(dtype: Any, options: str) -> None:
    case = op_cases.projection(10, "int4", dtype, 3, 12, 96, options=options)
    (found,) = OPS[case.op_type].compute(case.inputs, case.attributes)
    assert relative_error(found, expected_output(case)) < RELATIVE_ERROR[np.dtype(dtype).name]


def test_columns_of_another_length() -> None:
    case = op_cases.projection(10, "int4", np.float32, 3, 12, 96, options="c")
    inputs = [*case.inputs[:-1], np.arange(95, dtype=np.int32)]
    with pytest.raises(GraphError, match=r"expected columns of \(96,\), found \(95,\)"):
        OPS[case.op_type].compute(inputs, case.attributes)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_output_of_float16(kind: str) -> None:
    """Logits are not rounded to the type of x."""
    case = op_cases.projection(5, kind, np.float16, 3, 12, 96, options="np", float32_output=1)
    (found,) = OPS[case.op_type].compute(case.inputs, case.attributes)
    assert found.dtype == np.float32
    assert relative_error(found, expected_output(case)) < RELATIVE_ERROR["float32"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_row_reads_nothing(kind: str) -> None:
    """rows = -1: any output, as long as it is finite; the others are what they are without it."""
    case = op_cases.projection(6, kind, np.float32, 3, 12, 96, options="nbrps")
    given = named(case)
    x, residual = given["x"], given["residual"]
    assert x is not None
    assert residual is not None
    x[[0, 1]] = np.nan  # nobody asks for them
    rows = np.array([-1, 2, -1], np.int32)
    residual = np.concatenate([residual, residual])[:3]
    residual[[0, 2]] = np.nan
    inputs = list((given | {"x": x, "residual": residual, "rows": rows}).values())
    (found,) = OPS[case.op_type].compute(inputs, case.attributes)
    alone = list((given | {"residual": residual[1:2], "rows": rows[1:2]}).values())
    assert np.isfinite(found).all()
    assert relative_error(found[1:2], expected_output(dataclasses.replace(case, inputs=tuple(alone)))) < 2e-5


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_and_no_tokens(kind: str) -> None:
    case = op_cases.projection(7, kind, np.float32, 3, 12, 96)
    given = named(case)
    op = OPS[case.op_type]
    (no_rows,) = op.compute(list((given | {"rows": np.empty(0, np.int32)}).values()), case.attributes)
    (no_tokens,) = op.compute(list((given | {"x": np.empty((0, 96), np.float32)}).values()), case.attributes)
    assert no_rows.shape == no_tokens.shape == (0, 12)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_rows_do_not_show(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = op_cases.projection(8, kind, np.float32, 3, 12, 96, options="ns")
    op = OPS[case.op_type]
    (whole,) = op.compute(case.inputs, case.attributes)
    monkeypatch.setattr(projection, "BLOCK_ROWS", 5)
    (blocks,) = op.compute(case.inputs, case.attributes)
    assert relative_error(blocks, whole) < 1e-6


@pytest.mark.parametrize(("kind", "attribute"), [("int4", "n"), ("int4", "k"), ("wide", "n"), ("int8", "k")])
def test_a_weight_of_another_shape(kind: str, attribute: str) -> None:
    case = op_cases.projection(9, kind, np.float32, 3, 12, 96)
    with pytest.raises(GraphError, match=r"Orin\w+: expected .*, found \(12, "):
        OPS[case.op_type].compute(case.inputs, case.attributes | {attribute: 64})
