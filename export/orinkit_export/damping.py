# SPDX-License-Identifier: Apache-2.0
"""Gram matrices with a share of their diagonal added, and their inverses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

DAMPING = 0.3
"""Share of each channel's own power that is added to it: what channels have in common in the calibration text, they do
not all have in common elsewhere."""

BLOCK = 128
"""Largest triangular matrix that is inverted in one piece."""


def damped(gram: Float32) -> Float32:
    """A copy of H [K, K] that is positive definite but for channels that have no input."""
    copy = gram.copy()
    copy[np.diag_indices_from(copy)] *= 1 + np.float32(DAMPING)
    return copy


def inverse_factor(damped: Float32) -> Float32:
    """U, upper triangular, with H^-1 = U^T U. Channels that have no input get 1 on the diagonal, and spread nothing."""
    # H = R R^T with R upper triangular is the factorisation of the reversed order, and U is the inverse of R.
    definite = damped[::-1, ::-1].copy()
    definite[np.diag_indices_from(definite)] += np.diag(definite) == 0
    factor = np.ascontiguousarray(np.linalg.cholesky(definite)[::-1, ::-1])
    _invert(factor)
    return factor


def solved(gram: Float32, right: Float32) -> Float32:
    """`right` [N, K] times the inverse of the damped H."""
    factor = inverse_factor(damped(gram))
    return np.asarray((right @ factor.T) @ factor, np.float32)


def _invert(upper: Float32) -> None:
    """Invert an upper triangular matrix in place, half by half: a quarter of the work of a general inverse."""
    half = len(upper) // 2
    if len(upper) <= BLOCK:
        upper[:] = np.linalg.inv(upper)
        return
    _invert(upper[:half, :half])
    _invert(upper[half:, half:])
    upper[:half, half:] = -(upper[:half, :half] @ upper[:half, half:]) @ upper[half:, half:]
