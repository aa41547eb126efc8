# SPDX-License-Identifier: Apache-2.0
"""Attention steps of ragged batches, with NaN in all state that no kernel may use, the int8 cache's reference, and
one step as a launch on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orinkit.engines.kernels import KernelLibrary
from orinkit.ops import OPS
from orinkit.ops.attention import rotate
from orinkit.ops.description import rms_norm

Array = NDArray[Any]


class Heads(NamedTuple):
    """What a model says of its attention layers."""

    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    gate: int = 0
    qk_norm: bool = True


MODELS = {
    "Qwen3.5-0.8B and 2B": Heads(8, 2, 256, 64, gate=1),
    "Qwen3.5-4B and 9B": Heads(16, 4, 256, 64, gate=1),
    "Qwen3-8B": Heads(32, 8, 128, 128),
    "Llama-3.1-8B": Heads(32, 8, 128, 128, qk_norm=False),
}
ODD = {
    "one for all": Heads(16, 1, 64, 64),
    "one each": Heads(3, 3, 96, 96, gate=1, qk_norm=False),
    "three each": Heads(6, 2, 96, 32),
    "no rotary": Heads(5, 1, 128, 0, gate=1),
}


class Row(NamedTuple):
    """A sequence of a step."""

    tokens: int
    past: int
    slot: int


@dataclass(frozen=True)
class Step:
    """Inputs of one step by name; `kv` is float16, or int8 beside its `kv_scale`."""

    inputs: dict[str, Array]
    attributes: dict[str, Any]
    max_step: int
    max_length: int

    @property
    def is_int8(self) -> bool:
        return "kv_scale" in self.inputs


def quantise(x: Array) -> tuple[Array, Array]:
    """int8 values and float32 scales, one scale for each row of the last axis: max |x| / 127."""
    scale = np.abs(x).max(-1).astype(np.float32) / np.float32(127)
    safe = np.where(scale > 0, scale, np.float32(1))
    return np.rint(x / safe[..., None]).astype(np.int8), scale


def _int8_cache(kv: Array) -> dict[str, Array]:
    """`kv` quantised; where it is NaN, bytes of 0xFF and scales of NaN."""
    free = np.isnan(kv[..., 0])
    values, scale = quantise(np.nan_to_num(kv))
    values[free], scale[free] = -1, np.nan
    return {"kv": values, "kv_scale": scale}


def _attributes(heads: Heads, window: int, softcap: float) -> dict[str, Any]:
    return {
        "heads": heads.heads,
        "kv_heads": heads.kv_heads,
        "head_dim": heads.head_dim,
        "rotary_dim": heads.rotary_dim,
        "window": window,
        "scale": heads.head_dim**-0.5,
        "softcap": softcap,
        "gate": heads.gate,
        "norm_eps": 1e-6,
    }


def step(
    heads: Heads,
    rows: list[Row],
    capacity: int,
    window: int = 0,
    softcap: float = 0.0,
    int8: bool = False,
    tail: int = 0,
    seed: int = 1,
) -> Step:
    """A step of `rows`; `tail` tokens lie beyond the last sequence. What is not a live sequence's own holds NaN."""
    rng = np.random.default_rng(seed)
    slots = max(2, *(row.slot + 2 for row in rows))
    shape = (slots, 2, heads.kv_heads, capacity, heads.head_dim)
    kv = np.full(shape, np.nan, np.float32)
    width = (heads.heads * (1 + heads.gate) + 2 * heads.kv_heads) * heads.head_dim
    ends = np.cumsum([0, *(row.tokens for row in rows)]).astype(np.int32)
    qkv = np.full((int(ends[-1]) + tail, width), np.nan, np.float16)
    for row, begin in zip(rows, ends, strict=False):
        if row.slot < 0:
            continue
        qkv[begin : begin + row.tokens] = rng.standard_normal((row.tokens, width))
        held = min(row.past, capacity)
        kv[row.slot, :, :, :held] = rng.standard_normal((2, heads.kv_heads, held, heads.head_dim))
    longest = max(row.tokens + row.past for row in rows if row.slot >= 0)
    angles = np.arange(longest)[:, None] * 0.02 ** (np.arange(heads.rotary_dim // 2)[None] / heads.rotary_dim * 2)
    cache = _int8_cache(kv) if int8 else {"kv": kv.astype(np.float16)}
    norms = {name: 1 + rng.standard_normal(heads.head_dim).astype(np.float32) * 0.1 for name in ("q_norm", "k_norm")}
    inputs = {
        "qkv": qkv,
        **cache,
        "cu_seqlens": ends,
        "past_lens": np.array([row.past for row in rows], np.int32),
        "slots": np.array([row.slot for row in rows], np.int32),
        **(norms if heads.qk_norm else {}),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }
    attributes = _attributes(heads, window, softcap)
    return Step(inputs, attributes, max(row.tokens for row in rows), longest)


def expected(case: Step) -> dict[str, Array]:
    """y and the cache after the step, by the op's reference."""
    if case.is_int8:
        return _expected_int8(case)
    op = OPS["OrinAttention"]
    y, kv = op.compute([case.inputs.get(tensor.name) for tensor in op.inputs], case.attributes)
    return {"y": y, "kv": kv}


def _expected_int8(case: Step) -> dict[str, Array]:
    """The reference in float32 over a cache of q * scale, given keys and values that are rounded like that already."""
    a, given = case.attributes, case.inputs
    heads, kv_heads, dim = a["heads"], a["kv_heads"], a["head_dim"]
    rows = given["qkv"].astype(np.float32).reshape(len(given["qkv"]), -1, dim)
    edges = np.cumsum([heads, heads * a["gate"], kv_heads])
    q, gates, k, v = np.split(rows, edges, axis=1)
    if "q_norm" in given:
        q, k = rms_norm(q, given["q_norm"], a["norm_eps"]), rms_norm(k, given["k_norm"], a["norm_eps"])
    ends, past = given["cu_seqlens"], given["past_lens"]
    positions = np.zeros(len(rows), np.int64)
    for begin, end, before in zip(ends[:-1], ends[1:], past, strict=True):
        positions[begin:end] = before + np.arange(end - begin)
    positions = np.minimum(positions, len(given["cos"]) - 1)  # of padding, which the reference leaves alone
    c, s = given["cos"][positions], given["sin"][positions]
    keys, key_scale = quantise(np.nan_to_num(rotate(k, c, s)))
    values, value_scale = quantise(np.nan_to_num(v))
    parts = [rotate(q, c, s), gates, keys * key_scale[..., None], values * value_scale[..., None]]
    plain = {
        **given,
        "qkv": np.concatenate(parts, axis=1).reshape(len(rows), -1).astype(np.float32),
        "kv": (given["kv"] * given["kv_scale"][..., None]).astype(np.float32),
        "cos": np.ones_like(given["cos"]),
        "sin": np.zeros_like(given["sin"]),
    }
    op = OPS["OrinAttention"]
    names = [tensor.name for tensor in op.inputs]
    y, kv = op.compute([None if name.endswith("_norm") else plain.get(name) for name in names], a)
    return {"y": y.astype(np.float16), "kv": kv}


class Kernel:
    """One step's arrays on the device, and its launch."""

    def __init__(self, kernels: KernelLibrary, case: Step, stream: Any, **limits: int) -> None:
        import gpu

        self.kernels, self.stream, self.case = kernels, stream, case
        self.arrays = {name: gpu.Array(array) for name, array in case.inputs.items()}
        tokens, a = len(case.inputs["qkv"]), case.attributes
        self.arrays["y"] = gpu.Array(np.full((tokens, a["heads"] * a["head_dim"]), np.nan, np.float16))
        optional = dict.fromkeys(("kv_scale", "q_norm", "k_norm", "workspace", "counters"))
        self.values: dict[str, Any] = {
            **optional,
            **{name: array.pointer for name, array in self.arrays.items()},
            **a,
            "tokens": tokens,
            "sequences": len(case.inputs["slots"]),
            "capacity": case.inputs["kv"].shape[3],
            "max_step": case.max_step,
            "max_length": case.max_length,
            "settled": 0,
            **limits,
        }
        shape = kernels.arguments("attention", **self.values)
        self.scratch = gpu.Array(np.full(kernels.query("attention_workspace", shape), 255, np.uint8))
        self.counters = gpu.Array(np.zeros(kernels.query("attention_counters", shape) // 4, np.int32))
        self.values |= {"workspace": self.scratch.pointer, "counters": self.counters.pointer}

    def poison(self) -> None:
        """The cache as it was, everything that is written as NaN."""
        for name in ("kv", "kv_scale"):
            if name in self.arrays:
                self.arrays[name].write(self.case.inputs[name])
        self.arrays["y"].write(np.full(self.arrays["y"].shape, np.nan, np.float16))
        self.scratch.write(np.full(self.scratch.shape, 255, np.uint8))

    def enqueue(self) -> None:
        self.kernels.launch("attention", self.kernels.arguments("attention", **self.values), self.stream.handle)

    def read(self) -> dict[str, Array]:
        self.stream.sync()
        assert not self.counters.read().any()
        return {name: self.arrays[name].read() for name in ("y", "kv", "kv_scale") if name in self.arrays}

    def run(self) -> dict[str, Array]:
        self.poison()
        self.enqueue()
        return self.read()
