# SPDX-License-Identifier: Apache-2.0
"""The bodies of OrinInt4Gemm and OrinLinear against their references."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import one_node
import op_cases
from op_cases import Case
from orinkit.ops import OPS

CASES = [case for case in op_cases.all_cases() if case.op_type in ("OrinInt4Gemm", "OrinLinear")]
KINDS = pytest.mark.parametrize("kind", ["int4", "wide", "int8"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.dtype}-{case.name}")
def test_agrees(case: Case) -> None:
    one_node.assert_agrees(case)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@KINDS
def test_all_options_at_once(kind: str, dtype: Any) -> None:
    one_node.assert_agrees(op_cases.projection(11, kind, dtype, options="nbrsp"))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_all_options_and_columns(dtype: Any) -> None:
    one_node.assert_agrees(op_cases.projection(15, "int4", dtype, options="znbrspc"))


@KINDS
@pytest.mark.parametrize("tokens", [1, 4, 40])
def test_activations_stay_in_float32(kind: str, tokens: int) -> None:
    """One outlier would ruin a row whose activations are quantised to int8, as accuracy_level 4 does silently."""
    case = op_cases.projection(12, kind, np.float32, tokens, n=64, k=256)
    x = case.inputs[0]
    assert x is not None
    x[:, 7] = 100
    one_node.assert_agrees(case)


@pytest.mark.parametrize("rows", [[-1], [2, -1, 0, -1], [4, 4, 4]])
@KINDS
def test_skipped_and_repeated_rows(kind: str, rows: list[int]) -> None:
    """What is computed for -1 is nobody's business but finite."""
    case = op_cases.projection(13, kind, np.float32, options="np")
    given = np.array(rows, np.int32)
    case = replace(case, inputs=(*case.inputs[:-1], given))
    (found,) = one_node.run(case)
    (expected,) = OPS[case.op_type].compute(case.inputs, case.attributes)
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    assert np.abs(found - expected)[given >= 0].max(initial=0) < 1e-4


@KINDS
def test_no_rows(kind: str) -> None:
    case = op_cases.projection(14, kind, np.float16, options="np", float32_output=1)
    (found,) = one_node.run(replace(case, inputs=(*case.inputs[:-1], np.empty(0, np.int32))))
    assert (found.shape, found.dtype.name) == ((0, 66), "float32")
