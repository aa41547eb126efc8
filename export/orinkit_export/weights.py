# SPDX-License-Identifier: Apache-2.0
"""A checkpoint's tensors as the graph wants them: projections that share an input fused, rows in the ops' order,
norms effective, everything by the graph's names.

    embedding, head                    rows of the vocabulary
    layers.I.norm1, layers.I.norm2     float32 [H]
    layers.I.qkv, layers.I.o           query, gate if any, key, value; output
    layers.I.qkvz, .ba, .out           gated delta: channels and z; b and a; output
    layers.I.gate_up, layers.I.down    rows interleaved gate, up; output
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orinkit.errors import CheckpointError
from orinkit.memory.formats import Role
from orinkit.model import Attention, GatedDelta, ModelSpec, Rope
from orinkit_export import imports
from orinkit_export.architectures import by_name
from orinkit_export.checkpoint import Checkpoint
from orinkit_export.imports import Array, Fuse, Integers, Part

Float32 = NDArray[np.float32]

BLOCK_ROWS = 8192
"""Rows of a vocabulary matrix that are in memory at a time."""


@dataclass(frozen=True)
class Weight:
    """One tensor of the graph, not yet read: its rows come in float32 blocks."""

    name: str
    role: Role
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    """The checkpoint's tensors that it is made of."""
    blocks: Callable[[], Iterator[Float32]]
    integers: Integers | None = None
    """What is stored of a weight whose role is `imported`."""


