# SPDX-License-Identifier: Apache-2.0
"""The integers of one INT4 matrix.

They are those of the nearest levels (levels.py), or GPTQ's (Frantar et al. 2022): column by column, the error of each
is spread over the columns to come. Behind GPTQ, coordinate descent lowers the loss further: integer by integer and
scale by scale, each the best while all others stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orinkit import int4
from orinkit_export.damping import damped, inverse_factor
from orinkit_export.levels import Levels, by_rows, cached_rows, levels_of, narrow

Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]
UInt8 = NDArray[np.uint8]

DESCENTS = 3
"""Sweeps of coordinate descent behind GPTQ."""

ROWS = 512
"""Rows that one thread has in hand."""


@dataclass(frozen=True)
class Rounded:
    """Integers 0..15 [N, K] with the levels of their groups."""

    values: UInt8
    levels: Levels

    @property
    def scales(self) -> Float16:
        return self.levels.scales

    @property
    def packed(self) -> NDArray[np.int8]:
        return int4.pack(self.values)

    @property
    def zeros(self) -> NDArray[np.int8] | None:
        """Packed; None = 8 everywhere."""
        return None if self.levels.zeros is None else int4.pack(self.levels.zeros)

    @property
    def beside(self) -> tuple[NDArray[np.generic], ...]:
        """What is stored beside the integers."""
        return (self.scales,) if self.zeros is None else (self.scales, self.zeros)

    def dequantised(self) -> Float32:
        return int4.dequantise(self.packed, self.scales, self.zeros)

    def with_scales(self, change: Callable[[Float32], Float32]) -> Rounded:
        """The same integers with other scales [N, K/G]."""
        return Rounded(self.values, self.levels._replace(scales=narrow(change(self.scales.astype(np.float32)))))


def nearest(weight: Float32, levels: Levels) -> Rounded:
    """The nearest integers."""
    values = np.empty(weight.shape, np.uint8)

    def work(rows: slice) -> None:
        values[rows] = int4.quantise(weight[rows], *levels.of_rows(rows))

    by_rows(len(weight), cached_rows(weight.shape[1]), work)
    return Rounded(values, levels)


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
    return loss(weight, nearest(weight, Levels(scales)).dequantised(), gram) / power if power else 0.0


class Rounder:
    """How the rows of one matrix are rounded: searched levels, then the nearest integers or GPTQ's."""

    def __init__(
        self, group_size: int, gram: Float32 | None = None, spread_errors: bool = False, has_zeros: bool = False
    ) -> None:
        """`gram` is H [K, K] of the matrix' inputs; `spread_errors` asks for GPTQ and needs it."""
        self._group_size, self._has_zeros = group_size, has_zeros
        self._importance = None if gram is None else np.diag(gram).copy()
        self._spread = _Spread.of(gram, group_size) if spread_errors and gram is not None else None

    def __call__(self, weight: Float32) -> Rounded:
        """Round rows [N, K]."""
        levels = levels_of(weight, self._group_size, self._importance, self._has_zeros)
        return nearest(weight, levels) if self._spread is None else self._spread(weight, levels)


@dataclass(frozen=True)
class _Spread:
    """GPTQ with static groups and group-aware order: groups by falling mean of diag(H), columns of a group by falling
    diag(H). The order is undone at the end, so that nothing about it is stored."""

    order: NDArray[np.intp]
    gram: Float32
    """The damped H in that order."""
    factor: Float32
    group_size: int

    @classmethod
    def of(cls, gram: Float32, group_size: int) -> _Spread:
        order = _order(np.diag(gram), group_size)
        ordered = damped(gram[np.ix_(order, order)])
        return cls(order, ordered, inverse_factor(ordered), group_size)

    def __call__(self, weight: Float32, levels: Levels) -> Rounded:
        values, scales = np.empty(weight.shape, np.uint8), np.empty_like(levels.scales)

        def work(rows: slice) -> None:
            values[rows], scales[rows] = self._rows(weight[rows], levels.of_rows(rows))

        by_rows(len(weight), ROWS, work)
        return Rounded(values, Levels(scales, levels.zeros))

    def _rows(self, weight: Float32, levels: Levels) -> tuple[UInt8, Float16]:
        """Transposed and in order, so that a column of the matrix is a row in memory. The nearest integers stay in the
        rows in which GPTQ is no better."""
        groups = self.order[:: self.group_size] // self.group_size
        columns, first = weight.T[self.order], levels.scales.T[groups].astype(np.float32)
        lowest = levels.lowest.T[groups]
        plain = _rounded(columns, self._wide(first), self._wide(lowest))
        values, best = _sweep(columns.copy(), first, lowest, self.factor), first.copy()
        _descend(columns, values, best, lowest, self.gram)
        quiet = np.diag(self.gram) == 0  # no loss tells how to round what the text never used
        values[quiet] = _rounded(columns[quiet], self._wide(best)[quiet], self._wide(lowest)[quiet])
        worse = self._losses(columns, values, best) > self._losses(columns, plain, first)
        restored, found = np.empty(values.shape, np.uint8), np.empty(first.shape, np.float16)
        restored[self.order] = np.where(worse, plain, values) - self._wide(lowest)
        found[groups] = np.where(worse, first, best)
        return restored.T, found.T

    def _wide(self, groups: Float32) -> Float32:
        return np.repeat(groups, self.group_size, axis=0)

    def _losses(self, columns: Float32, values: Float32, scales: Float32) -> NDArray[np.float32]:
        difference = values * self._wide(scales) - columns
        return np.asarray(np.einsum("kn,kn->n", self.gram @ difference, difference))


