# SPDX-License-Identifier: Apache-2.0
"""The 16 levels of every group of an INT4 matrix, (q - zero) * scale, searched for the least squared error.

Without zero points scales are signed full range: the element m of largest magnitude of a group maps to -8, so
s = m * p / (-8). With them the levels span the group and 0: s = (max - min) * p / 15, and the zero point is the integer
that centres them. The shrink factor p is the one of least error, weighted by diag(H) where the Gram matrix
H = X^T X / tokens of the inputs is known. A scale is rounded to float16 before anything else is chosen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orinkit import int4
from orinkit.errors import ConfigError

Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]
UInt8 = NDArray[np.uint8]
Shrink = Sequence[float] | NDArray[np.float64]

SHRINK = np.arange(67, 129) / 112
"""Candidates of p, 0.6 to 8/7: p = 1 is plain full range and p = 8/7 is s = absmax/7, so neither is ever better."""

_THREADS = len(os.sched_getaffinity(0))

_CACHED = 1 << 18
"""Weights searched at a time by one thread."""


class Levels(NamedTuple):
    """Of every group: scales [N, K/G] or [M], and zero points 0..15 of that shape; None = 8 everywhere."""

    scales: Float16
    zeros: UInt8 | None = None

    @property
    def lowest(self) -> Float32:
        """The least of q - zero, in the shape of the scales; the largest is 15 more."""
        zeros = np.float32(int4.ZERO) if self.zeros is None else self.zeros.astype(np.float32)
        return np.asarray(np.broadcast_to(-zeros, self.scales.shape), np.float32)

    def of_rows(self, rows: slice) -> Levels:
        return Levels(self.scales[rows], None if self.zeros is None else self.zeros[rows])

    def in_rows(self, count: int) -> Levels:
        """Those of a matrix of `count` rows, whose groups come one after the other."""
        return Levels(self.scales.reshape(count, -1), None if self.zeros is None else self.zeros.reshape(count, -1))


def narrow(scales: Float32) -> Float16:
    """Scales in float16, none of them 0 that was not. Raises ConfigError."""
    with np.errstate(over="ignore"):
        found = scales.astype(np.float16)
    if not np.isfinite(found).all():
        raise ConfigError(
            f"expected scales up to {np.finfo(np.float16).max:.6g}, found {np.abs(scales).max():.6g}; choose a wider "
            "format, or check the checkpoint"
        )
    vanished = (found == 0) & (scales != 0)
    found[vanished] = np.copysign(np.finfo(np.float16).smallest_subnormal, scales[vanished])
    return found


def by_rows(rows: int, size: int, work: Callable[[slice], None]) -> None:
    """`work` on blocks of `size` rows, several at a time; a single one needs no thread."""
    blocks = [slice(start, start + size) for start in range(0, rows, size)]
    if len(blocks) == 1:
        work(blocks[0])
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(work, blocks))


def cached_rows(columns: int) -> int:
    """Rows of a matrix of so many columns that stay in the CPU's cache together with a search's temporaries."""
    return max(1, _CACHED // columns)


def levels_of(
    weight: Float32,
    group_size: int,
    importance: Float32 | None = None,
    has_zeros: bool = False,
    shrink: Shrink = SHRINK,
) -> Levels:
    """Searched levels of `weight` [N, K]; `importance` [K] weighs the squared errors of the columns."""
    n, k = weight.shape
    groups = int4.num_groups(k, group_size)
    scales, zeros = np.empty((n, groups), np.float16), np.empty((n, groups), np.uint8)

    def work(rows: slice) -> None:
        piece = weight[rows]
        tiled = None if importance is None else np.tile(importance.reshape(groups, group_size), (len(piece), 1))
        found = search(piece.reshape(-1, group_size), tiled, shrink, has_zeros).in_rows(len(piece))
        scales[rows] = found.scales
        if found.zeros is not None:
            zeros[rows] = found.zeros

    by_rows(n, cached_rows(k), work)
    return Levels(scales, zeros if has_zeros else None)


def search(
    groups: Float32,
    importance: Float32 | None = None,
    shrink: Shrink = SHRINK,
    has_zeros: bool = False,
) -> Levels:
    """The levels of every row of `groups` [M, G] with the least weighted squared error; a row of zeros has scale 1."""
    best = np.full(len(groups), np.inf, np.float32)
    scales, zeros = np.ones(len(groups), np.float16), np.full(len(groups), int4.ZERO, np.uint8)
    error = np.empty_like(groups)
    for candidate in _centred(groups, shrink) if has_zeros else _signed(groups, shrink):
        usable = (candidate.scales != 0) & np.isfinite(candidate.scales)
        wide = np.where(usable, candidate.scales, np.float16(1)).astype(np.float32)[:, None]
        _rounding_error(groups, wide, candidate.lowest[:, None], error)
        total = np.einsum("mg,mg->m", error, error if importance is None else error * importance)
        better = usable & (total < best)
        best[better], scales[better] = total[better], candidate.scales[better]
        if candidate.zeros is not None:
            zeros[better] = candidate.zeros[better]
    return Levels(scales, zeros if has_zeros else None)


def _signed(groups: Float32, shrink: Shrink) -> Iterator[Levels]:
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)[:, 0].astype(np.float64)
    for factor in shrink:
        with np.errstate(over="ignore"):
            scales = (extreme * factor / -8).astype(np.float16)
        yield Levels(scales)


def _centred(groups: Float32, shrink: Shrink) -> Iterator[Levels]:
    least, most = (
        np.asarray(edge, np.float64) for edge in (groups.min(axis=1, initial=0), groups.max(axis=1, initial=0))
    )
    for factor in shrink:
        with np.errstate(over="ignore"):
            scales = ((most - least) * factor / 15).astype(np.float16)
        middle = (most + least) / 2 / np.where(scales != 0, scales, np.float16(1)).astype(np.float64)
        yield Levels(scales, np.clip(np.rint(7.5 - middle), 0, 15).astype(np.uint8))


def _rounding_error(groups: Float32, scales: Float32, lowest: Float32, out: Float32) -> None:
    np.divide(groups, scales, out=out)
    np.rint(out, out=out)
    np.minimum(out, lowest + 15, out=out)
    np.maximum(out, lowest, out=out)
    np.multiply(out, scales, out=out)
    np.subtract(out, groups, out=out)
