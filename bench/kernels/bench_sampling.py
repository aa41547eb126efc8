# SPDX-License-Identifier: Apache-2.0
"""Times of sampling and of the step kernel on the GPU of this machine, inside captured chains.

PYTHONPATH=toolkit:tests python bench/kernels/bench_sampling.py [--library PATH] [--out RESULT.json]

`cached`: every launch of a chain reads the same logits, as they are in the L2 cache behind a head. `rotated`: every
launch reads logits of its own, 512 MB in all. `peaked` logits are shaped like a model's, `flat` ones are normal
numbers.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

import gpu
import measure
import sampling_cases
from orinkit.engines.kernels import KernelLibrary
from orinkit.runtime.sampling import Sampling
from sampling_cases import LIBRARY, Sampler, random_row

VOCAB = 248_320
LOGITS = 512 << 20
LAUNCHES = 100
SETTINGS = {
    "greedy": Sampling(),
    "temperature 0.7": Sampling(temperature=0.7),
    "top-k 20, top-p 0.8": Sampling(temperature=0.7, top_k=20, top_p=0.8),
    "top-p 0.95": Sampling(temperature=1.0, top_p=0.95),
    "min-p 0.05": Sampling(temperature=1.0, min_p=0.05),
    "all": Sampling(
        temperature=0.7,
        top_k=50,
        top_p=0.9,
        min_p=0.02,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=0.1,
        logit_bias=dict.fromkeys(range(300), 1.0),
    ),
}


def microseconds(
    kernels: KernelLibrary, stream: gpu.Stream, kind: str, name: str, rows: int, num_logprobs: int = 0
) -> dict[str, float]:
    """Microseconds of one launch, cached and rotated."""
    rng = np.random.default_rng(1)
    some = [replace(random_row(rng, VOCAB, kind), sampling=SETTINGS[name]) for _ in range(rows)]
    sampler = Sampler(kernels, some, num_logprobs)
    sampler.poison()
    size = sampler.arrays["logits"].nbytes
    sets = min(LAUNCHES, LOGITS // size)
    rotated = gpu.Array(np.tile(np.stack([row.logits for row in some]), (sets, 1)))
    here = sampler.arguments.logits
    times = {}
    for label, pointers in (
        ("cached", [here] * LAUNCHES),
        ("rotated", [rotated.pointer + i * size for i in range(sets)]),
    ):

        def chain(pointers: list[int] = pointers) -> None:
            for pointer in pointers:
                sampler.arguments.logits = pointer
                sampler.launch(stream)

        times[label] = stream.microseconds(stream.capture(chain), repeats=10) / len(pointers)
    return times


def step_microseconds(kernels: KernelLibrary, stream: gpu.Stream, rows: int) -> float:
    """Of one step kernel in a chain."""
    from plugins.test_step import MAX_STOPS, Ring, Stepper

    zeros = np.zeros(rows, np.int32)
    names = ("tokens", "slots", "past_lens", "next_ids", "next_slots", "next_past_lens")
    given = dict.fromkeys(names, zeros) | {
        "logprobs": np.zeros(rows, np.float32),
        "cu_seqlens": np.arange(rows + 1, dtype=np.int32),
        "stop_ids": np.full((1, MAX_STOPS), -1, np.int32),
        "max_lens": np.full(1, 2**31 - 1, np.int32),
        "counts": np.zeros(100, np.uint16),
    }
    stepper = Stepper(kernels, rows, given, Ring(64, rows, 0))

    def chain() -> None:
        for _ in range(LAUNCHES):
            stepper.launch(stream)

    return stream.microseconds(stream.capture(chain), repeats=10) / LAUNCHES


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", type=Path, default=LIBRARY)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sampling_cases.LIBRARY = args.library
    stream = gpu.Stream()
    kernels = KernelLibrary(args.library)
    ceilings = measure.ceilings(stream)
    cases = [("peaked", name, 1, 0) for name in SETTINGS] + [
        ("flat", "top-p 0.95", 1, 0),
        ("flat", "top-k 20, top-p 0.8", 1, 0),
    ]
    cases += [("peaked", "greedy", 1, 20), ("peaked", "top-k 20, top-p 0.8", 1, 20)]
    cases += [("peaked", name, rows, 0) for rows in (8, 64) for name in ("greedy", "top-k 20, top-p 0.8", "all")]
    found = []
    for kind, name, rows, num_logprobs in cases:
        times = microseconds(kernels, stream, kind, name, rows, num_logprobs)
        case = f"{rows} row{'s' * (rows > 1)}, {kind}, {name}" + f", {num_logprobs} log-probabilities" * (
            num_logprobs > 0
        )
        logits = rows * VOCAB
        found.append(measure.row("sampling", case, times["rotated"], 4 * logits, logits, cached_us=times["cached"]))
        measure.show(found[-1])
    for rows in (1, 8, 64):
        found.append(measure.row("step", f"{rows} rows", step_microseconds(kernels, stream, rows), 48 * rows, 0))
        measure.show(found[-1])
    if args.out:
        measure.write(args.out, {"ceilings": ceilings, "vocab": VOCAB, "rows": found})


if __name__ == "__main__":
    main()
