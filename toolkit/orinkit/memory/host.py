# SPDX-License-Identifier: Apache-2.0
"""What ONNX Runtime needs on the CPU: fitted to resident memory seen with releases 1.31 on x86-64.

Products keep their weights packed, embedding and rotary tables stay mapped from the file, of which the system may take
pages back. While the graph is loaded, constants are converted, for which a matrix is in memory several times.
"""

from __future__ import annotations

from collections.abc import Mapping

from orinkit.memory import outline
from orinkit.memory.formats import Kind, format_of
from orinkit.memory.rings import ring_rows
from orinkit.model import LayerSpec, ModelSpec
from orinkit.recipe import Recipe

KEPT: dict[Kind, float] = {"int4": 1.4, "int8": 1.4, "float16": 2.0, "float32": 1.0}
"""Bytes in memory for each byte of a matrix of that format, with what the allocator keeps after loading; float16 is
computed in float32."""
LOADING: dict[Kind, float] = {"int4": 2.4, "int8": 11.0, "float16": 4.6, "float32": 2.0}
"""The same at the peak of loading."""

_MAPPED = frozenset({"embedding.weight", "rope.cos", "rope.sin"})


def weight_bytes(spec: ModelSpec, recipe: Recipe, stored: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Bytes of the weights once they are loaded, and at the peak of loading."""
    roles = {tensor.name: tensor.role for tensor in outline.tensors(spec, recipe)}
    kept = loading = 0.0
    mapped = _MAPPED if "head.weight" in stored else _MAPPED - {"embedding.weight"}
    for name, parts in stored.items():
        if name not in mapped:
            kind = format_of(recipe, name, roles.get(name, "imported")).kind
            kept += KEPT[kind] * sum(parts)
            loading += LOADING[kind] * sum(parts)
    return int(kept), int(loading)


def value_bytes(spec: ModelSpec, recipe: Recipe) -> int:
    """Bytes of the values of one prefill step of one sequence that are alive at a time, in float32."""
    widest = max(max(op.n, op.width) for op in outline.ops(spec, recipe) if op.name != "head")
    between = 6 * 4 * recipe.shapes.chunk * widest
    return between + max(_attention_bytes(layer, recipe) for layer in spec.layers) + 3 * 4 * spec.vocab


def _attention_bytes(layer: LayerSpec, recipe: Recipe) -> int:
    """Three copies of the scores, keys and values of a slot converted."""
    if not layer.attention:
        return 0
    spec, shapes = layer.attention, recipe.shapes
    rows = ring_rows(spec.window, shapes.capacity, shapes.chunk)
    return 3 * 4 * spec.heads * shapes.chunk * rows + 2 * 4 * spec.kv_heads * rows * spec.head_dim
