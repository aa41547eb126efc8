# SPDX-License-Identifier: Apache-2.0
"""GPTQ as AutoGPTQ and GPTQModel store it, formats gptq (v1) and gptq_v2, with and without act-order
(ModelCloud/GPTQModel, gptqmodel/nn_modules/qlinear/__init__.py and gptqmodel/utils/model.py).

qweight int32 [K/8, N]     nibble i of word r is input channel 8r + i
qzeros  int32 [K/G, N/8]   nibble i of word c is output channel 8c + i; v1 holds z - 1, v2 holds z
scales        [K/G, N]
g_idx   int32 [K]          group of each input channel; channels lie as in the model

A nibble of 15 in v1 is z = 16, or z = 0 that wrapped around and may have borrowed from its neighbour. Kernels differ in
what they make of it, so it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orinkit_export.checkpoint import Checkpoint
from orinkit_export.imports.module import Format, Module, Stored, UInt8, expect, nibbles, refuse

_LARGEST = 15


def parse(settings: Mapping[str, Any]) -> Format:
    """The format that a quantization_config describes. Raises CheckpointError."""
    named = expect(settings, "checkpoint_format", settings.get("format") or "gptq", "gptq", "gptq_v2")
    expect(settings, "is_marlin_format", False, False)
    expect(settings, "bits", None, 4)
    return Gptq(is_v1=named == "gptq", is_symmetric=settings.get("sym") is True)


@dataclass(frozen=True)
class Gptq:
    """Settings that hold for every module."""

    is_v1: bool
    is_symmetric: bool
    marker: str = "qweight"

    def module(self, checkpoint: Checkpoint, name: str) -> Module:
        stored = Stored(checkpoint, name)
        words, rows = stored.shape("qweight")
        columns, groups = 8 * words, stored.shape("scales")[0]
        group_size = stored.group_size(columns, groups)
        return Module(
            name=name,
            sources=stored.sources("qweight", "qzeros", "scales", optional=("g_idx",)),
            shape=(rows, columns),
            group_size=group_size,
            order=stored.order("g_idx", columns, group_size),
            is_symmetric=self.is_symmetric,
            read_values=lambda: nibbles(stored.integers("qweight", (words, rows)).T),
            read_scales=lambda: stored.scales("scales", (groups, rows)).T,
            read_zeros=lambda: self._zeros(stored, groups, rows),
        )

    def _zeros(self, stored: Stored, groups: int, rows: int) -> UInt8:
        found = nibbles(stored.integers("qzeros", (groups, rows // 8))).T
        if not self.is_v1:
            return found
        if (found == _LARGEST).any():
            refuse(f"{stored.name}.qzeros", "expected zero points of 1 to 15, found a stored 15: 16, or 0 that wrapped")
        return found + 1
