# SPDX-License-Identifier: Apache-2.0
"""Times of the attention op on the GPU of this machine, inside captured chains.

PYTHONPATH=toolkit:tests python bench/kernels/bench_attention.py [--library PATH] [--out RESULT.json]

Decode: every launch of a chain works on a cache of its own, many times the L2 cache in all; a fraction is of the
bandwidth of a device copy, read plus written. Prefill: operations are those of the causal half, 2 D multiplications and
additions for each score and each weight; a fraction is of PyTorch's bfloat16 matrix product of 8192 cubed.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gpu
import measure
from attention_cases import Heads
from orinkit.engines.kernels import KernelLibrary

ROOT = Path(__file__).parents[2]
CACHES = 768 << 20
"""Bytes of cache that a chain walks through."""
SMALL = Heads(8, 2, 256, 64, gate=1)
LARGE = Heads(16, 4, 256, 64, gate=1)
DENSE = Heads(32, 8, 128, 128)
OLDER = Heads(16, 8, 128, 128)
NAMES = {
    SMALL: "Qwen3.5-0.8B heads",
    LARGE: "Qwen3.5-9B heads",
    DENSE: "Qwen3-8B heads",
    OLDER: "Qwen3-0.6B heads",
}


@dataclass(frozen=True)
class Shape:
    """`sequences` sequences of `tokens` each after `past` tokens; `planned` is the longest the launch allows for."""

    heads: Heads
    sequences: int
    tokens: int
    past: int
    planned: int = 0
    int8: bool = False

    @property
    def name(self) -> str:
        return NAMES[self.heads] + ", int8" * self.int8

    @property
    def length(self) -> int:
        return max(self.planned, self.past + self.tokens)

    @property
    def read_bytes(self) -> int:
        """Of the cache, by one decode step."""
        row = self.heads.head_dim + 4 if self.int8 else 2 * self.heads.head_dim
        return self.sequences * self.past * 2 * self.heads.kv_heads * row

    @property
    def bytes(self) -> int:
        """With activations, and what is appended to the cache."""
        width = self.heads.heads * (2 + self.heads.gate) + 4 * self.heads.kv_heads
        return self.read_bytes + 2 * self.sequences * self.tokens * width * self.heads.head_dim

    @property
    def operations(self) -> float:
        seen = self.tokens * self.past + self.tokens * (self.tokens + 1) / 2
        return 4.0 * self.sequences * self.heads.heads * self.heads.head_dim * seen


def _activations(shape: Shape) -> dict[str, gpu.Array]:
    """What all layers of a chain share."""
    rng, heads = np.random.default_rng(1), shape.heads
    rows, width = shape.sequences * shape.tokens, heads.heads * (1 + heads.gate) + 2 * heads.kv_heads
    angles = rng.standard_normal((shape.length, heads.rotary_dim // 2)).astype(np.float32)
    return {
        "qkv": gpu.Array(rng.standard_normal((rows, width * heads.head_dim), np.float32).astype(np.float16)),
        "cu_seqlens": gpu.Array(np.arange(shape.sequences + 1, dtype=np.int32) * shape.tokens),
        "past_lens": gpu.Array(np.full(shape.sequences, shape.past, np.int32)),
        "slots": gpu.Array(np.arange(shape.sequences, dtype=np.int32)),
        "q_norm": gpu.Array(np.ones(heads.head_dim, np.float32)),
        "k_norm": gpu.Array(np.ones(heads.head_dim, np.float32)),
        "cos": gpu.Array(np.cos(angles)),
        "sin": gpu.Array(np.sin(angles)),
        "y": gpu.Array(np.zeros((rows, heads.heads * heads.head_dim), np.float16)),
    }


def _caches(shape: Shape, layers: int) -> dict[str, gpu.Array]:
    rng, heads = np.random.default_rng(2), shape.heads
    vectors = shape.sequences * 2 * heads.kv_heads * shape.length
    if not shape.int8:
        some = rng.standard_normal(1 << 22).astype(np.float16)
        return {"kv": gpu.Array(np.resize(some, (layers, vectors * heads.head_dim)))}
    bytes_ = rng.integers(-127, 128, 1 << 22).astype(np.int8)
    return {
        "kv": gpu.Array(np.resize(bytes_, (layers, vectors * heads.head_dim))),
        "kv_scale": gpu.Array(np.full((layers, vectors), 0.01, np.float32)),
    }


def _sizes(shape: Shape) -> dict[str, float]:
    heads = {name: value for name, value in shape.heads._asdict().items() if name != "qk_norm"}
    return heads | {
        "tokens": shape.sequences * shape.tokens,
        "sequences": shape.sequences,
        "max_step": shape.tokens,
        "max_length": shape.length,
        "capacity": shape.length,
        "window": 0,
        "settled": 0,
        "scale": shape.heads.head_dim**-0.5,
        "softcap": 0.0,
        "norm_eps": 1e-6,
    }


class Layers:
    """One step through layers with a cache each."""

    def __init__(self, kernels: KernelLibrary, stream: gpu.Stream, shape: Shape, layers: int) -> None:
        self.kernels, self.stream = kernels, stream
        self.arrays = {**_activations(shape), **_caches(shape, layers)}
        values: dict[str, Any] = {"kv_scale": None, "workspace": None, "counters": None, **_sizes(shape)}
        values |= {name: array.pointer for name, array in self.arrays.items()}
        sized = kernels.arguments("attention", **values)
        for name in ("workspace", "counters"):
            self.arrays[name] = gpu.Array(np.zeros(kernels.query(f"attention_{name}", sized), np.uint8))
            values[name] = self.arrays[name].pointer
        states = {name: self.arrays[name] for name in ("kv", "kv_scale") if name in self.arrays}
        self.layers = []
        for layer in range(layers):
            own = {name: array.pointer + layer * array.nbytes // layers for name, array in states.items()}
            self.layers.append(kernels.arguments("attention", **(values | own)))

    def microseconds(self, repeats: int = 20) -> float:
        """Of one layer in a captured chain of all."""

        def chain() -> None:
            for layer in self.layers:
                self.kernels.launch("attention", layer, self.stream.handle)

        return self.stream.microseconds(self.stream.capture(chain), repeats) / len(self.layers)


def torch_time(torch: Any, work: Callable[[], Any], repeats: int = 20) -> float:
    """Microseconds of one call, by PyTorch's events."""
    for _ in range(5):
        work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / repeats * 1e3


