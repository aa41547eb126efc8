# SPDX-License-Identifier: Apache-2.0
"""Times of the gated delta op on the GPU of this machine, inside captured chains.

PYTHONPATH=toolkit:tests python bench/kernels/bench_gated_delta.py [--library PATH] [--out RESULT.json]

Decode: every launch of a chain works on a state of its own, many times the cache in all. Prefill: the tensors of one
step alone exceed it. The attention that stands beside it in the same run is that of a Qwen3-0.6B layer (16 query heads,
8 key/value heads of 128, causal): our op with rotary, norms and cache, and PyTorch's product alone with 16 key/value
heads.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bench_attention
import numpy as np

import gpu
import measure
from gated_delta_cases import QWEN_MIDDLE, QWEN_SMALL, STATES, Heads, Launch, Row, step
from orinkit.engines.kernels import KernelLibrary

ROOT = Path(__file__).parents[2]
STATE_BYTES = 256 << 20
"""Recurrent states of all steps of a decode chain."""


def chain_time(stream: gpu.Stream, works: list[Callable[[], None]]) -> float:
    """Microseconds of one launch, of a captured chain of `works`."""

    def chain() -> None:
        for work in works:
            work()

    return stream.microseconds(stream.capture(chain)) / len(works)


def decode_chain(kernels: KernelLibrary, stream: gpu.Stream, heads: Heads, batch: int, tokens: int) -> float:
    """Time of a step of `batch` sequences with `tokens` each; as the layers of a model, every step of the chain has
    states of its own, and all share the slots."""
    launch = Launch(step(1, heads, [Row(tokens, 5, slot) for slot in range(batch)], slots=batch), kernels, stream)
    links = STATE_BYTES // launch.host["rec"].nbytes
    states = {name: gpu.Array(np.stack([launch.host[name]] * links)) for name in STATES}
    sizes = {name: launch.host[name].nbytes for name in STATES}
    works = [
        launch.with_arguments(**{name: states[name].pointer + link * sizes[name] for name in STATES})
        for link in range(links)
    ]
    return chain_time(stream, works)


def prefill_time(kernels: KernelLibrary, stream: gpu.Stream, heads: Heads, rows: list[Row]) -> float:
    launches = [Launch(step(seed, heads, rows, slots=len(rows)), kernels, stream) for seed in range(2)]
    return chain_time(stream, [launch.enqueue for launch in launches * 4])


def attention_times(tokens: int) -> Iterator[tuple[str, float]]:
    """PyTorch's causal attention of 16 heads, float16, by each of its back ends."""
    torch: Any = importlib.import_module("torch")
    attend, backends = torch.nn.functional.scaled_dot_product_attention, torch.nn.attention.SDPBackend
    q = torch.randn(1, 16, tokens, 128, device="cuda", dtype=torch.float16)
    k, v = (torch.randn(1, 16, tokens, 128, device="cuda", dtype=torch.float16) for _ in range(2))
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
        with torch.nn.attention.sdpa_kernel(getattr(backends, name)):
            for _ in range(10):
                attend(q, k, v, is_causal=True)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(50):
                attend(q, k, v, is_causal=True)
            end.record()
            end.synchronize()
            yield name.lower(), start.elapsed_time(end) / 50 * 1e3


def moved(heads: Heads, sequences: int, tokens: int) -> int:
    """Bytes: states read and written; q, k, v and z in, y out, for each token."""
    states = 2 * 4 * sequences * heads.value * heads.dim**2
    return states + 2 * tokens * (heads.channels + 2 * heads.value * heads.dim)


def decode_rows(kernels: KernelLibrary, stream: gpu.Stream, bandwidth: float) -> Iterator[dict[str, Any]]:
    for heads in (QWEN_SMALL, QWEN_MIDDLE):
        for batch, tokens in ((1, 1), (8, 1), (32, 1), (1, 2), (1, 4), (1, 8), (1, 12)):
            time = decode_chain(kernels, stream, heads, batch, tokens)
            case = f"decode, {heads.value} heads, {batch} sequences of {tokens}"
            part = moved(heads, batch, 0) / time / 1e3 / bandwidth
            operations = 6 * batch * tokens * heads.value * heads.dim**2  # S k, k u and S q
            nbytes = moved(heads, batch, batch * tokens)
            yield measure.row("gated_delta", case, time, nbytes, operations, of_copy_bandwidth=part)


def prefill_rows(kernels: KernelLibrary, stream: gpu.Stream) -> Iterator[dict[str, Any]]:
    """Operations: products within chunks of 64 tokens, and with the state."""
    for heads, sequences, tokens in (
        *((QWEN_SMALL, 1, tokens) for tokens in (17, 64, 128, 377, 512, 1024, 2048, 4096)),
        (QWEN_MIDDLE, 1, 2048),
        (QWEN_SMALL, 8, 256),
    ):
        time = prefill_time(kernels, stream, heads, [Row(tokens, 0, slot) for slot in range(sequences)])
        nbytes = moved(heads, sequences, sequences * tokens)
        operations = 6 * sequences * tokens * heads.value * heads.dim * (64 + heads.dim)
        case = f"prefill, {heads.value} heads, {sequences} sequences of {tokens}"
        yield measure.row("gated_delta", case, time, nbytes, operations)


def counterparts(kernels: KernelLibrary, stream: gpu.Stream, rate: float) -> Iterator[dict[str, Any]]:
    """Attention of a Qwen3-0.6B layer: our op, then PyTorch's."""
    shape = bench_attention.Shape(bench_attention.OLDER, 1, 2048, 0)
    yield bench_attention.prefill_row(kernels, stream, shape, rate)
    for name, time in attention_times(2048):
        case = f"{name}, Qwen3-0.6B heads, 2048"
        yield measure.row("PyTorch attention", case, time, shape.bytes, shape.operations)


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
        *prefill_rows(kernels, stream),
        *counterparts(kernels, stream, ceilings["matrix_tflop_per_s"]),
    ):
        rows.append(row)
        measure.show(row)
    if args.out:
        measure.write(args.out, {"ceilings": ceilings, "rows": rows})


if __name__ == "__main__":
    main()
