# SPDX-License-Identifier: Apache-2.0
"""The search for fold vectors: activation-aware scales (AWQ, Lin et al. 2023) judged by the Gram matrix.

A candidate a is judged by tr(D H D^T) with D = Q(W diag(a)) diag(a)^-1 - W, summed over the matrices that share the
input: the exact output error, without a forward pass. Q searches its levels with the weights that the final rounding
has, the power of each scaled channel. Levels that know the inputs gain some of what scaling would; judged without,
vectors were chosen that took it away again. The identity is always a candidate, so smoothing does not lose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orinkit.memory.formats import Format
from orinkit_export.folds import Fold
from orinkit_export.levels import levels_of
from orinkit_export.rounding import loss, nearest

Float32 = NDArray[np.float32]
Stored = tuple[Float32, Format]
"""A matrix [N, K] and how it will be stored."""

ALPHAS = np.arange(1, 21) / 20
"""Exponents of the plain candidates mean|x|^alpha; those of the two-sided ones are every second."""

MAX_ROWS = 1024
"""Rows of a matrix that the search looks at: all rows share `a`, and a sample of them ranks the candidates as well."""

SHRINK = (0.70, 0.80, 0.90, 1.0)
"""Shrink factors tried inside the search; the final rounding tries many more."""

LEAST_GAIN = 1e-3
"""The identity is kept unless the loss falls by more than this share."""

LIMIT = 1e4
"""Elements of `a` stay within 1/LIMIT .. LIMIT."""


@dataclass(frozen=True)
class Smoothing:
    """The vector that was chosen for one fold."""

    a: Float32
    kind: str
    """identity, plain or duo."""
    alpha: float
    ratio: float
    """Loss with `a` over loss with the identity."""

    @property
    def spread(self) -> float:
        """Largest element over smallest."""
        return float(self.a.max() / self.a.min())


def search(fold: Fold, matrices: Sequence[Stored], mean_abs: Float32, gram: Float32) -> Smoothing:
    """The best vector for the quantised `matrices` that read the fold's channels; mean_abs [K], gram [K, K]."""
    sampled = [(matrix[sample_rows(len(matrix))], chosen) for matrix, chosen in matrices]
    best = Smoothing(np.ones(fold.width, np.float32), "identity", 0.0, 1.0)
    base = least = sum(_loss(matrix, chosen, gram, None) for matrix, chosen in sampled)
    for kind, alpha, candidate in _candidates(fold, sampled, mean_abs):
        a = _normalised(candidate)
        found = sum(_loss(matrix, chosen, gram, a[fold.share]) for matrix, chosen in sampled)
        if found < least:
            least = found
            best = Smoothing(a, kind, alpha, found / base)
    return best if best.ratio < 1 - LEAST_GAIN else Smoothing(np.ones(fold.width, np.float32), "identity", 0.0, 1.0)


def sample_rows(count: int) -> NDArray[np.intp]:
    """At most MAX_ROWS of `count` rows, spread evenly in pairs: gate and up rows alternate, both must be seen."""
    if count <= MAX_ROWS:
        return np.arange(count)
    pairs = np.linspace(0, count // 2 - 1, MAX_ROWS // 2).astype(np.intp)
    return np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel()


def _loss(matrix: Float32, chosen: Format, gram: Float32, a: Float32 | None) -> float:
    scaled = matrix if a is None else matrix * a
    power = np.diag(gram) if a is None else np.diag(gram) / (a * a)
    levels = levels_of(scaled, chosen.group_size, power, chosen.has_zeros, SHRINK)
    rounded = nearest(scaled, levels).dequantised()
    return loss(matrix, rounded if a is None else rounded / a, gram)


def _candidates(fold: Fold, matrices: Sequence[Stored], mean_abs: Float32) -> Iterator[tuple[str, float, Float32]]:
    x = fold.gather(mean_abs)
    w = fold.gather(_relative_magnitude(matrices))
    for alpha in ALPHAS:
        yield "plain", float(alpha), x**alpha
    for alpha in ALPHAS[::2]:
        yield "duo", float(alpha), x**alpha / (w ** (1 - alpha) + 1e-4)


def _relative_magnitude(matrices: Sequence[Stored]) -> Float32:
    """Mean over rows of |w| / (absmax of its group) [K]."""
    total, rows = np.zeros(matrices[0][0].shape[1], np.float64), 0
    for matrix, chosen in matrices:
        grouped = np.abs(matrix).reshape(len(matrix), -1, chosen.group_size)
        relative = grouped / (grouped.max(axis=2, keepdims=True) + 1e-6)
        total += relative.reshape(len(matrix), -1).sum(axis=0)
        rows += len(matrix)
    return (total / rows).astype(np.float32)


def _normalised(a: Float32) -> Float32:
    """Finite, at least 1e-4, divided by sqrt(max min)."""
    clean = np.where(np.isfinite(a), np.maximum(a, 1e-4), 1.0)
    return np.asarray(np.clip(clean / np.sqrt(clean.max() * clean.min()), 1 / LIMIT, LIMIT), np.float32)
