# SPDX-License-Identifier: Apache-2.0
"""A report as values, and as `report.json`: the same numbers, floats rounded to four digits."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orinkit import config
from orinkit.errors import ArtefactError, ConfigError
from orinkit.recipe import Bounds, Recipe
from orinkit_export import gate
from orinkit_export.choose import Choice
from orinkit_export.cost import Cost
from orinkit_export.evaluate import Quality

JSON, HTML = "report.json", "report.html"
FORMAT = 1


@dataclass(frozen=True)
class Model:
    """The model that was exported."""

    architecture: str
    parameters: int
    layers: int
    hidden: int
    vocab: int


@dataclass(frozen=True)
class Matrix:
    """One stored matrix, its scales and zero points included."""

    name: str
    """As in the graph: `layers.3.qkv`."""
    format: str
    weights: int
    bytes: int
    before: float | None = None
    """Share of its outputs' power that plain rounding (absmax / 7, unscaled) loses; measured where calibrated."""
    after: float | None = None
    """The same of the matrix as it is stored."""

    @property
    def kind(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def layer(self) -> int | None:
        """None for embedding and head."""
        return int(self.name.split(".")[1]) if self.name.startswith("layers.") else None


@dataclass(frozen=True)
class Fold:
    """One vector that was folded, or the identity."""

    layer: int
    point: str
    kind: str
    alpha: float
    ratio: float
    """Error with it over error without."""
    spread: float
    """Its largest element over its smallest."""


@dataclass(frozen=True)
class Inputs:
    """What calibration saw at one point of a layer."""

    layer: int
    point: str
    largest: float
    """Largest magnitude."""
    channel: int
    """Where it was."""
    channel_mean: float
    """Mean magnitude of that channel."""
    typical: float
    """Mean magnitude of the median channel."""
    outliers: int
    """Channels whose mean magnitude is more than OUTLIER times the typical one."""


@dataclass(frozen=True)
class Report:
    """One export."""

    name: str
    target: str
    tool: str
    compared_with: str
    """SHA-256 of float model and evaluation text: reports with the same one can be compared."""
    model: Model
    recipe: Recipe
    data_bytes: int
    quality: Quality
    bounds: Bounds
    accepted: bool
    """A bound was missed, and the export made all the same."""
    agreement: dict[str, float]
    """The graph against its reference, as `orin-export verify` prints it."""
    matrices: tuple[Matrix, ...]
    folds: tuple[Fold, ...]
    inputs: tuple[Inputs, ...]
    stages: dict[str, Cost]
    choices: tuple[Choice, ...] = ()
    """Matrices whose formats were measured for this export."""
    format: int = FORMAT

    @property
    def checks(self) -> tuple[gate.Check, ...]:
        return tuple(gate.checks(self.quality, self.bounds))

    @property
    def missed(self) -> tuple[gate.Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    @property
    def bits_per_weight(self) -> float:
        """Of the whole file."""
        return 8 * self.data_bytes / self.model.parameters

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes by kind and format; `rest` is norms, tables and alignment."""
        sizes: Counter[str] = Counter()
        for matrix in self.matrices:
            sizes[f"{matrix.kind} {matrix.format}"] += matrix.bytes
        return {**sizes, "rest": self.data_bytes - sum(sizes.values())}


def encode(report: Report) -> str:
    """The text of `report.json`."""
    return json.dumps(_rounded(config.dump(report)), indent=1, allow_nan=False) + "\n"


def decode(text: str, where: str) -> Report:
    """The report in the text of a `report.json`. Raises ArtefactError."""
    advice = "build the export again with the orinkit that is installed here"
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ArtefactError(f"{where}: expected a report of format {FORMAT}, found another; {advice}")
        return config.parse(data, Report, where)
    except ValueError as error:
        raise ArtefactError(f"{where}: expected JSON, found: {error}; {advice}") from None
    except ConfigError as error:
        raise ArtefactError(f"{error}; {advice}") from None


def _rounded(data: Any) -> Any:
    if isinstance(data, float):
        return float(f"{data:.4g}")
    if isinstance(data, dict):
        return {key: _rounded(value) for key, value in data.items()}
    return [_rounded(value) for value in data] if isinstance(data, list) else data


def find(export: Path) -> Path:
    """The `report.json` of a bundle's folder or of a report's. Raises ArtefactError."""
    for path in (export / JSON, export.with_name(f"{export.name}.report") / JSON):
        if path.is_file():
            return path
    raise ArtefactError(f"{export}: expected a bundle with its report in {export.name}.report, found none; build it")


def read(export: Path) -> Report:
    """The report of an export, see `find`. Raises ArtefactError."""
    path = find(export)
    return decode(path.read_text(encoding="utf-8"), str(path))