def _order(importance: NDArray[np.float32], group_size: int) -> NDArray[np.intp]:
    grouped = importance.reshape(-1, group_size)
    groups = np.argsort(-grouped.mean(axis=1), kind="stable")
    inside = np.argsort(-grouped, axis=1, kind="stable")
    return np.asarray((groups[:, None] * group_size + inside[groups]).ravel(), np.intp)


def _rounded(columns: Float32, scales: Float32, lowest: Float32) -> Float32:
    """The nearest of the integers q - zero, which are 16 from `lowest` on."""
    return np.asarray(np.clip(np.rint(columns / scales), lowest, lowest + 15), np.float32)


def _sweep(columns: Float32, scales: Float32, lowest: Float32, factor: Float32) -> Float32:
    """GPTQ's integers q - zero [K, n] of `columns` [K, n], which are used up, with `scales` and `lowest` [K/G, n]."""
    group_size = len(columns) // len(scales)
    values = np.empty_like(columns)
    for start in range(0, len(columns), group_size):
        end, scale, least = start + group_size, scales[start // group_size], lowest[start // group_size]
        errors = np.empty((group_size, columns.shape[1]), np.float32)
        for j in range(start, end):
            values[j] = _rounded(columns[j], scale, least)
            errors[j - start] = (columns[j] - values[j] * scale) / factor[j, j]
            columns[j + 1 : end] -= factor[j, j + 1 : end, None] * errors[j - start]
        columns[end:] -= factor[start:end, end:].T @ errors
    return values


def _descend(columns: Float32, values: Float32, scales: Float32, lowest: Float32, gram: Float32) -> None:
    """Coordinate descent on the loss of `columns` [K, n], in place: GPTQ chose early columns without a view to the
    integers of later ones, and all with scales that were made for the nearest integers."""
    group_size = len(columns) // len(scales)
    slope = gram @ (values * np.repeat(scales, group_size, axis=0) - columns)
    for start in [*range(0, len(columns), group_size)] * DESCENTS:
        inside = slice(start, start + group_size)
        block, group = gram[inside, inside], start // group_size
        before = values[inside] * scales[group]
        _descend_integers(values[inside], scales[group], lowest[group], block, slope[inside].copy())
        scales[group] = _best_scale(values[inside], scales[group], before, block, slope[inside])
        slope += gram[:, inside] @ (values[inside] * scales[group] - before)


def _descend_integers(values: Float32, scale: Float32, lowest: Float32, block: Float32, slope: Float32) -> None:
    """Each integer of a group in turn becomes the best one while all others stay."""
    for j in np.flatnonzero(np.diag(block) > 0):
        best = np.clip(np.rint(values[j] - slope[j] / (block[j, j] * scale)), lowest, lowest + 15)
        slope[j + 1 :] += block[j, j + 1 :, None] * ((best - values[j]) * scale)
        values[j] = best


def _best_scale(values: Float32, scale: Float32, before: Float32, block: Float32, slope: Float32) -> Float32:
    """The scale [n] of a group that its integers would have, in float16; `slope` belongs to the products `before`."""
    turned = block @ values
    curvature = np.einsum("gn,gn->n", turned, values)
    gradient = np.einsum("gn,gn->n", values, slope) + np.einsum("gn,gn->n", turned, values * scale - before)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        best = (scale - gradient / curvature).astype(np.float16).astype(np.float32)
    return np.where(np.isfinite(best) & (best != 0) & (curvature > 0), best, scale)
