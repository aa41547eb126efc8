# SPDX-License-Identifier: Apache-2.0
"""Group scales and integers of one INT4 matrix.

Scales are signed full range: the element m of largest magnitude of a group maps to -8, so s = m * p / (-8), and the
shrink factor p is the one of least squared error, weighted by diag(H) where the Gram matrix H = X^T X / tokens of the
inputs is known. A scale is rounded to float16 before integers are chosen. Integers are the nearest ones, or GPTQ's
(Frantar et al. 2022): column by column, the error of each is spread over the columns to come.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orinkit import int4

Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]
UInt8 = NDArray[np.uint8]

SHRINK = np.arange(67, 129) / 112
"""Candidates of p, 0.6 to 8/7: p = 1 is plain full range and p = 8/7 is s = absmax/7, so neither is ever better."""

DAMPING = 0.01
"""Share of the mean of diag(H) that GPTQ adds to the diagonal; ten times more after a failed factorisation."""

BLOCK = 128
"""Columns that GPTQ finishes before it updates all that follow."""

_CACHED = 1 << 18
"""Weights searched at a time by one thread: with its temporaries a piece stays in the CPU's cache."""


@dataclass(frozen=True)
class Rounded:
    """Integers 0..15 [N, K] and float16 scales [N, K/G] with zero point 8."""

    values: UInt8
    scales: Float16

    @property
    def packed(self) -> NDArray[np.int8]:
        return int4.pack(self.values)

    def dequantised(self) -> Float32:
        return int4.dequantise(self.packed, self.scales)


def by_rows(rows: int, columns: int, work: Callable[[slice], Float16 | UInt8]) -> NDArray[np.generic]:
    """`work` on blocks of rows, several at a time, put together again."""
    step = max(1, _CACHED // columns)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(work, (slice(start, start + step) for start in range(0, rows, step)))))


def scales_of(weight: Float32, group_size: int, importance: Float32 | None = None) -> Float16:
    """Searched scales [N, K/G] of `weight` [N, K]; `importance` [K] weighs the squared errors of the columns."""
    n, k = weight.shape
    groups = int4.num_groups(k, group_size)

    def search(rows: slice) -> Float16:
        piece = weight[rows]
        tiled = None if importance is None else np.tile(importance.reshape(groups, group_size), (len(piece), 1))
        return search_scales(piece.reshape(-1, group_size), tiled).reshape(-1, groups)

    return by_rows(n, k, search).astype(np.float16, copy=False)


def search_scales(
    groups: Float32, importance: Float32 | None = None, shrink: Sequence[float] | NDArray[np.float64] = SHRINK
) -> Float16:
    """The float16 scale of every row of `groups` [M, G] with the least weighted squared error; 1 for a zero row."""
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)[:, 0].astype(np.float64)
    best = np.full(len(groups), np.inf, np.float32)
    scales = np.ones(len(groups), np.float16)
    error = np.empty_like(groups)
    with np.errstate(over="ignore"):
        candidates = [(extreme * factor / -8).astype(np.float16) for factor in shrink]
    for candidate in candidates:
        usable = (candidate != 0) & np.isfinite(candidate)
        wide = np.where(usable, candidate, np.float16(1)).astype(np.float32)[:, None]
        _rounding_error(groups, wide, error)
        total = np.einsum("mg,mg->m", error, error if importance is None else error * importance)
        better = usable & (total < best)
        best[better], scales[better] = total[better], candidate[better]
    return scales


def _rounding_error(groups: Float32, scales: Float32, out: Float32) -> None:
    np.divide(groups, scales, out=out)
    np.rint(out, out=out)
    np.minimum(out, 7, out=out)
    np.maximum(out, -8, out=out)
    np.multiply(out, scales, out=out)
    np.subtract(out, groups, out=out)


def nearest(weight: Float32, scales: Float16) -> Rounded:
    """The nearest integers."""
    values = by_rows(weight.shape[0], weight.shape[1], lambda rows: int4.quantise(weight[rows], scales[rows]))
    return Rounded(values.astype(np.uint8, copy=False), scales)


def loss(weight: Float32, rounded: Float32, gram: Float32) -> float:
    """Mean squared error of the outputs, tr(D H D^T) with D = rounded - weight: exact, without a forward pass."""
    difference = rounded - weight
    return float(np.einsum("nk,nk->", difference @ gram, difference, dtype=np.float64))


