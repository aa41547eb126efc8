# SPDX-License-Identifier: Apache-2.0
"""The body of OrinAttention against its reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import one_node
import op_cases
from op_cases import Case

CASES = [case for case in op_cases.all_cases() if case.op_type == "OrinAttention"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.dtype}-{case.name}")
def test_agrees(case: Case) -> None:
    one_node.assert_agrees(case)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    "options",
    [
        {"tokens": 40, "past": 0},
        {"tokens": 1, "past": 39},
        {"tokens": 12, "past": 20, "rows": 32},
        {"tokens": 7, "past": 90, "rows": 19, "window": 12},
        {"tokens": 1, "past": 38, "rows": 19, "window": 12},
        {"tokens": 5, "past": 3, "window": 30},
        {"tokens": 4, "past": 2, "window": 1},
        {"tokens": 3, "past": 4, "gate": 1, "heads": 2, "kv_heads": 2, "softcap": 1.5},
    ],
    ids=lambda options: ",".join(f"{key}={value}" for key, value in options.items()),
)
def test_edges(options: dict[str, Any], dtype: Any) -> None:
    """A cache that becomes full, the last row, rings at their seam, windows wider than the sequence and of one."""
    one_node.assert_agrees(op_cases.attention(21, dtype=dtype, **options))
