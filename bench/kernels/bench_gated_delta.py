# SPDX-License-Identifier: Apache-2.0
"""Times of the gated delta op on the GPU of this machine, inside captured chains.

PYTHONPATH=toolkit:tests python bench/kernels/bench_gated_delta.py [--library PATH] [--out RESULT.json]

Decode: every launch of a chain works on a state of its own, many times the cache in all. Prefill: the tensors of one
step alone exceed it. The attention that stands beside it is that of a Qwen3-0.6B layer (16 query heads, 8 key/value
heads of 128, causal) by PyTorch, where PyTorch is there.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import runtime as rt

import gpu
from gated_delta_cases import QWEN_MIDDLE, QWEN_SMALL, STATES, Heads, Launch, Row, step
from orinkit.engines.kernels import KernelLibrary

ROOT = Path(__file__).parents[2]
STATE_BYTES = 256 << 20
"""Recurrent states of all steps of a decode chain."""


def copy_bandwidth(stream: gpu.Stream) -> float:
    """Bytes per second, read plus written, of a device copy of 1 GiB."""
    size = 1 << 30
    source, target = check_malloc(size), check_malloc(size)
    kind = rt.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    time = stream.microseconds(lambda: gpu.check(rt.cudaMemcpyAsync(target, source, size, kind, stream.handle)))
    gpu.check(rt.cudaFree(source))
    gpu.check(rt.cudaFree(target))
    return 2 * size / time * 1e6


def check_malloc(size: int) -> int:
    return int(gpu.check(rt.cudaMalloc(size)))


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
    """PyTorch's causal attention of a Qwen3-0.6B layer, float16, by each of its back ends; nothing without PyTorch."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return
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


def measure(kernels: KernelLibrary, stream: gpu.Stream) -> Iterator[dict[str, Any]]:
    bandwidth = copy_bandwidth(stream)
    yield {"case": "device copy", "bytes_per_second": bandwidth}
    for heads in (QWEN_SMALL, QWEN_MIDDLE):
        for batch, tokens in ((1, 1), (8, 1), (32, 1), (1, 2), (1, 4), (1, 8), (1, 12)):
            time = decode_chain(kernels, stream, heads, batch, tokens)
            moved = batch * heads.value * heads.dim * heads.dim * 4 * 2
            yield {
                "case": f"decode, {heads.value} heads, {batch} sequences of {tokens}",
                "us": time,
                "of_copy_bandwidth": moved / time * 1e6 / bandwidth,
            }
    for tokens in (17, 64, 128, 377, 512, 1024, 2048, 4096):
        yield {"case": f"prefill, 16 heads, {tokens}", "us": prefill_time(kernels, stream, QWEN_SMALL, [Row(tokens)])}
    yield {"case": "prefill, 32 heads, 2048", "us": prefill_time(kernels, stream, QWEN_MIDDLE, [Row(2048)])}
    rows = [Row(256, 0, slot) for slot in range(8)]
    yield {"case": "prefill, 16 heads, 8 sequences of 256", "us": prefill_time(kernels, stream, QWEN_SMALL, rows)}
    for name, time in attention_times(2048):
        yield {"case": f"PyTorch {name}, 16 heads of 128, 2048", "us": time}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", type=Path, default=ROOT / "build/kernels/liborin_kernels.so")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    stream = gpu.Stream()
    rows = []
    for row in measure(KernelLibrary(args.library), stream):
        rows.append(row)
        print(*(f"{value:.4g}" if isinstance(value, float) else value for value in row.values()), sep="  ")
    query = "--query-gpu=name,driver_version,clocks.sm,clocks.mem"
    gpus = subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, check=True)
    if args.out:
        record = {
            "command": " ".join(sys.argv),
            "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
            "gpu": gpus.stdout.strip(),
            "rows": rows,
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
