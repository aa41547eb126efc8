# SPDX-License-Identifier: Apache-2.0
"""How many rows a key/value cache has."""

from __future__ import annotations

ROUNDING = 64
"""A ring's rows are a multiple of this."""


def ring_rows(window: int, capacity: int, chunk: int) -> int:
    """Rows for sequences of `capacity` tokens and steps of at most `chunk` tokens each.

    A windowed layer (window > 0) keeps a ring of the window and the longest step, rounded up; 0 = every position.
    """
    if not window:
        return capacity
    return min(capacity, -(-(window + chunk) // ROUNDING) * ROUNDING)