def plain_loss(weight: Float32, group_size: int, gram: Float32) -> float:
    """Share of the outputs' power that the nearest integers lose with s = absmax / 7, the plainest rounding."""
    n, k = weight.shape
    scales = (np.abs(weight).reshape(n, k // group_size, group_size).max(axis=2) / 7).astype(np.float16)
    scales[scales == 0] = 1
    power = loss(weight, np.zeros_like(weight), gram)
    return loss(weight, nearest(weight, scales).dequantised(), gram) / power if power else 0.0


class Rounder:
    """How the rows of one matrix are rounded: searched scales, then the nearest integers or GPTQ's."""

    def __init__(self, group_size: int, gram: Float32 | None = None, spread_errors: bool = False) -> None:
        """`gram` is H [K, K] of the matrix' inputs; `spread_errors` asks for GPTQ and needs it."""
        self._group_size = group_size
        self._gram = gram
        self._order: NDArray[np.intp] | None = None
        self._factor: Float32 | None = None
        if spread_errors and gram is not None:
            self._order = _order(np.diag(gram), group_size)
            self._factor = _inverse_factor(gram[np.ix_(self._order, self._order)])

    def __call__(self, weight: Float32) -> Rounded:
        """Round rows [N, K]."""
        scales = scales_of(weight, self._group_size, None if self._gram is None else np.diag(self._gram).copy())
        plain = nearest(weight, scales)
        if self._gram is None or self._order is None or self._factor is None:
            return plain
        spread = self._spread(weight, scales, self._gram, self._order, self._factor)
        better = loss(weight, spread.dequantised(), self._gram) < loss(weight, plain.dequantised(), self._gram)
        return spread if better else plain

    def _spread(
        self, weight: Float32, scales: Float16, gram: Float32, order: NDArray[np.intp], factor: Float32
    ) -> Rounded:
        """GPTQ with static groups and group-aware order: groups by falling mean of diag(H), columns of a group by
        falling diag(H). The order is undone at the end, so that nothing about it is stored."""
        dead = np.diag(gram)[order] <= 0
        columns = np.where(dead[:, None], np.float32(0), weight.T[order])
        wide = scales.astype(np.float32).T[order // self._group_size]
        values = np.empty(columns.shape, np.uint8)
        parts = np.array_split(np.arange(weight.shape[0]), os.cpu_count() or 1)

        def sweep(rows: NDArray[np.intp]) -> None:
            values[:, rows] = _sweep(columns[:, rows], wide[:, rows], factor)

        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(sweep, parts))
        restored = np.empty_like(values)
        restored[order] = values
        return Rounded(np.ascontiguousarray(restored.T), scales)


def _order(importance: NDArray[np.float32], group_size: int) -> NDArray[np.intp]:
    grouped = importance.reshape(-1, group_size)
    groups = np.argsort(-grouped.mean(axis=1), kind="stable")
    inside = np.argsort(-grouped, axis=1, kind="stable")
    return np.asarray((groups[:, None] * group_size + inside[groups]).ravel(), np.intp)


def _inverse_factor(gram: Float32) -> Float32 | None:
    """U, upper triangular, with H^-1 = U^T U, of the damped H; None when no damping makes it positive definite."""
    diagonal = np.diag(gram)
    for damping in (DAMPING, 10 * DAMPING, 100 * DAMPING):
        damped = gram.astype(np.float64)
        damped[np.diag_indices_from(damped)] += np.where(diagonal <= 0, 1.0, damping * float(diagonal.mean()))
        try:
            # H = L L^T of the reversed order gives the upper factor of the inverse without forming the inverse twice.
            lower = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
            return np.asarray(np.linalg.inv(lower), np.float32)
        except np.linalg.LinAlgError:
            continue
    return None


def _sweep(columns: Float32, scales: Float32, factor: Float32) -> UInt8:
    """Integers [K, n] of `columns` [K, n], the transposed weights, which are used up."""
    count = len(columns)
    values = np.empty(columns.shape, np.uint8)
    for start in range(0, count, BLOCK):
        end = min(start + BLOCK, count)
        errors = np.empty((end - start, columns.shape[1]), np.float32)
        for j in range(start, end):
            rounded = np.clip(np.rint(columns[j] / scales[j]), -8, 7)
            values[j] = rounded + int4.ZERO
            error = (columns[j] - rounded * scales[j]) / factor[j, j]
            columns[j + 1 : end] -= factor[j, j + 1 : end, None] * error
            errors[j - start] = error
        columns[end:] -= factor[start:end, end:].T @ errors
    return values
