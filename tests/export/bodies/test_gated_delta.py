# SPDX-License-Identifier: Apache-2.0
"""The body of OrinGatedDelta against its reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import one_node
import op_cases
from op_cases import Case

CASES = [case for case in op_cases.all_cases() if case.op_type == "OrinGatedDelta"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.dtype}-{case.name}")
def test_agrees(case: Case) -> None:
    one_node.assert_agrees(case)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (1, 1), (2, 0), (3, 2), (64, 0), (65, 64), (130, 1)])
@pytest.mark.parametrize(("key_heads", "value_heads"), [(2, 2), (1, 3)])
def test_edges(tokens: int, past: int, key_heads: int, value_heads: int, dtype: Any) -> None:
    """Steps shorter than the convolution, and around the 64 tokens that kernels take as a chunk."""
    one_node.assert_agrees(op_cases.gated_delta(22, tokens, past, dtype, key_heads, value_heads))
