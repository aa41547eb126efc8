# SPDX-License-Identifier: Apache-2.0
"""How much memory a recipe needs, item by item: the one calculation that planning, start-up and benches use."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from orinkit.memory import host, outline
from orinkit.memory.arena import Value, aligned, place, slabs
from orinkit.memory.rings import ring_rows
from orinkit.model import ModelSpec
from orinkit.recipe import Recipe, Shapes

Where = Literal["device", "host", "process"]
"""`device`: the engine allocates it on the GPU; `host`: in the system's memory; `process`: it is there before."""

Parts = Mapping[str, tuple[int, ...]]
"""Bytes of each stored tensor and of what is stored with it, by name."""

ENGINES = ("onnxruntime", "cuda", "tensorrt")

MIB = 1 << 20
ORIN_SM_COUNT = 16
MOST_BIASES = 300
"""Token ids of a logit bias that a slot has room for."""
SHORT_PREFILLS = (8, 16, 32, 64)
"""Tokens of prefill steps that the host would be slower to launch than a GPU to compute."""
CAPTURE = MIB
"""What one captured step costs the driver; assumed."""
CONTEXT = 250 * MIB
"""What a CUDA context with its modules costs on a board; assumed."""
TENSORRT = 200 * MIB
"""What TensorRT's libraries and contexts cost beside their scratch; assumed."""
PROCESS = 100 * MIB
"""Python and its libraries; seen on x86-64."""
TOKEN = 600
"""Bytes that a tokenizer takes for each entry of its vocabulary; assumed."""


@dataclass(frozen=True)
class Item:
    """One kind of memory."""

    name: str
    nbytes: int
    detail: str
    where: Where = "device"
    is_estimate: bool = False


@dataclass(frozen=True)
class MemoryPlan:
    """Everything that an engine needs to serve a recipe."""

    engine: str
    items: tuple[Item, ...]

    def total(self, *where: Where) -> int:
        """Bytes in all, or of the items that are in one of `where`."""
        return sum(item.nbytes for item in self.items if not where or item.where in where)


def memory_plan(
    spec: ModelSpec, recipe: Recipe, engine: str, parts: Parts | None = None, sm_count: int | None = None
) -> MemoryPlan:
    """What `engine`, one of ENGINES, needs; `parts` are the stored tensors where they are known better than by `spec`.

    `sm_count` of the GPU decides how much scratch kernels want; without it that of the largest Orin.
    """
    stored = outline.stored_parts(spec, recipe) if parts is None else parts
    if engine == "onnxruntime":
        items = [*_host_items(spec, recipe, stored), *_states(spec, recipe, "host")]
    else:
        items = [
            _weights(stored),
            *_states(spec, recipe, "device"),
            *_steps(spec, recipe, sm_count or ORIN_SM_COUNT),
            *_overhead(spec, recipe, engine),
        ]
    process = PROCESS + TOKEN * spec.vocab
    items.append(Item("process", process, "Python, libraries, tokenizer", "process", is_estimate=True))
    return MemoryPlan(engine, tuple(items))


def state_bytes(spec: ModelSpec, recipe: Recipe) -> dict[str, int]:
    """Bytes of each state of all slots, by its name in the graph."""
    shapes, width = recipe.shapes, 2 if recipe.activations == "float16" else 4
    found = {}
    for index, layer in enumerate(spec.layers):
        if layer.attention:
            rows = ring_rows(layer.attention.window, shapes.capacity, shapes.chunk)
            row = 2 * layer.attention.kv_heads * layer.attention.head_dim * width
            found[f"kv_{index}"] = shapes.slots * rows * row
        if layer.gated_delta:
            delta = layer.gated_delta
            found[f"conv_{index}"] = shapes.slots * delta.channels * (delta.conv_width - 1) * width
            found[f"rec_{index}"] = shapes.slots * delta.value_heads * delta.key_dim * delta.value_dim * 4
    return found


def decode_sizes(slots: int) -> tuple[int, ...]:
    """The numbers of sequences that decode contexts are made for: powers of two below `slots`, and `slots`."""
    return (*(1 << power for power in range(slots.bit_length()) if 1 << power < slots), slots)


def prefill_sizes(chunk: int) -> tuple[int, ...]:
    """The numbers of tokens of one sequence that prefill steps are captured for."""
    return tuple(size for size in SHORT_PREFILLS if size <= chunk)


def arena_bytes(spec: ModelSpec, recipe: Recipe, tokens: int) -> int:
    """Bytes of the values between ops in a step of `tokens` tokens."""
    return place([Value(op.name, 2 * tokens * op.width, op.reads) for op in outline.ops(spec, recipe)])[1]


def scratch_bytes(spec: ModelSpec, recipe: Recipe, sm_count: int) -> int:
    """Most scratch that a kernel asks for in a prefill step; an upper bound where a product is split by columns."""
    shapes = recipe.shapes
    return max(_scratch_of(op, shapes, sm_count) for op in outline.ops(spec, recipe))


