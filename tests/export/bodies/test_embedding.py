# SPDX-License-Identifier: Apache-2.0
"""The body of OrinEmbedding against its reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import one_node
import op_cases
from op_cases import Case
from orinkit.ops import OPS

CASES = [case for case in op_cases.all_cases() if case.op_type == "OrinEmbedding"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.dtype}-{case.name}")
def test_agrees(case: Case) -> None:
    one_node.assert_agrees(case)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("kind", ["wide", "int8", "int4"])
def test_dequantised_rows_are_exact(kind: str, dtype: Any) -> None:
    """One product, rounded once: the same bits; and zeros for ids at the ends of int32."""
    limits = np.iinfo(np.int32)
    case = op_cases.embedding(2, kind, dtype)
    ids = np.array([49, limits.min, limits.max, 0], np.int32)
    case = replace(case, inputs=(ids, *case.inputs[1:]))
    (found,) = one_node.run(case)
    (expected,) = OPS[case.op_type].compute(case.inputs, case.attributes)
    assert np.array_equal(found, expected)
    assert not found[1:3].any()
