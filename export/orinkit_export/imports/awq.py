# SPDX-License-Identifier: Apache-2.0
"""AutoAWQ, versions gemm and gemv (casper-hansen/AutoAWQ, awq/modules/linear/gemm.py and gemv.py).

gemm   qweight int32 [K, N/8]     nibble i of word c is output channel 8c + (0, 2, 4, 6, 1, 3, 5, 7)[i]
       qzeros  int32 [K/G, N/8]   the same
       scales        [K/G, N]
gemv   qweight int32 [N, K/8]     nibble i of word c is input channel 8c + i
       qzeros  int32 [N, w]       nibble i of word c is group 8c + i; the last words are filled up with zeros
       scales        [N, 8w]      filled up in the same way
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from orinkit.int4 import GROUP_SIZES
from orinkit_export.checkpoint import Checkpoint
from orinkit_export.imports.module import Format, Module, Stored, UInt8, expect, nibbles, refuse

_NIBBLE_OF_CHANNEL = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])


def parse(settings: Mapping[str, Any]) -> Format:
    """The format that a quantization_config describes. Raises CheckpointError."""
    named = settings.get("version") or settings.get("format") or "gemm"
    if settings.get("backend") == "llm-awq":  # other layouts under the same names
        named = "llm-awq"
    version = expect({"version": str(named).lower()}, "version", None, "gemm", "gemv")
    expect(settings, "bits", None, 4)
    is_symmetric = settings.get("zero_point") is False
    if version == "gemm":
        return Gemm(is_symmetric)
    return Gemv(is_symmetric, expect(settings, "group_size", None, *GROUP_SIZES))


@dataclass(frozen=True)
class Gemm:
    """Settings that hold for every module."""

    is_symmetric: bool
    marker: str = "qweight"

    def module(self, checkpoint: Checkpoint, name: str) -> Module:
        stored = Stored(checkpoint, name)
        columns, words = stored.shape("qweight")
        groups, rows = stored.shape("scales")[0], 8 * words
        return Module(
            name=name,
            sources=stored.sources("qweight", "qzeros", "scales"),
            shape=(rows, columns),
            group_size=stored.group_size(columns, groups),
            order=None,
            is_symmetric=self.is_symmetric,
            read_values=lambda: _by_row(nibbles(stored.integers("qweight", (columns, words)))),
            read_scales=lambda: stored.scales("scales", (groups, rows)).T,
            read_zeros=lambda: _by_row(nibbles(stored.integers("qzeros", (groups, words)))),
        )


@dataclass(frozen=True)
class Gemv:
    """Settings that hold for every module."""

    is_symmetric: bool
    group_size: int
    """The shapes do not tell it."""
    marker: str = "qweight"

    def module(self, checkpoint: Checkpoint, name: str) -> Module:
        stored = Stored(checkpoint, name)
        rows, words = stored.shape("qweight")
        columns, width = 8 * words, stored.shape("qzeros")[1]
        groups = columns // self.group_size
        if columns % self.group_size or groups > 8 * width:
            refuse(name, f"expected groups of {self.group_size} weights, found rows of {columns} and {width} words")
        return Module(
            name=name,
            sources=stored.sources("qweight", "qzeros", "scales"),
            shape=(rows, columns),
            group_size=self.group_size,
            order=None,
            is_symmetric=self.is_symmetric,
            read_values=lambda: nibbles(stored.integers("qweight", (rows, words))),
            read_scales=lambda: stored.scales("scales", (rows, 8 * width))[:, :groups],
            read_zeros=lambda: nibbles(stored.integers("qzeros", (rows, width)))[:, :groups],
        )


def _by_row(values: UInt8) -> UInt8:
    """Nibbles [M, N] in the order of the words as [N, M] in the order of the channels."""
    return values.reshape(len(values), -1, 8)[:, :, _NIBBLE_OF_CHANNEL].reshape(values.shape).T
