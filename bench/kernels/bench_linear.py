# SPDX-License-Identifier: Apache-2.0
"""Times of the linear op on the GPU of this machine, inside captured chains.

PYTHONPATH=toolkit:tests python bench/kernels/bench_linear.py [--library PATH] [--out RESULT.json]

Every launch of a chain reads a weight of its own. A fraction is of the bandwidth of a device copy, read plus written.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gpu
import measure
from orinkit.engines.kernels import KernelLibrary

LIBRARY = Path(__file__).parents[2] / "build/kernels/liborin_kernels.so"
WEIGHTS = 512 << 20
"""Bytes of memory that the weights of a chain are spread over."""
MOST_LAUNCHES = 400


@dataclass(frozen=True)
class Shape:
    """One product."""

    tokens: int
    n: int
    k: int
    bits: int = 16
    has_norm: int = 1

    @property
    def weight_bytes(self) -> int:
        return self.n * self.k * self.bits // 8


def shapes() -> list[Shape]:
    """Small projections, layers that stay wide, heads, prefill."""
    projections = ((32, 1024), (64, 2560), (64, 4096), (96, 5120))
    small = [Shape(tokens, n, k) for n, k in projections for tokens in (1, 4, 16, 64, 2048)]
    layers = [
        Shape(tokens, n, k, bits) for n, k in ((1024, 3584), (7168, 1024)) for bits in (16, 8) for tokens in (1, 16, 64)
    ]
    heads = [Shape(tokens, 248_320, 1024, bits) for bits in (16, 8) for tokens in (1, 4, 16, 64)]
    prefill = [Shape(2048, n, k, bits, 0) for n, k in ((18_432, 2560), (1024, 3584)) for bits in (16, 8)]
    return small + layers + heads + prefill


def microseconds(kernels: KernelLibrary, stream: gpu.Stream, shape: Shape, weights: gpu.Array) -> float:
    """Microseconds of one product in a chain."""
    rng = np.random.default_rng(1)
    arrays = {
        "x": gpu.Array(rng.standard_normal((shape.tokens, shape.k)).astype(np.float16)),
        "scale": gpu.Array(np.full(shape.n, 0.01, np.float16)),
        "norm": gpu.Array(np.ones(shape.k, np.float32)),
        "y": gpu.Array(np.zeros((shape.tokens, shape.n), np.float32)),
        "workspace": gpu.Array(np.zeros((shape.tokens, shape.k), np.float16)),
    }
    values: dict[str, Any] = dict.fromkeys(("bias", "residual", "rows")) | {
        name: array.pointer for name, array in arrays.items()
    }
    values |= {
        "scale": values["scale"] if shape.bits == 8 else None,
        "norm": values["norm"] if shape.has_norm else None,
    }
    values |= {"tokens": shape.tokens, "outputs": shape.tokens, "n": shape.n, "k": shape.k, "bits": shape.bits}
    values |= {"swiglu": 0, "float32_output": 0, "norm_eps": 1e-6}
    launches = max(1, min(MOST_LAUNCHES, WEIGHTS // shape.weight_bytes))
    stride = WEIGHTS // launches // 16 * 16
    chain = [kernels.arguments("linear", weight=weights.pointer + i * stride, **values) for i in range(launches)]

    def run() -> None:
        for arguments in chain:
            kernels.launch("linear", arguments, stream.handle)

    return stream.microseconds(stream.capture(run), repeats=10) / launches


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", type=Path, default=LIBRARY)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    stream = gpu.Stream()
    kernels = KernelLibrary(args.library)
    ceilings = measure.ceilings(stream)
    weights = gpu.Array(np.resize(np.random.default_rng(2).integers(0, 60, 1 << 22).astype(np.uint8), WEIGHTS))
    rows = []
    for shape in shapes():
        time = microseconds(kernels, stream, shape, weights)
        moved = shape.weight_bytes + 2 * shape.tokens * (shape.n + shape.k)
        case = f"{shape.tokens} token{'s' * (shape.tokens > 1)}, {shape.n}x{shape.k}, {shape.bits} bits"
        facts = asdict(shape) | {"of_copy_bandwidth": moved / time / 1e3 / ceilings["copy_gb_per_s"]}
        rows.append(measure.row("linear", case, time, moved, 2 * shape.tokens * shape.n * shape.k, **facts))
        measure.show(rows[-1])
    if args.out:
        measure.write(args.out, {"ceilings": ceilings, "rows": rows})


if __name__ == "__main__":
    main()
