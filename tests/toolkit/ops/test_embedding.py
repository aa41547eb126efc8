# SPDX-License-Identifier: Apache-2.0
"""OrinEmbedding element by element."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orinkit.ops import OPS

OP = OPS["OrinEmbedding"]
VOCAB, HIDDEN, GROUP = 11, 64, 32
LIMITS = np.iinfo(np.int32)
IDS = np.array([3, 0, VOCAB - 1, 3, -1, VOCAB, LIMITS.min, LIMITS.max], np.int32)


def stored(kind: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    rng = np.random.default_rng(0)
    if kind == "int8":
        return rng.integers(-128, 128, (VOCAB, HIDDEN)).astype(np.int8), rng.standard_normal(VOCAB).astype(np.float16)
    if kind == "int4":
        table = rng.integers(-128, 128, (VOCAB, HIDDEN // 2)).astype(np.int8)
        return table, rng.standard_normal((VOCAB, HIDDEN // GROUP)).astype(np.float16)
    return rng.standard_normal((VOCAB, HIDDEN)).astype(kind), None


def element(table: NDArray[Any], scale: NDArray[Any] | None, row: int, column: int) -> float:
    if scale is None:
        return float(table[row, column])
    if scale.ndim == 1:
        return int(table[row, column]) * float(scale[row])
    nibble = (int(table[row, column // 2]) % 256) >> (4 * (column % 2)) & 15
    return (nibble - 8) * float(scale[row, column // GROUP])


@pytest.mark.parametrize("kind", ["float16", "float32", "int8", "int4"])
@pytest.mark.parametrize("float32_output", [0, 1])
def test_rows_by_id(kind: str, float32_output: int) -> None:
    """An id that is not in the table gives zeros, whatever it is."""
    table, scale = stored(kind)
    attributes = {"hidden": HIDDEN, "group_size": GROUP if kind == "int4" else 0, "float32_output": float32_output}
    (y,) = OP.compute((IDS, table, scale), attributes)
    dtype = np.float32 if float32_output else np.float16
    assert y.dtype == dtype
    assert y.shape == (len(IDS), HIDDEN)
    for token, row in zip(IDS, y, strict=True):
        is_known = 0 <= token < VOCAB
        expected = [element(table, scale, token, column) if is_known else 0.0 for column in range(HIDDEN)]
        assert np.array_equal(row, np.array(expected, np.float32).astype(dtype))


def test_unknown_ids_read_nothing() -> None:
    table = np.full((VOCAB, HIDDEN), np.nan, np.float32)
    (y,) = OP.compute(
        (np.array([-1, VOCAB], np.int32), table), {"hidden": HIDDEN, "group_size": 0, "float32_output": 1}
    )
    assert not y.any()


def test_no_tokens() -> None:
    table, scale = stored("int4")
    (y,) = OP.compute((IDS[:0], table, scale), {"hidden": HIDDEN, "group_size": GROUP, "float32_output": 0})
    assert y.shape == (0, HIDDEN)
