# SPDX-License-Identifier: Apache-2.0
"""The `cuda` engine on a graph of true shapes with random weights: prefill, captured decode, and time by op.

    python bench/cuda_engine.py BUNDLE KERNELS [--depths 10 2048 8000] [--batches 1 8] [--prompts 512 2048] [--out FILE]

BUNDLE needs manifest.json and model.onnx only: weights are random bytes of the sizes that the graph asks for. Decode is
what serving does: the captured step with sampling and ring, launched ahead by the pipeline. Host time is the processor
time of the thread that drives it, the median of blocks of steps; beside it stands what a sleep as long as a step costs
by itself. Time by op is that of the launches of one kind, captured one behind another over all layers, so that weights
come from memory.
"""

from __future__ import annotations

import argparse
import gc
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
from orinkit.engines.base import Chosen, Limits, Pipeline, Profile, Seat, StepInputs
from orinkit.engines.cuda import CudaContext, CudaEngine
from orinkit.engines.launches import StepShape
from orinkit.engines.program import Program, read_program
from orinkit.runtime.sampling import Sampling, settings_of

CAPACITY = 8192
WARM, STEPS, BLOCK = 30, 300, 50
SYSTEM, QUESTIONS = 1500, (8, 16, 32, 64)
SHORT = (8, 16, 32, 64, 128, 256)
LIMITS = Limits(biases=300, stops=32, logprobs=20, run_ahead=2, snapshots=1)


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


def measure_steps(engine: CudaEngine, program: Program, args: argparse.Namespace, record: dict[str, Any]) -> None:
    """Prefill, and time by op."""
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
        context.run(step(program.vocab, [1] * batch, 100))
        record["by_op"][f"decode {batch}"] = by_op(engine, context, StepShape(batch, batch, batch, 1, CAPACITY))


def measure(engine: CudaEngine, program: Program, args: argparse.Namespace) -> dict[str, Any]:
    """All figures; prints them as they come. Decode first: products at the matrix rate heat the GPU, whose clock then
    falls by up to an eighth."""
    record: dict[str, Any] = {"prefill": {}, "decode": {}, "by_op": {}, "reuse": {}}
    measure_serving(engine, program, args, record)
    measure_steps(engine, program, args, record)
    return record


def measure_serving(engine: CudaEngine, program: Program, args: argparse.Namespace, record: dict[str, Any]) -> None:
    """Decode and short prefills through the pipeline, with what it allocates meanwhile."""
    most = max(args.prompts)
    capacity = max(args.depths) + 2 * STEPS
    pipeline = engine.pipeline(max(args.batches), capacity, min(most, capacity), LIMITS)
    gc.collect()
    gc.freeze()  # as the worker does
    allocations = engine.gpu.num_allocations
    for batch in args.batches:
        for depth in args.depths:
            record["decode"][f"batch {batch}, depth {depth}"] = decoded(pipeline, program.vocab, batch, depth, most)
            print("decode", batch, depth, record["decode"][f"batch {batch}, depth {depth}"], flush=True)
    record["short_prefill"] = short_prefills(engine, pipeline, program.vocab)
    for tokens in QUESTIONS:
        record["reuse"][tokens] = reused(pipeline, program.vocab, most, tokens)
        print("reuse", tokens, record["reuse"][tokens], flush=True)
    record["allocations_while_serving"] = engine.gpu.num_allocations - allocations


def short_prefills(engine: CudaEngine, pipeline: Any, vocab: int) -> dict[int, dict[str, float]]:
    """Milliseconds until a step of a few tokens behind 1,500 is done: enqueued kernel by kernel, and captured."""
    contexts, found = pipeline._captures.contexts, {}
    for tokens in SHORT:
        contexts.send(step(vocab, [tokens], SYSTEM), tokens)
        shape = StepShape(tokens, 1, 1, tokens, contexts.caches.capacity)

        def work(shape: StepShape = shape) -> None:
            contexts.prefill.enqueue(shape)

        ways = {"enqueued": work, "captured": engine.gpu.capture(work)}
        found[tokens] = {name: round(1e3 * until_done(engine, way), 3) for name, way in ways.items()}
        print("short prefill", tokens, found[tokens], flush=True)
    return found


def until_done(engine: CudaEngine, work: Callable[[], None]) -> float:
    """Median seconds from the start of `work` on an idle GPU to its end."""
    times = []
    for _ in range(21):
        engine.gpu.synchronise()
        start = time.perf_counter()
        work()
        engine.gpu.synchronise()
        times.append(time.perf_counter() - start)
    return sorted(times)[10]


