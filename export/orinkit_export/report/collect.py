# SPDX-License-Identifier: Apache-2.0
"""From the folders of a build's stages to its report."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from orinkit.bundle.folder import portable
from orinkit.memory.formats import Format
from orinkit.target import Target
from orinkit_export import choose, cost, evaluate, gate, stages, store
from orinkit_export.plan import Plan
from orinkit_export.report.data import Fold, Inputs, Matrix, Model, Report

_BESIDE = ("scales", "scale", "zeros", "columns")
"""What may be stored with a matrix and is part of it."""

_FOUND = re.compile(r"layers\.(\d+)\.(\w+)\.(fold|inputs)")


def collect(plan: Plan, target: Target, done: Mapping[str, Path], agreement: dict[str, float]) -> Report:
    """The report of an export whose stages `model`, `float` and `evaluate` are among the folders `done`.

    agreement: the graph against its reference.
    """
    model, spec, parameters = done["model"], plan.spec, plan.parameters()
    found = _found(model / "report")
    return Report(
        name=plan.recipe.name,
        target=target.id,
        tool=f"orinkit {metadata.version('orinkit')}",
        compared_with=hashlib.sha256((done["float"] / stages.RECORD).read_bytes()).hexdigest(),
        model=Model(spec.architecture, parameters, len(spec.layers), spec.hidden, spec.vocab),
        recipe=portable(plan.recipe),
        data_bytes=(model / store.DATA).stat().st_size,
        quality=evaluate.read(done["evaluate"]),
        bounds=gate.bounds(plan.recipe.evaluation.bounds, parameters),
        accepted=False,
        agreement=agreement,
        matrices=tuple(_matrices(store.read_index(model), found)),
        folds=tuple(Fold(layer, point, **entry) for layer, point, entry in _sorted(found, "fold")),
        inputs=tuple(Inputs(layer, point, **entry) for layer, point, entry in _sorted(found, "inputs")),
        choices=choose.read(done),
        stages={name: cost.read(folder) for name, folder in done.items()},
    )


def _found(folder: Path) -> dict[str, dict[str, Any]]:
    """What was recorded while the model was made, by name; nothing where nothing was calibrated."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def _sorted(found: Mapping[str, dict[str, Any]], kind: str) -> list[tuple[int, str, dict[str, Any]]]:
    matches = ((_FOUND.fullmatch(name), entry) for name, entry in found.items())
    entries = [(int(match[1]), match[2], entry) for match, entry in matches if match and match[3] == kind]
    return sorted(entries, key=lambda entry: entry[:2])


def _matrices(index: Mapping[str, store.Entry], found: Mapping[str, dict[str, Any]]) -> Iterator[Matrix]:
    for name, entry in index.items():
        stem = name.removesuffix(".weight")
        if stem == name:
            continue
        parts = {suffix: index[f"{stem}.{suffix}"] for suffix in _BESIDE if f"{stem}.{suffix}" in index}
        is_int4 = "scales" in parts
        weights = math.prod(entry.shape) * (2 if is_int4 else 1)
        groups = Format("int4", weights // math.prod(parts["scales"].shape)) if is_int4 else None
        yield Matrix(
            name=stem,
            format=str(groups or ("int8" if "scale" in parts else entry.dtype)),
            weights=weights,
            bytes=entry.nbytes + sum(part.nbytes for part in parts.values()),
            before=found.get(f"{name}.before", {}).get("error"),
            after=found.get(name, {}).get("error"),
        )
