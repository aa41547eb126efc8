# SPDX-License-Identifier: Apache-2.0
"""A model as its tensors and ops with their sizes, known from its facts alone: no weight and no graph is read.

Names are those of the graph. A checkpoint may bring more than its facts tell: biases, zero points of imported integers,
projections that a quantised one left wide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from orinkit.memory.formats import Role, format_of, parts_of, shares_head
from orinkit.model import Attention, GatedDelta, LayerSpec, ModelSpec
from orinkit.recipe import Recipe


@dataclass(frozen=True)
class Tensor:
    """One weight: how it is stored and its shape [N, K] or [N]."""

    name: str
    role: Role
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """One node of the graph."""

    name: str
    op_type: str
    width: int
    """Columns of its output."""
    reads: tuple[str, ...]
    """Ops whose outputs it reads."""
    weights: tuple[str, ...]
    """Tensors that it reads."""
    n: int = 0
    """Rows of the matrix of a projection."""
    k: int = 0
    """Columns of that matrix."""
    has_norm: bool = False
    attention: Attention | None = None
    gated_delta: GatedDelta | None = None


_BROUGHT = frozenset({"projection", "gated_delta"})
"""Roles of what a quantised checkpoint usually brings as integers."""


def tensors(spec: ModelSpec, recipe: Recipe) -> tuple[Tensor, ...]:
    """The weights that the data file holds, in its order."""
    found = [Tensor("embedding.weight", "embedding", (spec.vocab, spec.hidden))]
    rotary = next((layer.attention.rotary_dim for layer in spec.layers if layer.attention), None)
    if rotary is not None:
        table = (recipe.shapes.capacity, rotary // 2)
        found += [Tensor("rope.cos", "float32", table), Tensor("rope.sin", "float32", table)]
    for index, layer in enumerate(spec.layers):
        found += _layer_tensors(f"layers.{index}", layer, spec.hidden)
    if recipe.quantise.method == "import":
        found = [replace(tensor, role="imported") if tensor.role in _BROUGHT else tensor for tensor in found]
    found.append(Tensor("final_norm", "float32", (spec.hidden,)))
    if not shares_head(recipe, spec.tied):
        found.append(Tensor("head.weight", "head", (spec.vocab, spec.hidden)))
    return tuple(found)


def stored_parts(spec: ModelSpec, recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Bytes of each tensor and of its scales if any, by its name."""
    return {t.name: parts_of(recipe, t.name, t.role, t.shape) for t in tensors(spec, recipe)}


def _layer_tensors(prefix: str, layer: LayerSpec, hidden: int) -> Iterator[Tensor]:
    yield Tensor(f"{prefix}.norm1", "float32", (hidden,))
    if layer.attention:
        spec = layer.attention
        yield Tensor(f"{prefix}.qkv.weight", "projection", (spec.qkv_rows, hidden))
        if spec.qk_norm:
            yield Tensor(f"{prefix}.q_norm", "float32", (spec.head_dim,))
            yield Tensor(f"{prefix}.k_norm", "float32", (spec.head_dim,))
        yield Tensor(f"{prefix}.o.weight", "projection", (hidden, spec.heads * spec.head_dim))
    if layer.gated_delta:
        yield from _gated_delta_tensors(prefix, layer.gated_delta, hidden)
    yield Tensor(f"{prefix}.norm2", "float32", (hidden,))
    yield Tensor(f"{prefix}.gate_up.weight", "projection", (2 * layer.intermediate, hidden))
    yield Tensor(f"{prefix}.down.weight", "projection", (hidden, layer.intermediate))


def _gated_delta_tensors(prefix: str, spec: GatedDelta, hidden: int) -> Iterator[Tensor]:
    yield Tensor(f"{prefix}.qkvz.weight", "gated_delta", (spec.channels + spec.z_dim, hidden))
    yield Tensor(f"{prefix}.ba.weight", "wide", (2 * spec.value_heads, hidden))
    yield Tensor(f"{prefix}.conv_weight", "wide", (spec.channels, spec.conv_width))
    yield Tensor(f"{prefix}.a_log", "float32", (spec.value_heads,))
    yield Tensor(f"{prefix}.dt_bias", "float32", (spec.value_heads,))
    yield Tensor(f"{prefix}.norm", "float32", (spec.value_dim,))
    yield Tensor(f"{prefix}.out.weight", "gated_delta", (hidden, spec.z_dim))


class _Outline:
    """Ops in order, as export's graph chains them."""

    def __init__(self, spec: ModelSpec, recipe: Recipe) -> None:
        self._shapes = {tensor.name: tensor for tensor in tensors(spec, recipe)}
        self._recipe = recipe
        self.ops: list[Op] = []

    def project(self, stem: str, *reads: str, norm: str | None = None, halves: bool = False, name: str = "") -> str:
        """A projection by the matrix of `stem`; `halves`: its rows are pairs of gate and up."""
        tensor = self._shapes[f"{stem}.weight"]
        n, k = tensor.shape
        is_int4 = format_of(self._recipe, tensor.name, tensor.role).kind == "int4"
        weights = (tensor.name, norm) if norm else (tensor.name,)
        op_type = "OrinInt4Gemm" if is_int4 else "OrinLinear"
        width = n // 2 if halves else n
        self.ops.append(Op(name or stem, op_type, width, reads, weights, n=n, k=k, has_norm=norm is not None))
        return name or stem

    def mixer(self, prefix: str, layer: LayerSpec, hidden: str) -> str:
        if layer.attention:
            spec = layer.attention
            qkv = self.project(f"{prefix}.qkv", hidden, norm=f"{prefix}.norm1")
            norms = (f"{prefix}.q_norm", f"{prefix}.k_norm") if spec.qk_norm else ()
            width = spec.heads * spec.head_dim
            name = f"{prefix}.attention"
            self.ops.append(Op(name, "OrinAttention", width, (qkv,), (*norms, "rope.cos", "rope.sin"), attention=spec))
            return self.project(f"{prefix}.o", name, hidden)
        qkvz = self.project(f"{prefix}.qkvz", hidden, norm=f"{prefix}.norm1")
        ba = self.project(f"{prefix}.ba", hidden, norm=f"{prefix}.norm1")
        vectors = tuple(f"{prefix}.{part}" for part in ("conv_weight", "a_log", "dt_bias", "norm"))
        name, delta = f"{prefix}.gated_delta", layer.gated_delta
        width = delta.z_dim if delta else 0
        self.ops.append(Op(name, "OrinGatedDelta", width, (qkvz, ba), vectors, gated_delta=delta))
        return self.project(f"{prefix}.out", name, hidden)


def ops(spec: ModelSpec, recipe: Recipe) -> tuple[Op, ...]:
    """The nodes of the graph, in order."""
    outline = _Outline(spec, recipe)
    hidden = "embedding"
    outline.ops.append(Op(hidden, "OrinEmbedding", spec.hidden, (), ("embedding.weight",)))
    for index, layer in enumerate(spec.layers):
        prefix = f"layers.{index}"
        hidden = outline.mixer(prefix, layer, hidden)
        inner = outline.project(f"{prefix}.gate_up", hidden, norm=f"{prefix}.norm2", halves=True)
        hidden = outline.project(f"{prefix}.down", inner, hidden)
    stem = "embedding" if shares_head(recipe, spec.tied) else "head"
    outline.project(stem, hidden, norm="final_norm", name="head")
    return tuple(outline.ops)
