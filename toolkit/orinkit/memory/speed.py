# SPDX-License-Identifier: Apache-2.0
"""How fast a recipe will run on a GPU, from bytes, launches and operations; what is assumed has a name here.

decode step   bytes read / (bandwidth x BANDWIDTH_SHARE) + launches x launch_us
prefill step  the larger of that and operations / (matrix rate x MATRIX_SHARE)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orinkit.memory import outline
from orinkit.model import Attention, ModelSpec
from orinkit.recipe import Recipe
from orinkit.target import Gpu

BANDWIDTH_SHARE = 0.8
"""Part of the nominal bandwidth that a kernel reaches which only reads; assumed."""
MATRIX_SHARE = 0.4
"""Part of the nominal matrix rate that prefill reaches; assumed, a published prefill of Qwen3-4B on AGX Orin reaches
it (2,417 tokens/s, TensorRT-Edge-LLM 0.8.0)."""
MATRIX_RATE = {80: 2048, 86: 1024, 87: 2048, 89: 1024}
"""Float16 operations of tensor cores per SM and clock, by compute capability."""
NEWER_MATRIX_RATE = 4096
"""The same for later ones."""
STEP_LAUNCHES = 3
"""Sampling takes two kernels, advancing the sequences one."""
PREFILL_LAUNCHES = 2
"""Kernels of one op in a prefill step, on average: a norm or a conversion runs ahead of the product."""


@dataclass(frozen=True)
class Decode:
    """One decode step of `batch` sequences that hold `depth` tokens each."""

    batch: int
    depth: int
    nbytes: int
    launches: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of all sequences together."""
        return self.batch / self.seconds


@dataclass(frozen=True)
class Prefill:
    """A prompt of `tokens` tokens, alone, up to its first token."""

    tokens: int
    operations: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


class Speed:
    """Predictions for one recipe on one GPU."""

    def __init__(
        self, spec: ModelSpec, recipe: Recipe, gpu: Gpu, parts: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        """`parts`: the stored tensors where they are known better than by `spec`."""
        self._spec, self._recipe, self._gpu = spec, recipe, gpu
        self._ops = outline.ops(spec, recipe)
        stored = outline.stored_parts(spec, recipe) if parts is None else parts
        self._stored = {name: sum(sizes) for name, sizes in stored.items()}
        self._width = 2 if recipe.activations == "float16" else 4

    def decode(self, batch: int, depth: int) -> Decode:
        """A captured step that gives each of `batch` sequences a token."""
        nbytes = self._weights() + batch * (self._state(depth) + 2 * 4 * self._spec.vocab)
        launches = len(self._ops) + STEP_LAUNCHES
        return Decode(batch, depth, nbytes, launches, self._reading(nbytes) + launches * self._gpu.launch_us * 1e-6)

    def prefill(self, tokens: int) -> Prefill | None:
        """A prompt in chunks; None where the clock of the GPU is not known."""
        if self._gpu.clock_mhz is None:
            return None
        rate = (
            MATRIX_RATE.get(self._gpu.sm, NEWER_MATRIX_RATE)
            * self._gpu.sm_count
            * self._gpu.clock_mhz
            * 1e6
            * MATRIX_SHARE
        )
        launching = PREFILL_LAUNCHES * len(self._ops) * self._gpu.launch_us * 1e-6
        total = seconds = 0.0
        chunk = self._recipe.shapes.chunk
        for start in range(0, tokens, chunk):
            count = min(chunk, tokens - start)
            operations = self._operations(start, count, is_last=start + count == tokens)
            reading = self._reading(self._weights() + self._state(start + count))
            seconds += max(operations / rate, reading) + launching
            total += operations
        return Prefill(tokens, total, seconds)

    def _reading(self, nbytes: int) -> float:
        return nbytes / (self._gpu.bandwidth_gbs * 1e9 * BANDWIDTH_SHARE)

    def _weights(self) -> int:
        """Bytes of all matrices and vectors that a step reads once, whatever its batch."""
        rows = {"embedding", *(op.name for op in self._ops if op.attention)}  # a row of a table for each token
        used = {name for op in self._ops if op.name not in rows for name in op.weights}
        return sum(self._stored[name] for name in used)

    def _state(self, depth: int) -> int:
        """Bytes of one sequence's state that a step reads and writes."""
        total = 0
        for layer in self._spec.layers:
            if layer.attention:
                total += (
                    2 * layer.attention.kv_heads * layer.attention.head_dim * self._width * seen(layer.attention, depth)
                )
            if layer.gated_delta:
                delta = layer.gated_delta
                total += 2 * 4 * delta.value_heads * delta.key_dim * delta.value_dim
        return total

    def _operations(self, start: int, count: int, is_last: bool) -> float:
        """Multiplications and additions of a chunk behind `start` tokens."""
        total = 0.0
        for op in self._ops:
            rows = (1 if is_last else 0) if op.name == "head" else count
            total += 2.0 * rows * op.n * op.k
            if op.attention:
                keys = sum(seen(op.attention, start + index + 1) for index in range(count))
                total += 4.0 * op.attention.heads * op.attention.head_dim * keys
            if op.gated_delta:  # products within chunks of 64 tokens and with the state
                delta = op.gated_delta
                total += 6.0 * count * delta.value_heads * delta.value_dim * (64 + delta.key_dim)
        return total


def seen(attention: Attention, length: int) -> int:
    """Tokens that the last of `length` tokens attends to."""
    return min(length, attention.window) if attention.window else length
