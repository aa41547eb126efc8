# SPDX-License-Identifier: Apache-2.0
"""Formats that a recipe leaves to a measurement, chosen once, before any weight is stored.

head: auto    int4 if the float model with only its head in int4 stays within `head_kl`, else int8
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orinkit import config
from orinkit.bundle import Provenance
from orinkit.memory.formats import Format
from orinkit.recipe import Named
from orinkit_export import gate, sensitivity
from orinkit_export.disk import writing
from orinkit_export.plan import Plan

CHOSEN = "formats.json"

HEAD_SHARE = 0.25
"""Part of the bound on the KL divergence of the whole export that a head in int4 may use up: the layers, which are most
of the weights, need the rest."""


@dataclass(frozen=True)
class Choice:
    """How one matrix is stored."""

    name: str
    """As in the graph: `layers.3.qkv`."""
    format: Named
    kl: float
    """Mean KL divergence in nats of the float model with only this matrix rounded so, to the nearest, from float."""
    narrow: Named
    """The narrowest format that it might have had."""
    kl_narrow: float
    """The same with that one."""


def inputs(plan: Plan, provenance: Provenance) -> dict[str, Any]:
    """What the choice depends on."""
    return {
        "tool": provenance.tool,
        "files": config.dump(provenance.files),
        "quantise": config.dump(plan.recipe.quantise),
        "calibration": provenance.texts["calibration"],
        "head_kl": head_bound(plan),
        "model": config.dump(plan.spec),
    }


def run(plan: Plan, folder: Path) -> None:
    """Leave in `folder` how each undecided weight is stored; a killed run goes on where it was."""
    narrow = Format("int4", plan.recipe.quantise.group_size, plan.recipe.quantise.zeros)
    formats = {weight.name: (narrow, Format("int8")) for weight in plan.undecided()}
    choices = [_by_bound(measured, head_bound(plan)) for measured in sensitivity.run(plan, formats, folder)]
    with writing(folder):
        (folder / CHOSEN).write_text(json.dumps(config.dump(choices), indent=1) + "\n", encoding="utf-8")


def tidy(folder: Path) -> None:
    """Remove what only a run that was killed would go on with: once the stage is complete, and not before."""
    shutil.rmtree(folder / sensitivity.STREAMS, ignore_errors=True)


def head_bound(plan: Plan) -> float:
    """Largest mean KL divergence that a head in int4 may cause."""
    stated = plan.recipe.quantise.head_kl
    whole = gate.bounds(plan.recipe.evaluation.bounds, plan.parameters()).kl_mean
    return HEAD_SHARE * (whole or 0.0) if stated is None else stated


def read(done: Mapping[str, Path]) -> tuple[Choice, ...]:
    """What was chosen, by the folders of the stages; nothing where nothing was left open."""
    if "formats" not in done:
        return ()
    data = json.loads((done["formats"] / CHOSEN).read_text(encoding="utf-8"))
    return tuple(config.parse(entry, Choice, CHOSEN) for entry in data)


def settled(plan: Plan, choices: tuple[Choice, ...]) -> Plan:
    """The plan with nothing left open."""
    return replace(plan, recipe=plan.recipe.with_formats(formats(choices)))


def formats(choices: tuple[Choice, ...]) -> dict[str, Named]:
    """Formats by the names of the matrices."""
    return {choice.name: choice.format for choice in choices}


def _by_bound(measured: sensitivity.Measured, bound: float) -> Choice:
    narrow, wide = measured.errors
    return _choice(measured, narrow if measured.kl <= bound else wide)


def _choice(measured: sensitivity.Measured, chosen: Named) -> Choice:
    return Choice(measured.name, chosen, measured.kl_of(chosen), next(iter(measured.errors)), measured.kl)