def torch_flash(torch: Any, shape: Shape) -> float:
    """Microseconds of PyTorch's FlashAttention 2, causal, one sequence: also mma.sync, also SM80 instructions."""
    heads = shape.heads
    q = torch.randn(1, heads.heads, shape.tokens, heads.head_dim, device="cuda", dtype=torch.float16)
    k, v = (torch.randn_like(q) for _ in range(2))
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        return torch_time(torch, lambda: attend(q, k, v, is_causal=True))


def decode_shapes() -> Iterator[Shape]:
    for past in (0, 63, 127, 255, 511, 1023, 2047, 8191, 32767):
        yield Shape(SMALL, 1, 1, past)
    for past in (0, 511, 8191):
        yield Shape(SMALL, 1, 1, past, planned=32768)
    for past in (511, 8191):
        yield Shape(SMALL, 8, 1, past)
    yield Shape(SMALL, 1, 4, 8191)
    yield Shape(SMALL, 1, 16, 8191)
    for tokens in (16, 32, 64, 65):  # the last is too long for decode launches
        yield Shape(SMALL, 1, tokens, 1500, planned=8192)
    for past in (8191, 32767):
        yield Shape(SMALL, 1, 1, past, int8=True)
    yield Shape(LARGE, 1, 1, 8191)
    for past in (511, 8191, 32767):
        yield Shape(DENSE, 1, 1, past)
    yield Shape(DENSE, 8, 1, 8191)


def prefill_shapes() -> Iterator[Shape]:
    for heads in (SMALL, LARGE, DENSE):
        for tokens in (64, 512, 2048, 8192):
            yield Shape(heads, 1, tokens, 0)
    yield Shape(SMALL, 1, 512, 7680)
    yield Shape(LARGE, 1, 2048, 0, int8=True)
    yield Shape(DENSE, 1, 2048, 0, int8=True)


def decode_rows(kernels: KernelLibrary, stream: gpu.Stream, bandwidth: float) -> Iterator[dict[str, Any]]:
    for shape in decode_shapes():
        layers = max(4, min(64, CACHES // max(1, shape.sequences * shape.length * shape.heads.kv_heads * 1024)))
        time = Layers(kernels, stream, shape, layers).microseconds()
        case = f"decode, {shape.name}, {shape.sequences} x {shape.tokens} after {shape.past} of {shape.length}"
        part = shape.read_bytes / time / 1e3 / bandwidth
        yield measure.row("attention", case, time, shape.bytes, shape.operations, of_copy_bandwidth=part)


def prefill_row(kernels: KernelLibrary, stream: gpu.Stream, shape: Shape, rate: float) -> dict[str, Any]:
    time = Layers(kernels, stream, shape, 4).microseconds(10)
    case = f"prefill, {shape.name}, {shape.tokens} after {shape.past}"
    part = shape.operations / time / 1e6 / rate
    return measure.row("attention", case, time, shape.bytes, shape.operations, of_matrix_rate=part)


def prefill_rows(kernels: KernelLibrary, stream: gpu.Stream, rate: float) -> Iterator[dict[str, Any]]:
    torch: Any = importlib.import_module("torch")
    for shape in prefill_shapes():
        row = prefill_row(kernels, stream, shape, rate)
        if shape.past == 0 and not shape.int8 and shape.tokens >= 2048:
            row["flash_attention_2_of_matrix_rate"] = shape.operations / torch_flash(torch, shape) / 1e6 / rate
        yield row


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", type=Path, default=ROOT / "build/kernels/liborin_kernels.so")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    stream = gpu.Stream()
    kernels, ceilings = KernelLibrary(args.library), measure.ceilings(stream)
    rows = []
    for row in (
        *decode_rows(kernels, stream, ceilings["copy_gb_per_s"]),
        *prefill_rows(kernels, stream, ceilings["matrix_tflop_per_s"]),
    ):
        rows.append(row)
        measure.show(row)
    if args.out:
        measure.write(args.out, {"ceilings": ceilings, "rows": rows})


if __name__ == "__main__":
    main()
