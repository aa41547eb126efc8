# SPDX-License-Identifier: Apache-2.0
"""What it costs to quantise a checkpoint with the default recipe: time and memory of its layers, and time of all that a
whole model would have.

    python bench/export_cost.py CHECKPOINT --layers 36 [--sequences 128] [--tokens 512] [--out FILE]

CHECKPOINT may be the first layers of a model (random_checkpoint.py writes such); --layers says how many the whole has,
and the time of those that are not there is extrapolated from those that are. Nothing that is stored is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import quantisation

from orinkit_export import prepare, quantise, store

OTHERS = "embedding, last norm and head"


class Clock:
    """Wall and CPU seconds by name."""

    def __init__(self) -> None:
        self.spent: dict[str, tuple[float, float]] = {}
        self._last = self._now()

    def _now(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def add(self, name: str) -> None:
        """What has passed since the last call belongs to `name`."""
        now, before = self._now(), self.spent.get(name, (0.0, 0.0))
        self.spent[name] = (before[0] + now[0] - self._last[0], before[1] + now[1] - self._last[1])
        self._last = now


def measure(checkpoint: Path, layers: int, sequences: int, tokens: int, scratch: Path) -> dict[str, object]:
    """The record of one export; `scratch` takes the hidden rows and what is stored."""
    clock, plan = Clock(), quantisation.planned(checkpoint, sequences, tokens)
    with store.TensorWriter(scratch) as writer:
        for weight, gram, rounded in prepare.weights(plan, scratch):
            quantise.store(writer, weight, plan.recipe, gram, rounded)
            stem, _, rest = weight.name.partition(".")
            clock.add(f"layer {rest.split('.')[0]}" if stem == "layers" else OTHERS)
    measured = [seconds for name, seconds in clock.spent.items() if name != OTHERS]
    wall, cpu = (
        clock.spent[OTHERS][side] + layers * sum(pair[side] for pair in measured) / len(measured) for side in (0, 1)
    )
    return {
        "model": checkpoint.name,
        "tokens": sequences * tokens,
        "cores": len(os.sched_getaffinity(0)),
        "measured": {name: {"wall_s": round(s[0], 1), "cpu_s": round(s[1], 1)} for name, s in clock.spent.items()},
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "extrapolated": {"layers": layers, "wall_s": round(wall), "cpu_s": round(cpu)},
    }


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--scratch", type=Path, help="where to put a temporary folder")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.scratch) as folder:
        record = measure(asked.checkpoint, asked.layers, asked.sequences, asked.tokens, Path(folder))
    text = json.dumps(record, indent=1)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
