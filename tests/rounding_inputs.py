# SPDX-License-Identifier: Apache-2.0
"""Matrices and inputs for tests of rounding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def gauss(*shape: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def correlated(tokens: int, k: int, seed: int = 0) -> Float32:
    """Inputs whose channels depend on each other and differ in size, as activations do."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, k)) @ (np.eye(k) + 0.3 * rng.standard_normal((k, k)) / np.sqrt(k) * 3)
    return np.asarray(mixed * np.exp(rng.standard_normal(k)), np.float32)


def gram_of(x: Float32) -> Float32:
    return np.asarray(x.T @ x / len(x), np.float32)
