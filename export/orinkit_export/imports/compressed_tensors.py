# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors, format pack-quantized (vllm-project/compressed-tensors,
src/compressed_tensors/compressors/pack_quantized and quantization/lifecycle/forward_helpers.py).

weight_packed     int32 [N, K/8]           nibble i of word c is column 8c + i, plus 8
weight_zero_point int32 [ceil(N/8), K/G]   nibble i of word r is row 8r + i, plus 8; absent where symmetric
weight_scale            [N, K/G]
weight_g_idx      int32 [K]                group of each column, where actorder is group; the columns are not moved

Integers and zero points are signed, so the 8 that is added to both leaves their difference as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orinkit_export.checkpoint import Checkpoint
from orinkit_export.imports.module import Format, Module, Stored, UInt8, expect, nibbles, section

_OPTIONAL = ("weight_zero_point", "weight_g_idx", "weight_shape")


def parse(settings: Mapping[str, Any]) -> Format:
    """The format that a quantization_config describes. Raises CheckpointError."""
    expect(settings, "quantization_status", "compressed", "compressed")
    expect(section(settings, "sparsity_config"), "format", "dense", "dense")
    expect(section(settings, "transform_config"), "config_groups", {}, {})
    groups = section(settings, "config_groups")
    for name in groups:
        group = section(groups, name)
        expect(group, "format", settings.get("format"), "pack-quantized")
        expect(group, "input_activations", None, None)
        expect(group, "output_activations", None, None)
        weights = section(group, "weights")
        expect(weights, "num_bits", None, 4)
        expect(weights, "type", "int", "int")
        expect(weights, "strategy", "group", "group")
    return PackQuantized()


@dataclass(frozen=True)
class PackQuantized:
    """Modules say by their tensors what they are."""

    marker: str = "weight_packed"

    def module(self, checkpoint: Checkpoint, name: str) -> Module:
        stored = Stored(checkpoint, name)
        rows, words = stored.shape("weight_packed")
        columns, groups = 8 * words, stored.shape("weight_scale")[1]
        group_size = stored.group_size(columns, groups)

        def zeros() -> UInt8:
            packed = stored.integers("weight_zero_point", (-(-rows // 8), groups))
            return nibbles(packed.T).T[:rows]

        return Module(
            name=name,
            sources=stored.sources("weight_packed", "weight_scale", optional=_OPTIONAL),
            shape=(rows, columns),
            group_size=group_size,
            order=stored.order("weight_g_idx", columns, group_size),
            is_symmetric=False,
            read_values=lambda: nibbles(stored.integers("weight_packed", (rows, words))),
            read_scales=lambda: stored.scales("weight_scale", (rows, groups)),
            read_zeros=zeros if "weight_zero_point" in stored else None,
        )
