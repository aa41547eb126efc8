# SPDX-License-Identifier: Apache-2.0
"""Where the values between ops lie in the one arena that all contexts of an engine share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 256
"""Bytes that places in device memory are multiples of."""


@dataclass(frozen=True)
class Value:
    """The output of one op and the values that the op reads."""

    name: str
    nbytes: int
    reads: tuple[str, ...]


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def place(values: Sequence[Value]) -> tuple[dict[str, int], int]:
    """Offsets of all values but the last, which is the model's output, and the end of the arena in bytes.

    Values come in the order of their ops. A place is used again once its last reader has run: the smallest free one
    that suffices, else a new one at the end.
    """
    last = {name: index for index, value in enumerate(values) for name in value.reads}
    places: dict[str, tuple[int, int]] = {}
    free: list[tuple[int, int]] = []
    end = 0
    for index, value in enumerate(values[:-1]):
        size = aligned(value.nbytes)
        found = min((room for room in free if room[1] >= size), key=lambda room: room[1], default=None)
        if found is None:
            found = end, size
            end += size
        else:
            free.remove(found)
        places[value.name] = found
        dead = (name for name in dict.fromkeys(value.reads) if last[name] == index)
        free += [places[name] for name in dead if name in places]
    return {name: offset for name, (offset, _) in places.items()}, end