def _scratch_of(op: outline.Op, shapes: Shapes, sm_count: int) -> int:
    tokens, sequences = shapes.chunk, min(shapes.slots, shapes.chunk)
    if op.gated_delta:
        delta = op.gated_delta  # the parts of launch_chunks in plugins/kernels/gated_delta/launch.cpp
        places, dim = tokens // 64 + sequences + 1, delta.value_dim
        qkv = places * (2 * delta.key_heads + delta.value_heads) * 64 * dim * 2
        head = 64 * 64 * 2 + 3 * 64 * 4 + 64 * dim * 2 + dim * dim * 2
        return qkv + places * delta.value_heads * head
    normed = 2 * tokens * op.k if op.has_norm else 0
    partial = sm_count * 128 * 256 * 4 if op.op_type == "OrinInt4Gemm" else 0  # one tile of float32 for each SM
    return normed + partial


def _weights(stored: Parts) -> Item:
    pieces = [size for parts in stored.values() for size in parts]
    return Item("weights", sum(slabs(pieces)), f"{len(stored)} tensors, one copy for all contexts")


def _states(spec: ModelSpec, recipe: Recipe, where: Where) -> Iterator[Item]:
    """Caches by kind, and the copies of slots that are kept."""
    shapes, sizes = recipe.shapes, state_bytes(spec, recipe)
    for kind, name in (("kv", "key/value caches"), ("conv", "convolution states"), ("rec", "recurrent states")):
        nbytes = sum(aligned(size) for state, size in sizes.items() if state.startswith(f"{kind}_"))
        if nbytes:
            detail = f"{shapes.slots} slots" + (f" of {shapes.capacity} tokens" if kind == "kv" else "")
            yield Item(name, nbytes, detail, where)
    if shapes.snapshots:
        nbytes = sum(aligned(shapes.snapshots * (size // shapes.slots)) for size in sizes.values())
        yield Item("snapshots", nbytes, f"{shapes.snapshots} copies of what a slot holds", where)


def _steps(spec: ModelSpec, recipe: Recipe, sm_count: int) -> Iterator[Item]:
    shapes = recipe.shapes
    arena = arena_bytes(spec, recipe, shapes.chunk)
    yield Item("values between ops", arena, f"of {shapes.chunk} tokens; one arena for all contexts")
    scratch = scratch_bytes(spec, recipe, sm_count)
    yield Item("scratch of kernels", scratch, "the largest of any kernel", is_estimate=True)


def _overhead(spec: ModelSpec, recipe: Recipe, engine: str) -> Iterator[Item]:
    shapes = recipe.shapes
    yield Item("logits", 4 * spec.vocab * shapes.slots, "float32, shared by all contexts")
    num_decode, num_prefill = len(decode_sizes(shapes.slots)), len(prefill_sizes(shapes.chunk))
    detail = f"{num_decode} sizes of decode steps, {num_prefill} of short prefill steps"
    yield Item("captures", CAPTURE * (num_decode + num_prefill), detail, is_estimate=True)
    sampling, pinned = _sampling(spec, shapes)
    yield Item("sampling", sampling, "counts, masks and settings of the slots, scratch")
    yield Item("pinned memory", pinned, "what host and GPU tell each other", "host")
    yield Item("CUDA context", CONTEXT, "assumed, not measured on a board", "process", is_estimate=True)
    if engine == "tensorrt":
        yield Item("TensorRT", TENSORRT, "assumed, not measured on a board", is_estimate=True)


def _sampling(spec: ModelSpec, shapes: Shapes) -> tuple[int, int]:
    """Bytes on the device and pinned: the parts of engines/choosing.py that grow with vocabulary or capacity.

    Scratch is that of plugins/kernels/sampling with 20 alternatives for each token.
    """
    both = 4 * math.ceil(spec.vocab / 32) + 4 * shapes.capacity + 12 * MOST_BIASES
    scratch = 28 * 1024 + math.ceil(spec.vocab / 2048) * (20 * 8 + 28)
    ring = 32 * (24 + 20 * 8)
    return shapes.slots * (both + 2 * spec.vocab + scratch), shapes.slots * (both + ring)


def _host_items(spec: ModelSpec, recipe: Recipe, stored: Parts) -> Iterator[Item]:
    weights, loading = host.weight_bytes(spec, recipe, stored)
    yield Item("weights", weights, "as ONNX Runtime keeps them", "host", is_estimate=True)
    values = host.value_bytes(spec, recipe)
    caches = sum(state_bytes(spec, recipe).values())
    yield Item("values between ops", values, f"of {recipe.shapes.chunk} tokens, float32", "host", is_estimate=True)
    more = loading - weights - values - caches
    if more > 0:
        yield Item("loading", more, "more than serving takes, while the graph is loaded", "host", is_estimate=True)
