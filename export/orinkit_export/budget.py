# SPDX-License-Identifier: Apache-2.0
"""Formats for many matrices within so many bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orinkit.recipe import Named


@dataclass(frozen=True)
class Option:
    """What a matrix takes and costs in one format."""

    nbytes: int
    cost: float


Options = Mapping[Named, Option]
"""Those of one matrix, from narrow to wide."""


def spend(matrices: Mapping[str, Options], most: int) -> dict[str, Named]:
    """A format for each matrix, together at most `most` bytes, or the narrowest where even those take more.

    Greedy: all begin with their narrowest format; the matrix is widened whose cost falls most for each byte, as long as
    anything fits. That is the best for every number of bytes at which it stops by itself, if costs are convex.
    """
    chosen = {name: next(iter(options)) for name, options in matrices.items()}
    left = most - sum(matrices[name][text].nbytes for name, text in chosen.items())
    while steps := list(_steps(matrices, chosen, left)):
        best = max(steps, key=lambda step: step.gain)
        chosen[best.name], left = best.wider, left - best.nbytes
    return chosen


@dataclass(frozen=True)
class _Step:
    name: str
    wider: Named
    nbytes: int
    """More than now."""
    gain: float
    """What the cost falls by, for each of these bytes."""


def _steps(matrices: Mapping[str, Options], chosen: Mapping[str, Named], left: int) -> Iterator[_Step]:
    """Everything that could be done with the bytes that are left, and pays."""
    for name, options in matrices.items():
        now = options[chosen[name]]
        for wider, option in options.items():
            more, saved = option.nbytes - now.nbytes, now.cost - option.cost
            if 0 < more <= left and saved > 0:
                yield _Step(name, wider, more, saved / more)