def reused(pipeline: Pipeline, vocab: int, chunk: int, tokens: int) -> dict[str, float]:
    """Time to the first token of a prompt whose first 1,500 tokens are computed, and of one where they were kept, with
    `tokens` behind them: in the slot that has their rows still, or copied to another."""
    ids = np.random.default_rng(0).integers(0, vocab, SYSTEM + tokens).astype(np.int32)
    seat = Seat(tuple(ids.tolist()), settings_of(Sampling()), {}, (), SYSTEM + tokens + 2)

    def prefill(start: int, end: int) -> None:
        for begin in range(start, end, chunk):
            stop = min(end, begin + chunk)
            wanted = stop - begin - 1 if stop == len(ids) else -1
            edges, past = np.array([0, stop - begin], np.int32), np.array([begin], np.int32)
            slots = np.zeros(1, np.int32)
            pipeline.prefill(StepInputs(ids[begin:stop], edges, past, slots, np.array([wanted], np.int32)))

    found: dict[str, list[float]] = {"computed": [], "copied": [], "kept": []}
    first = set()
    for _ in range(10):
        for name, times in found.items():
            start = time.perf_counter()
            if name != "computed":
                pipeline.spare.restore(0, 0, SYSTEM, has_rows=name == "kept")
            pipeline.seat(0, seat)
            if name == "computed":
                prefill(0, SYSTEM)
                pipeline.spare.save(0, 0, SYSTEM)
            prefill(SYSTEM, len(ids))
            first.add(pipeline.collect(0)[-1][0].token)
            times.append(time.perf_counter() - start)
            pipeline.leave(0)
    if len(first) != 1:
        raise SystemExit(f"expected the same first token with and without, found {first}")
    return {name: round(sorted(times)[len(times) // 2] * 1e3, 3) for name, times in found.items()}


def decoded(pipeline: Pipeline, vocab: int, batch: int, depth: int, chunk: int) -> dict[str, Any]:
    """Greedy decode of `batch` sequences behind prompts of `depth` tokens."""
    slots, rng = range(batch), np.random.default_rng(depth)
    for slot in slots:
        ids = rng.integers(0, vocab, depth)
        pipeline.seat(slot, Seat(tuple(ids.tolist()), settings_of(Sampling()), {}, (), depth + 2 * STEPS))
        for start in range(0, depth, chunk):
            end = min(depth, start + chunk)
            rows = np.array([end - start - 1 if end == depth else -1], np.int32)
            edges = np.array([0, end - start], np.int32)
            past, place = np.array([start], np.int32), np.array([slot], np.int32)
            pipeline.prefill(StepInputs(ids[start:end].astype(np.int32), edges, past, place, rows))
            pipeline.collect(pipeline.run_ahead)
    done: list[tuple[Chosen, ...]] = []
    marks = []
    for index in range(WARM + STEPS):
        if index == WARM:
            pipeline.collect(0)
            begun = time.perf_counter()
        if index >= WARM and (index - WARM) % BLOCK == 0:
            marks.append(time.thread_time())
        pipeline.decode(slots, depth + 1 + index)
        done += pipeline.collect(pipeline.run_ahead)
    done += pipeline.collect(0)
    us = (time.perf_counter() - begun) / STEPS * 1e6
    host_us = np.diff([*marks, time.thread_time()]) / BLOCK * 1e6
    for slot in slots:
        pipeline.leave(slot)
    if any(len(step) != batch or None in [chosen.token for chosen in step] for step in done[-STEPS:]):
        raise SystemExit(f"batch {batch}, depth {depth}: some steps chose no token, so their time says nothing")
    return {
        "us": round(us, 1),
        "tokens_per_second": round(batch / us * 1e6),
        "host_us": round(float(np.median(host_us)), 1),
        "host_us_of_blocks": host_us.round(1).tolist(),
        "sleep_us": round(slept(us / 1e6) * 1e6, 1),
    }


def slept(seconds: float) -> float:
    """Processor seconds that a sleep costs."""
    start = time.thread_time()
    for _ in range(BLOCK):
        time.sleep(seconds)
    return (time.thread_time() - start) / BLOCK


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("kernels", type=Path)
    parser.add_argument("--depths", type=int, nargs="+", default=[10, 2048, 16384])
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