class Weights:
    """The weights of a model in the order in which they are stored."""

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, positions: int) -> None:
        """Raises CheckpointError: a checkpoint that is quantised in a way that the ops cannot represent."""
        self._checkpoint = checkpoint
        self._format = imports.stored_format(checkpoint, spec.tied)
        self._spec = spec
        self._positions = positions
        self._unit = by_name(spec.architecture).unit_norms

    def __iter__(self) -> Iterator[Weight]:
        yield self._vocabulary("embedding", "model.embed_tokens.weight", "embedding")
        if any(layer.attention for layer in self._spec.layers):
            for name, table in zip(("rope.cos", "rope.sin"), self._rope_tables(), strict=True):
                yield _whole(name, "float32", table)
        for index, layer in enumerate(self._spec.layers):
            prefix, theirs = f"layers.{index}", f"model.layers.{index}"
            yield self._norm(f"{prefix}.norm1", f"{theirs}.input_layernorm.weight")
            if layer.attention:
                yield from self._attention(prefix, f"{theirs}.self_attn", layer.attention)
            if layer.gated_delta:
                yield from self._gated_delta(prefix, f"{theirs}.linear_attn", layer.gated_delta)
            yield self._norm(f"{prefix}.norm2", f"{theirs}.post_attention_layernorm.weight")
            yield from self._mlp(prefix, f"{theirs}.mlp", layer.intermediate)
        yield self._norm("final_norm", "model.norm.weight")
        yield self._vocabulary("head", "model.embed_tokens.weight" if self._spec.tied else "lm_head.weight", "head")

    def _vocabulary(self, ours: str, theirs: str, role: Role) -> Weight:
        shape, module = (self._spec.vocab, self._spec.hidden), theirs.removesuffix(".weight")
        if brought := self._brought((module,), shape, lambda part: part(module, shape[0])):
            return _imported(f"{ours}.weight", brought)

        def blocks() -> Iterator[Float32]:
            found = self._checkpoint.shape(theirs)
            if found != shape:
                raise CheckpointError(f"{theirs}: expected shape {shape} by config.json, found {found}")
            for start in range(0, self._spec.vocab, BLOCK_ROWS):
                yield self._checkpoint.read_rows(theirs, start, min(start + BLOCK_ROWS, self._spec.vocab))

        return Weight(f"{ours}.weight", role, shape, (theirs,), blocks)

    def _norm(self, ours: str, theirs: str, width: int = 0, unit: bool | None = None) -> Weight:
        def blocks() -> Iterator[Float32]:
            stored = self._checkpoint.read(theirs, (size,))
            yield stored + np.float32(1) if (self._unit if unit is None else unit) else stored

        size = width or self._spec.hidden
        return Weight(ours, "float32", (size,), (theirs,), blocks)

    def _projection(
        self, ours: str, role: Role, shape: tuple[int, int], fuse: Fuse, *theirs: str, is_gathered: bool = False
    ) -> Iterator[Weight]:
        """The matrix, and the bias if there is one, that `fuse` makes of the modules `theirs`."""

        def floats(suffix: str) -> Iterator[Float32]:
            width = shape[1:] if suffix == "weight" else ()
            yield fuse(lambda name, rows: self._checkpoint.read(f"{name}.{suffix}", (rows, *width)))

        weights, biases = (tuple(f"{module}.{suffix}" for module in theirs) for suffix in ("weight", "bias"))
        if brought := self._brought(theirs, shape, fuse, is_gathered):
            yield _imported(f"{ours}.weight", brought)
        else:
            yield Weight(f"{ours}.weight", role, shape, weights, lambda: floats("weight"))
        if any(bias in self._checkpoint for bias in biases):
            yield Weight(f"{ours}.bias", "wide", shape[:1], biases, lambda: floats("bias"))

    def _brought(
        self, theirs: tuple[str, ...], shape: tuple[int, int], fuse: Fuse, is_gathered: bool = False
    ) -> Integers | None:
        """The integers that the checkpoint brings for a matrix, if it brings any."""
        if self._format is None:
            return None
        return imports.integers(self._format, self._checkpoint, theirs, shape, fuse, is_gathered)

    def _attention(self, ours: str, theirs: str, spec: Attention) -> Iterator[Weight]:
        hidden, dim = self._spec.hidden, spec.head_dim

        def qkv(part: Part) -> Array:
            q = part(f"{theirs}.q_proj", spec.heads * dim * (2 if spec.gate else 1))
            if spec.gate:  # the checkpoint stores query and gate rows head by head
                by_head = q.reshape(spec.heads, 2, dim, *q.shape[1:])
                q = np.concatenate([by_head[:, 0], by_head[:, 1]]).reshape(q.shape)
            k, v = (part(f"{theirs}.{name}_proj", spec.kv_heads * dim) for name in "kv")
            return np.concatenate([q, k, v])

        modules = [f"{theirs}.{part}_proj" for part in "qkv"]
        yield from self._projection(f"{ours}.qkv", "projection", (spec.qkv_rows, hidden), qkv, *modules)
        if spec.qk_norm:
            yield self._norm(f"{ours}.q_norm", f"{theirs}.q_norm.weight", dim)
            yield self._norm(f"{ours}.k_norm", f"{theirs}.k_norm.weight", dim)
        yield from self._plain(f"{ours}.o", "projection", f"{theirs}.o_proj", hidden, spec.heads * dim)

    def _gated_delta(self, ours: str, theirs: str, spec: GatedDelta) -> Iterator[Weight]:
        hidden, heads, channels = self._spec.hidden, spec.value_heads, spec.channels

        def stacked(ours: str, role: Role, parts: dict[str, int]) -> Iterator[Weight]:
            def fuse(part: Part) -> Array:
                return np.concatenate([part(name, rows) for name, rows in parts.items()])

            return self._projection(ours, role, (sum(parts.values()), hidden), fuse, *parts)

        wide = {f"{theirs}.in_proj_qkv": channels, f"{theirs}.in_proj_z": spec.z_dim}
        yield from stacked(f"{ours}.qkvz", "gated_delta", wide)
        yield from stacked(f"{ours}.ba", "wide", {f"{theirs}.in_proj_b": heads, f"{theirs}.in_proj_a": heads})
        yield self._taps(f"{ours}.conv_weight", f"{theirs}.conv1d.weight", spec)
        yield self._vector(f"{ours}.a_log", f"{theirs}.A_log", heads)
        yield self._vector(f"{ours}.dt_bias", f"{theirs}.dt_bias", heads)
        yield self._norm(f"{ours}.norm", f"{theirs}.norm.weight", spec.value_dim, unit=False)
        yield from self._plain(f"{ours}.out", "gated_delta", f"{theirs}.out_proj", hidden, spec.z_dim)

    def _taps(self, ours: str, theirs: str, spec: GatedDelta) -> Weight:
        def blocks() -> Iterator[Float32]:
            yield self._checkpoint.read(theirs, (spec.channels, 1, spec.conv_width))[:, 0]

        return Weight(ours, "wide", (spec.channels, spec.conv_width), (theirs,), blocks)

    def _vector(self, ours: str, theirs: str, width: int) -> Weight:
        return Weight(ours, "float32", (width,), (theirs,), lambda: iter([self._checkpoint.read(theirs, (width,))]))

    def _mlp(self, ours: str, theirs: str, width: int) -> Iterator[Weight]:
        hidden = self._spec.hidden
        gate, up, down = (f"{theirs}.{part}_proj" for part in ("gate", "up", "down"))
        order = self._order(down, hidden, width)

        def interleaved(part: Part) -> Array:
            pairs = np.stack([part(gate, width), part(up, width)], axis=1)
            pairs = pairs if order is None else pairs[order]
            return pairs.reshape(2 * width, *pairs.shape[2:])

        yield from self._projection(f"{ours}.gate_up", "projection", (2 * width, hidden), interleaved, gate, up)
        yield from self._plain(f"{ours}.down", "projection", down, hidden, width, is_gathered=True)

    def _order(self, module: str, rows: int, columns: int) -> NDArray[np.int32] | None:
        """The order in which a module wants its inputs, if it is another than that of the model."""
        brought = self._brought((module,), (rows, columns), lambda part: part(module, rows))
        return brought.order if brought else None

    def _plain(
        self, ours: str, role: Role, theirs: str, rows: int, columns: int, is_gathered: bool = False
    ) -> Iterator[Weight]:
        def rows_of(part: Part) -> Array:
            return part(theirs, rows)

        yield from self._projection(ours, role, (rows, columns), rows_of, theirs, is_gathered=is_gathered)

    def _rope_tables(self) -> tuple[Float32, Float32]:
        rotary = next(layer.attention.rotary_dim for layer in self._spec.layers if layer.attention)
        angles = np.arange(self._positions)[:, None] * rope_frequencies(self._spec.rope, rotary)[None]
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rope_frequencies(rope: Rope, rotary_dim: int) -> NDArray[np.float64]:
    """Angles per position [rotary_dim/2]. With `factor` > 1 as Llama 3.1 scales them: long wavelengths divided by the
    factor, short ones kept, and a linear blend (in original_positions / wavelength) between."""
    frequencies = rope.theta ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    if rope.factor == 1.0:
        return frequencies
    turns = rope.original_positions * frequencies / (2 * np.pi)
    blend = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = np.clip(blend, 0.0, 1.0)
    return np.asarray(frequencies * (kept + (1 - kept) / rope.factor))


def _imported(name: str, brought: Integers) -> Weight:
    return Weight(name, "imported", brought.shape, brought.sources, brought.blocks, brought)


def _whole(name: str, role: Role, array: Float32) -> Weight:
    return Weight(name, role, array.shape, (), lambda: iter([array]))
