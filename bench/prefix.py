# SPDX-License-Identifier: Apache-2.0
"""Time to the first token of a prompt whose system message was computed before, beside one where it was not.

    python bench/prefix.py BUNDLE [--engine onnxruntime] [--system 900] [--question 32] [--rounds 5] [--out FILE]

Prompts are random ids, greedy, one at a time through the scheduler; both are measured in turns. Tells as well whether
the tokens of both are the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from orinkit.bundle import Bundle
from orinkit.engines import open_engine
from orinkit.ops import VERSIONS
from orinkit.runtime.pipeline import open_pipeline
from orinkit.runtime.request import Finished, Request, Token
from orinkit.runtime.sampling import Sampling
from orinkit.runtime.scheduler import Scheduler
from orinkit.runtime.start import open_tokenizer

ANSWER = 16


def first_token(served: Scheduler, request: Request) -> tuple[float, list[int], int]:
    """Seconds to the first token, all tokens, and how many of the prompt were not computed."""
    start = time.perf_counter()
    served.submit(request)
    times, tokens, reused = [], [], 0
    while not served.is_idle:
        for event in served.step():
            if isinstance(event, Token):
                times.append(time.perf_counter() - start)
                tokens.append(event.token)
            elif isinstance(event, Finished):
                if event.error is not None:
                    raise event.error
                reused = event.timings.reused_tokens
    return times[0], tokens, reused


def measure(served: Scheduler, num_ids: int, args: argparse.Namespace) -> dict[str, Any]:
    """Medians of both, and whether all tokens were the same."""
    rng, pairs = np.random.default_rng(0), []
    for _ in range(args.rounds + 1):
        prompt = tuple(rng.integers(0, num_ids, args.system + args.question).tolist())
        request = Request(prompt, Sampling(temperature=0.0), max_tokens=ANSWER, cuts=(args.system,))
        pairs.append((first_token(served, request), first_token(served, request)))
    measured = pairs[1:]
    computed, kept = (statistics.median(side[0] for side in sides) for sides in zip(*measured, strict=True))
    return {
        "computed_ms": round(computed * 1e3, 2),
        "kept_ms": round(kept * 1e3, 2),
        "ratio": round(computed / kept, 2),
        "reused_tokens": sorted({second[2] for _, second in measured}),
        "same_tokens": all(first[1] == second[1] for first, second in measured),
    }


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--system", type=int, default=900)
    parser.add_argument("--question", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle, keys=None, supported=VERSIONS)
    model, tokenizer = bundle.manifest.model, open_tokenizer(bundle)
    shapes = replace(bundle.manifest.recipe.shapes, slots=1, snapshots=1)
    if args.system + args.question + ANSWER > shapes.capacity:
        parser.error(f"expected system, question and {ANSWER} tokens within the capacity of {shapes.capacity} tokens")
    engine = open_engine(args.engine, bundle.graph, model)
    served = Scheduler(open_pipeline(engine, shapes), shapes, tokenizer, model)
    text = json.dumps(
        {
            "model": bundle.manifest.name,
            "engine": args.engine,
            "command": " ".join(["python", *sys.argv]),
            "date": datetime.now(timezone.utc).date().isoformat(),
            **measure(served, tokenizer.num_ids, args),
        },
        indent=1,
    )
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
