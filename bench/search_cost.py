# SPDX-License-Identifier: Apache-2.0
"""What it costs to search the channel scales of one layer: by its Gram matrices, and by forward passes.

    python bench/search_cost.py CHECKPOINT [--layer 0] [--sequences 128] [--tokens 512] [--passes 3] [--out FILE]

Both need the statistics of one pass over the calibration text. From there on a candidate costs a product with the Gram
matrix, or a pass of the whole text through the layer. The search by Gram matrix is run as it is; of the passes a few
are timed, in turns with it, and counted for the same number of candidates. Random weights will do.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import outliers
import published_awq
import quantisation

from orinkit.memory.formats import Format
from orinkit_export import prepare, smoothing
from orinkit_export.calibrate import LayerRunner
from orinkit_export.folds import folds
from orinkit_export.layerwise import POINTS

CANDIDATES = len(smoothing.ALPHAS) + len(smoothing.ALPHAS[::2])


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(checkpoint: Path, index: int, sequences: int, tokens: int, passes: int) -> dict[str, object]:
    """The record of one layer."""
    plan = quantisation.planned(checkpoint, sequences, tokens)
    spec, ids = plan.spec, plan.calibration_ids
    prefix = f"layers.{index}."
    mine = {w.name: outliers.read(w) for w in plan.stored() if w.name.startswith((prefix, "rope."))}
    shared = {name: array for name, array in mine.items() if name.startswith("rope.")}
    arrays = {name.removeprefix(prefix): array for name, array in mine.items() if name.startswith(prefix)}
    hidden = np.stack(list(prepare.embedded(plan.embedding(), ids)))
    runner = LayerRunner(spec, tokens)
    statistics, rows = runner.run(index, arrays, shared, hidden, lambda _: None)
    collected = timed(lambda: [None for _ in rows])
    forward = published_awq.LayerSearch(runner, spec, index, shared, hidden)
    found = list(folds(spec.layers[index], spec.hidden))

    stored = Format("int4", plan.recipe.quantise.group_size)

    def by_gram() -> None:
        for fold in found:
            seen = statistics[fold.point]
            matrices = [(arrays[name], stored) for name in fold.consumers if name in POINTS]
            smoothing.search(fold, matrices, seen.mean_abs, seen.gram)

    turns = [(timed(by_gram), timed(lambda: forward.outputs(arrays))) for _ in range(passes)]
    gram, one = (min((turn[side] for turn in turns), key=lambda pair: pair[1]) for side in (0, 1))
    count = CANDIDATES * len(found)
    return {
        "model": checkpoint.name,
        "layer": index,
        "tokens": int(ids.size),
        "candidates": count,
        "cores": len(os.sched_getaffinity(0)),
        "statistics_cpu_s": round(collected[1], 2),
        "gram_search_wall_s": round(gram[0], 2),
        "gram_search_cpu_s": round(gram[1], 2),
        "forward_pass_wall_s": round(one[0], 2),
        "forward_pass_cpu_s": round(one[1], 2),
        "forward_search_cpu_s": round(count * one[1], 1),
        "ratio_cpu": round(count * one[1] / gram[1], 1),
    }


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--layer", type=int, default=0)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    record = measure(asked.checkpoint, asked.layer, asked.sequences, asked.tokens, asked.passes)
    text = json.dumps(record, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
