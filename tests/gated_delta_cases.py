# SPDX-License-Identifier: Apache-2.0
"""Ragged steps of the gated delta op, and one step as a launch on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from op_cases import Case, named
from orinkit.engines.kernels import KernelLibrary

Array = NDArray[Any]
CONV_WIDTH = 4
STATES = ("conv", "rec")


@dataclass(frozen=True)
class Heads:
    """Key heads, value heads and the width of both."""

    key: int
    value: int
    dim: int = 128

    @property
    def channels(self) -> int:
        return (2 * self.key + self.value) * self.dim


QWEN_SMALL = Heads(16, 16)
"""Qwen3.5-0.8B and 2B."""
QWEN_MIDDLE = Heads(16, 32)
"""Qwen3.5-4B and 9B."""
QWEN_LARGE = Heads(16, 48)
"""Qwen3.5-27B."""


@dataclass(frozen=True)
class Row:
    """One sequence of a step."""

    tokens: int
    past: int = 0
    slot: int = 0


def step(
    seed: int,
    heads: Heads,
    rows: Sequence[Row],
    *,
    slots: int = 4,
    tail: int = 0,
    decay: float = -3.0,
    seen: float = 1.0,
) -> Case:
    """A step of `rows` and `tail` tokens that belong to none. Slots that the step must not read hold NaN.

    `decay`: what is added to dt_bias, the larger the faster states fade; `seen`: spread of the states there are.
    """
    rng = np.random.default_rng(seed)

    def normal(*shape: int, dtype: Any = np.float32, scale: float = 1.0) -> Array:
        return (rng.standard_normal(shape) * scale).astype(dtype)

    lengths = [row.tokens for row in rows]
    tokens = sum(lengths) + tail
    conv = np.full((slots, heads.channels, CONV_WIDTH - 1), np.nan, np.float16)
    rec = np.full((slots, heads.value, heads.dim, heads.dim), np.nan, np.float32)
    for row in rows:
        if row.slot >= 0 and row.past:
            conv[row.slot] = normal(*conv.shape[1:], dtype=np.float16)
            rec[row.slot] = normal(*rec.shape[1:], scale=seen)
    inputs = (
        normal(tokens, heads.channels + heads.value * heads.dim, dtype=np.float16),
        normal(tokens, 2 * heads.value, dtype=np.float16),
        normal(heads.channels, CONV_WIDTH, dtype=np.float16, scale=0.5),
        np.log(rng.uniform(1, 16, heads.value)).astype(np.float32),
        normal(heads.value) + np.float32(decay),
        1 + normal(heads.dim, scale=0.1),
        conv,
        rec,
        np.cumsum([0, *lengths]).astype(np.int32),
        np.array([row.past for row in rows], np.int32),
        np.array([row.slot for row in rows], np.int32),
    )
    attributes = {
        "key_heads": heads.key,
        "value_heads": heads.value,
        "key_dim": heads.dim,
        "value_dim": heads.dim,
        "conv_width": CONV_WIDTH,
        "norm_eps": 1e-6,
    }
    name = "+".join(f"{row.tokens}@{row.past}" for row in rows)
    return Case(f"gated_delta-{heads.value}x{heads.dim}-{name}", "OrinGatedDelta", inputs, attributes)


class Launch:
    """A case in device memory: outputs poisoned and states as given at every `reset`."""

    def __init__(self, case: Case, kernels: KernelLibrary, stream: Any, *, keep_steps: bool = False) -> None:
        import gpu

        self._case, self._kernels, self._stream = case, kernels, stream
        self.host = named(case)
        self.device = {name: gpu.Array(array) for name, array in self.host.items()}
        tokens = len(self.host["qkvz"])
        value_width = case.attributes["value_heads"] * case.attributes["value_dim"]
        self._poison = {"y": np.full((tokens, value_width), np.nan, np.float16)}
        if keep_steps:
            self._poison |= {
                f"{name}_steps": np.full((tokens, *self.host[name].shape[1:]), np.nan, self.host[name].dtype)
                for name in STATES
            }
        self.device |= {name: gpu.Array(array) for name, array in self._poison.items()}
        sequences = len(self.host["slots"])
        values: dict[str, int | float | None] = {name: array.pointer for name, array in self.device.items()}
        values |= {f"{name}_steps": values.get(f"{name}_steps") for name in STATES}
        values |= {"semaphores": None, "workspace": None}
        values |= {"tokens": tokens, "sequences": sequences, "settled": 0}
        values |= case.attributes
        self.arguments = kernels.arguments("gated_delta", **values)
        self.semaphores = gpu.Array(np.zeros(kernels.query("gated_delta_semaphores", self.arguments), np.uint8))
        self.arguments.semaphores = self.semaphores.pointer
        size = kernels.query("gated_delta_workspace", self.arguments)
        self._workspace = gpu.Array(np.full(size, 0xFF, np.uint8))
        self.arguments.workspace = self._workspace.pointer if size else None

    def reset(self) -> None:
        for name in STATES:
            self.device[name].write(self.host[name])
        for name, array in self._poison.items():
            self.device[name].write(array)

    def enqueue(self) -> None:
        self._kernels.launch("gated_delta", self.arguments, self._stream.handle)

    def with_arguments(self, **values: int) -> Callable[[], None]:
        """The same launch with other fields."""
        fields = {name: getattr(self.arguments, name) for name, *_ in self.arguments._fields_}
        arguments = self._kernels.arguments("gated_delta", **fields | values)
        return lambda: self._kernels.launch("gated_delta", arguments, self._stream.handle)

    def read(self) -> tuple[Array, Array, Array]:
        """y and both states, when the stream is through."""
        self._stream.sync()
        return self.device["y"].read(), self.device["conv"].read(), self.device["rec"].read()

    def run(self) -> tuple[Array, Array, Array]:
        """Direct and captured, which must agree bit for bit."""
        self.enqueue()
        direct = self.read()
        replay = self._stream.capture(self.enqueue)
        self.reset()
        replay()
        for one, other in zip(direct, self.read(), strict=True):
            assert one.tobytes() == other.tobytes()
        return direct
