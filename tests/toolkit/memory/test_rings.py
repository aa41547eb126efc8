# SPDX-License-Identifier: Apache-2.0
"""Rows of a cache."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orinkit.memory.rings import ROUNDING, ring_rows

sizes = st.integers(1, 10_000)


def test_a_full_layer_has_a_row_for_every_position() -> None:
    assert ring_rows(0, 8192, 512) == 8192


@given(sizes, sizes, sizes)
def test_a_ring_holds_the_window_and_a_step(window: int, capacity: int, chunk: int) -> None:
    rows = ring_rows(window, capacity, chunk)
    assert rows <= capacity
    assert rows == capacity or rows >= window + chunk - 1
    assert rows == capacity or (rows % ROUNDING == 0 and rows < window + chunk + ROUNDING)
