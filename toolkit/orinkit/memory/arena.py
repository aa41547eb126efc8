# SPDX-License-Identifier: Apache-2.0
"""How device memory is laid out: the arena that all contexts of an engine share, and the slabs of what stays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ALIGNMENT = 256
"""Bytes that places in device memory are multiples of."""

SLAB = 256 << 20
"""Most bytes of one allocation for weights and caches, unless a single piece is larger: some boards refuse single
allocations of a gigabyte."""


@dataclass(frozen=True)
class Value:
    """The output of one op and the values that the op reads."""

    name: str
    nbytes: int
    reads: tuple[str, ...]


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def slabs(sizes: Iterable[int]) -> list[int]:
    """Bytes of each slab for pieces of these sizes, one after the other: nothing is left over but for alignment."""
    found: list[int] = []
    for size in map(aligned, sizes):
        if found and found[-1] + size <= SLAB:
            found[-1] += size
        else:
            found.append(size)
    return found


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
