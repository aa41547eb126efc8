# SPDX-License-Identifier: Apache-2.0
"""The `cuda` engine on a graph of true shapes with random weights: prefill, captured decode, and time by op.

    python bench/cuda_engine.py BUNDLE KERNELS [--depths 10 2048 8000] [--batches 1 8] [--prompts 512 2048] [--out FILE]

BUNDLE needs manifest.json and model.onnx only: weights are random bytes of the sizes that the graph asks for. Decode is
one captured step without sampling, launched again and again with the host waiting only at the end. Time by op is that
of the launches of one kind, captured one behind another over all layers, so that weights come from memory.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from orinkit.bundle.manifest import decode
from orinkit.engines.base import Profile, StepInputs
from orinkit.engines.cuda import CudaContext, CudaEngine
from orinkit.engines.launches import StepShape
from orinkit.engines.program import Program, read_program

CAPACITY = 8192


def random_weights(program: Program, path: Path) -> None:
    """A data file whose tensors are finite and differ from row to row."""
    rng = np.random.default_rng(0)
    data = np.memmap(path, np.uint8, "w+", shape=(max(w.offset + w.nbytes for w in program.weights.values()),))
    blocks = {
        "int8": rng.integers(0, 256, 1 << 20, dtype=np.uint8),
        "float16": (rng.standard_normal(1 << 16) * 0.004).astype(np.float16).view(np.uint8),
        "float32": np.ones(1 << 10, np.float32).view(np.uint8),
    }
    for weight in program.weights.values():
        data[weight.offset : weight.offset + weight.nbytes] = np.resize(blocks[weight.dtype], weight.nbytes)
    data.flush()


def microseconds(engine: CudaEngine, work: Callable[[], None], repeats: int) -> float:
    """Mean time of one replay of `work`, captured."""
    replay = engine.gpu.capture(work)
    for _ in range(5):
        replay()
    engine.gpu.synchronise()
    start = time.perf_counter()
    for _ in range(repeats):
        replay()
    engine.gpu.synchronise()
    return (time.perf_counter() - start) / repeats * 1e6


def step(vocab: int, lengths: list[int], past: int) -> StepInputs:
    """A step of sequences with `lengths` new tokens each, behind `past` tokens, that wants each one's last logits."""
    edges = np.cumsum([0, *lengths], dtype=np.int32)
    count = len(lengths)
    ids = np.random.default_rng(1).integers(0, vocab, int(edges[-1])).astype(np.int32)
    slots = np.arange(count, dtype=np.int32)
    return StepInputs(ids, edges, np.full(count, past, np.int32), slots, (edges[1:] - 1).astype(np.int32))


def by_op(engine: CudaEngine, context: CudaContext, shape: StepShape) -> dict[str, dict[str, float]]:
    """Microseconds per launch and in total, by name of the op within a layer."""
    groups = defaultdict(list)
    for launch in context.step.launches:
        launch.set(shape)
        groups[re.sub(r"\d+", "I", launch.name)].append(launch)
    found = {}
    for name, launches in groups.items():

        def work(launches: list[Any] = launches) -> None:
            for launch in launches:
                engine.library.launch(launch.launcher, launch.arguments, engine.gpu.stream)

        each = microseconds(engine, work, 30) / len(launches)
        found[name] = {"launches": len(launches), "each": round(each, 2), "total": round(each * len(launches), 1)}
    return found


def measure(engine: CudaEngine, program: Program, args: argparse.Namespace) -> dict[str, Any]:
    """All figures; prints them as they come."""
    record: dict[str, Any] = {"prefill": {}, "decode": {}, "by_op": {}}
    most = max(args.prompts)
    caches = engine.caches(max(args.batches), CAPACITY, most)
    prefill: Any = engine.context(Profile("prefill", most, 1), caches)
    for tokens in args.prompts:
        prefill.run(step(program.vocab, [tokens], 0))
        shape = StepShape(tokens, 1, 1, tokens, tokens)
        us = microseconds(engine, lambda shape=shape: prefill.step.enqueue(shape), 10)  # type: ignore[misc]
        record["prefill"][tokens] = {"ms": round(us / 1e3, 2), "tokens_per_second": round(tokens / us * 1e6)}
        print("prefill", tokens, record["prefill"][tokens], flush=True)
    record["by_op"][f"prefill {most}"] = by_op(engine, prefill, StepShape(most, 1, 1, most, most))
    for batch in args.batches:
        context: Any = engine.context(Profile("decode", batch, batch), caches)
        shape = StepShape(batch, batch, batch, 1, CAPACITY)
        for depth in args.depths:
            context.run(step(program.vocab, [1] * batch, depth))
            us = microseconds(engine, lambda: context.step.enqueue(shape), 200)  # noqa: B023
            found = {"us": round(us, 1), "tokens_per_second": round(batch / us * 1e6)}
            record["decode"][f"batch {batch}, depth {depth}"] = found
            print("decode", batch, depth, found, flush=True)
        record["by_op"][f"decode {batch}"] = by_op(engine, context, shape)
    return record


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("kernels", type=Path)
    parser.add_argument("--depths", type=int, nargs="+", default=[10, 2048, 8000])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    manifest = decode((args.bundle / "manifest.json").read_bytes())
    program = read_program(args.bundle / "model.onnx")
    query = ["nvidia-smi", "--query-gpu=name,clocks.sm,clocks.mem,driver_version", "--format=csv,noheader"]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "model.data"
        random_weights(program, data)
        engine = CudaEngine(args.bundle / "model.onnx", data, manifest.model, args.kernels)
        record = measure(engine, program, args)
    record |= {
        "gpu": subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip(),
        "model": manifest.name,
        "weight_megabytes": round(engine.weight_bytes / 1e6, 1),
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
