# SPDX-License-Identifier: Apache-2.0
"""Row scales and integers of one INT8 matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orinkit.errors import ConfigError
from orinkit_export.levels import narrow

Float32 = NDArray[np.float32]
Float16 = NDArray[np.float16]

BLOCK = 32
"""Columns come in multiples of this (the blocks of ONNX Runtime's 8-bit product)."""


@dataclass(frozen=True)
class Rounded:
    """Integers [N, K] and float16 scales [N]."""

    packed: NDArray[np.int8]
    scales: Float16

    @property
    def beside(self) -> tuple[NDArray[np.generic], ...]:
        """What is stored beside the integers."""
        return (self.scales,)

    def dequantised(self) -> Float32:
        return np.asarray(self.packed * self.scales.astype(np.float32)[:, None], np.float32)

    def with_scales(self, change: Callable[[Float32], Float32]) -> Rounded:
        """The same integers with other scales [N]."""
        return Rounded(self.packed, narrow(change(self.scales.astype(np.float32))))


def nearest(weight: Float32) -> Rounded:
    """The nearest integers with s = absmax / 127 of each row, 1 for a zero row. Raises ConfigError."""
    check_columns(weight.shape[1])
    scale = (np.abs(weight).max(axis=1) / 127).astype(np.float16)
    scale[scale == 0] = 1
    values = np.clip(np.rint(weight / scale.astype(np.float32)[:, None]), -128, 127).astype(np.int8)
    return Rounded(values, scale)


def check_columns(columns: int) -> None:
    """Refuse rows that ONNX Runtime's 8-bit product does not take. Raises ConfigError."""
    if columns % BLOCK:
        raise ConfigError(f"expected rows of a multiple of {BLOCK} weights for int8, found {columns}; use float16")
