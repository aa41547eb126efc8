# SPDX-License-Identifier: Apache-2.0
"""Times of the INT4 GEMM on the GPU of this machine, inside captured chains.

PYTHONPATH=toolkit:tests python bench/kernels/bench_int4_gemm.py [--library PATH] [--out RESULT.json]

Every launch of a chain reads weights of its own, many times the L2 cache in all. Beside each time stands that of a
kernel that only reads as many bytes (up to 16 tokens), or the rate of mma.sync from registers (more tokens).
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import driver, nvrtc
from cuda.bindings import runtime as rt

import gpu
import measure
from int4_gemm_cases import WISHES
from orinkit.engines.kernels import KernelLibrary

ROOT = Path(__file__).parents[2]
WEIGHTS = 1 << 30
"""Bytes of weights that chains walk through."""
CHAIN_BYTES = 400_000_000
GROUP = 128
COOLING_S = 10
"""Seconds after products at the matrix rate until the clock is back."""
MAX_TOKENS, MAX_WIDTH, MAX_LOGITS = 2048, 28672, 16 * 248320
FEW = ((7168, 1024, True), (1024, 3584, False), (8192, 1024, True), (1024, 2048, False), (248320, 1024, True))
"""N, K, with a norm in front; without one a residual follows."""
SHAPES = (*FEW, (18432, 2560, True), (2560, 9216, False))
MANY = ((7168, 1024, False), (1024, 3584, False), (18432, 2560, False), (2560, 9216, False))


class Ceilings:
    """The kernels of int4_gemm_ceilings.cu, compiled here."""

    def __init__(self, stream: gpu.Stream, arch: int) -> None:
        source = (Path(__file__).parent / "int4_gemm_ceilings.cu").read_bytes()
        program = gpu.check(nvrtc.nvrtcCreateProgram(source, b"ceilings.cu", 0, [], []))
        gpu.check(nvrtc.nvrtcCompileProgram(program, 1, [f"--gpu-architecture=sm_{arch}".encode()]))
        cubin = bytearray(gpu.check(nvrtc.nvrtcGetCUBINSize(program)))
        gpu.check(nvrtc.nvrtcGetCUBIN(program, cubin))
        self._module = gpu.check(driver.cuModuleLoadData(bytes(cubin)))
        self._stream = stream

    def launch(self, name: str, blocks: int, threads: int, *arguments: tuple[Any, Any]) -> None:
        function = gpu.check(driver.cuModuleGetFunction(self._module, name.encode()))
        packed = (tuple(value for value, _ in arguments), tuple(kind for _, kind in arguments))
        gpu.check(driver.cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, self._stream.handle, packed, 0))


@dataclass(frozen=True)
class Bench:
    kernels: KernelLibrary
    stream: gpu.Stream
    ceilings: Ceilings
    weights: int
    scales: gpu.Array
    x: gpu.Array
    residual: gpu.Array
    norm: gpu.Array
    y: gpu.Array
    workspace: gpu.Array
    semaphores: gpu.Array

    @classmethod
    def make(cls, kernels: KernelLibrary, stream: gpu.Stream) -> Bench:
        rng = np.random.default_rng(0)
        weights = int(gpu.check(rt.cudaMalloc(WEIGHTS)))
        block = rng.integers(0, 256, 1 << 26, np.uint8)
        to_device = rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        for at in range(0, WEIGHTS, block.nbytes):
            gpu.check(rt.cudaMemcpy(weights + at, block.ctypes.data, block.nbytes, to_device))
        return cls(
            kernels,
            stream,
            Ceilings(stream, kernels.device.arch),
            weights,
            gpu.Array((rng.standard_normal(1 << 25) * 0.02).astype(np.float16)),
            gpu.Array(rng.standard_normal(MAX_TOKENS * MAX_WIDTH, np.float32).astype(np.float16)),
            gpu.Array(np.zeros(MAX_TOKENS * MAX_WIDTH, np.float16)),
            gpu.Array(np.ones(MAX_WIDTH, np.float32)),
            gpu.Array(np.zeros(max(MAX_TOKENS * MAX_WIDTH, MAX_LOGITS), np.float16)),
            gpu.Array(np.zeros(1 << 28, np.uint8)),
            gpu.Array(np.zeros(4096, np.int32)),
        )

    def arguments(self, tokens: int, n: int, k: int, has_norm: bool, turn: int, **wishes: int) -> ctypes.Structure:
        """Of the chain's launch number `turn`."""
        weight, scales = n * k // 2, n * k // GROUP * 2
        return self.kernels.arguments(
            "int4_gemm",
            x=self.x.pointer,
            weight=self.weights + turn % (WEIGHTS // weight) * weight,
            scales=self.scales.pointer + turn % (self.scales.nbytes // scales) * scales,
            zeros=None,
            norm=self.norm.pointer if has_norm else None,
            bias=None,
            residual=None if has_norm else self.residual.pointer,
            rows=None,
            columns=None,
            beside=None,
            y=self.y.pointer,
            workspace=self.workspace.pointer,
            semaphores=self.semaphores.pointer,
            tokens=tokens,
            n=n,
            k=k,
            group_size=GROUP,
            swiglu=0,
            float32_output=0,
            norm_eps=1e-6,
            **{wish: wishes.get(wish, 0) for wish in WISHES},
        )

    def launches(self, nbytes: int, most: int = 96) -> int:
        return max(4, min(most, CHAIN_BYTES // nbytes))

    def gemm(self, tokens: int, n: int, k: int, has_norm: bool, repeats: int = 20, **wishes: int) -> float:
        """Microseconds of one launch."""
        count = self.launches(n * k // 2, 96 if tokens <= 64 else 8)
        structs = [self.arguments(tokens, n, k, has_norm, turn, **wishes) for turn in range(count)]

        def chain() -> None:
            for struct in structs:
                self.kernels.launch("int4_gemm", struct, self.stream.handle)

        return self.stream.microseconds(self.stream.capture(chain), repeats) / count

    def read_only(self, nbytes: int) -> float:
        """Microseconds of a launch that only reads; the best of a few grids."""
        count, pointer = self.launches(nbytes), ctypes.c_void_p

        def chain(blocks: int) -> None:
            for turn in range(count):
                at = self.weights + turn % (WEIGHTS // nbytes) * (nbytes // 16 * 16)
                arguments = ((at, pointer), (nbytes // 16, ctypes.c_int), (self.y.pointer, pointer))
                self.ceilings.launch("read_only", blocks, 512, *arguments)

        grids = [self.kernels.device.sm_count * times for times in (1, 2, 3)]
        times = [self.stream.microseconds(self.stream.capture(lambda g=grid: chain(g))) for grid in grids]  # type: ignore[misc]
        return min(times) / count

    def mma_rate(self) -> float:
        """Operations per second of mma.sync from registers, 8 warps per SM."""
        steps, blocks = 20_000, self.kernels.device.sm_count
        arguments = ((self.y.pointer, ctypes.c_void_p), (steps, ctypes.c_int), (12345, ctypes.c_uint))
        time = self.stream.microseconds(lambda: self.ceilings.launch("mma_only", blocks, 256, *arguments), 5, 1)
        return blocks * 8 * steps * 32 * 4096 / time * 1e6


def moved(tokens: int, n: int, k: int, has_norm: bool) -> int:
    """Bytes: weights with scales, x, y, and the norm's weight or a residual."""
    return n * k // 2 + n * k // GROUP * 2 + 2 * tokens * (n + k) + (4 * k if has_norm else 2 * tokens * n)


def name(tokens: int, n: int, k: int) -> str:
    return f"{tokens} token{'s' * (tokens > 1)}, {n}x{k}"


def measure_few(bench: Bench) -> Iterator[dict[str, Any]]:
    """Up to 16 tokens: limited by reading the weights."""
    for n, k, has_norm in SHAPES:
        floor = bench.read_only(n * k // 2 + n * k // GROUP * 2)
        for tokens in (1, 4, 16):
            time = bench.gemm(tokens, n, k, has_norm)
            asked = moved(tokens, n, k, has_norm), 2 * tokens * n * k
            facts = {"tokens": tokens, "n": n, "k": k, "norm": has_norm, "read_only_us": round(floor, 2)}
            yield measure.row("int4_gemm", name(tokens, n, k), time, *asked, **facts)


def measure_many(bench: Bench, rate: float) -> Iterator[dict[str, Any]]:
    """More tokens: limited by the tensor cores."""
    for n, k, has_norm in MANY:
        for tokens in (17, 64, 128, 256, 512, 1024, 2048):
            time = bench.gemm(tokens, n, k, has_norm)
            speed = 2 * tokens * n * k / time * 1e6
            facts = {"tokens": tokens, "n": n, "k": k, "norm": has_norm, "tflop_per_s": round(speed / 1e12)}
            asked = moved(tokens, n, k, has_norm), 2 * tokens * n * k
            yield measure.row(
                "int4_gemm", name(tokens, n, k), time, *asked, **facts, of_mma_sync=round(speed / rate, 3)
            )


def shown(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        measure.show(row)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", type=Path, default=ROOT / "build/kernels/liborin_kernels.so")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    stream = gpu.Stream()
    bench = Bench.make(KernelLibrary(args.library), stream)
    # Few tokens first: products at the matrix rate heat the GPU, whose clock then falls by an eighth.
    rows = [*shown(measure_few(bench))]
    clock = measure.machine()["clocks.sm"]
    rate = bench.mma_rate()
    ceilings = measure.ceilings(stream) | {"mma_sync_tflop_per_s": rate / 1e12}
    print(ceilings)
    time.sleep(COOLING_S)
    rows += shown(measure_many(bench, rate))
    if args.out:
        measure.write(args.out, {"ceilings": ceilings, "clock_after_few_tokens": clock, "rows": rows})


if __name__ == "__main__":
    main()
