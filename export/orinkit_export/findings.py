# SPDX-License-Identifier: Apache-2.0
"""What a report tells of calibrated matrices: one file per tensor, fold or point, written while the model is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orinkit.memory.formats import Format
from orinkit_export.calibrate import Statistics
from orinkit_export.disk import writing
from orinkit_export.rounding import plain_loss
from orinkit_export.smoothing import Smoothing, sample_rows
from orinkit_export.weights import Weight

Float32 = NDArray[np.float32]

OUTLIER = 8
"""A channel is an outlier from so many times the mean magnitude of the median channel on."""


class Findings:
    """Of one stage, in `report/` of its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def error(self, weight: Weight, error: float | None) -> None:
        """The relative output error of a stored matrix."""
        if error is not None:
            self._keep(weight.name, {"error": error})

    def before(self, weight: Weight, chosen: Format, gram: Float32) -> None:
        """What plain rounding would have lost, on a sample of the rows."""
        if chosen.kind == "int4":
            self._keep(f"{weight.name}.before", {"error": plain_loss(sampled(weight), chosen.group_size, gram)})

    def fold(self, point: str, found: Smoothing) -> None:
        """How the channels of a point, layers.I.NAME, were scaled."""
        entry = {"kind": found.kind, "alpha": found.alpha, "ratio": found.ratio, "spread": found.spread}
        self._keep(f"{point}.fold", entry)

    def inputs(self, point: str, found: Statistics) -> None:
        """How large the inputs of a point are, and how unlike their channels."""
        channel, typical = int(found.max_abs.argmax()), float(np.median(found.mean_abs))
        entry = {
            "largest": float(found.max_abs[channel]),
            "channel": channel,
            "channel_mean": float(found.mean_abs[channel]),
            "typical": typical,
            "outliers": int((found.mean_abs > OUTLIER * typical).sum()),
        }
        self._keep(f"{point}.inputs", entry)

    def _keep(self, name: str, found: dict[str, Any]) -> None:
        report = self._folder / "report"
        with writing(self._folder):
            report.mkdir(exist_ok=True)
            (report / f"{name}.json").write_text(json.dumps(found, sort_keys=True) + "\n", encoding="utf-8")


def sampled(weight: Weight) -> Float32:
    """Some rows of a matrix, spread evenly over it."""
    picked, parts, start = sample_rows(weight.shape[0]), [], 0
    for block in weight.blocks():
        inside = (picked >= start) & (picked < start + len(block))
        parts.append(block[picked[inside] - start])
        start += len(block)
    return np.concatenate(parts)
