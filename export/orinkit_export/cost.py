# SPDX-License-Identifier: Apache-2.0
"""What a stage costs: time and memory, kept in its folder for the report. Nothing of it gets into a bundle."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orinkit import config
from orinkit_export.disk import writing

COST = "cost.json"


@dataclass(frozen=True)
class Cost:
    """Of the run that completed the stage: what killed runs did before is not in it."""

    seconds: float
    peak_bytes: int
    """The most memory that the process had held by the end of the stage; so stages before it count too."""


def measured(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """`make`, which then leaves its cost in the stage's folder."""

    def run(folder: Path) -> None:
        start = time.monotonic()
        make(folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        cost = Cost(round(time.monotonic() - start, 3), peak)
        with writing(folder):
            (folder / COST).write_text(json.dumps(config.dump(cost)) + "\n", encoding="utf-8")

    return run


def read(folder: Path) -> Cost:
    """The cost of the stage in `folder`."""
    return config.parse(json.loads((folder / COST).read_text(encoding="utf-8")), Cost, COST)
