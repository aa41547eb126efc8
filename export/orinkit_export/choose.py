# SPDX-License-Identifier: Apache-2.0
"""Formats that a recipe leaves to a measurement, chosen once, before any weight is stored.

head: auto    int4 if the float model with only its head in int4 stays within `head_kl`, else int8
bits: 4.5     for each matrix the format by which the KL divergence, summed over the matrices by themselves, is least
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orinkit import config
from orinkit.bundle import Provenance
from orinkit.memory.formats import candidates
from orinkit.recipe import Named
from orinkit_export import gate, quantise, sensitivity
from orinkit_export.budget import Option, Options, spend
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
    bits: float
    """For each of its weights, with what is beside them."""
    error: float
    """Share of the power of its outputs that rounding to the nearest loses."""
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
    tried = {weight.name: candidates(plan.recipe, weight.role, weight.shape) for weight in plan.undecided()}
    choices = chosen(plan, sensitivity.run(plan, tried, folder))
    with writing(folder):
        (folder / CHOSEN).write_text(json.dumps(config.dump(choices), indent=1) + "\n", encoding="utf-8")


def chosen(plan: Plan, found: Sequence[sensitivity.Measured]) -> tuple[Choice, ...]:
    """How each undecided weight is stored, by what was measured of it."""
    sizes = {weight.name.removesuffix(".weight"): math.prod(weight.shape) for weight in plan.undecided()}
    known = options(plan, found)
    within = _within_bits(plan, known) if plan.recipe.quantise.bits else _within_bound(plan, known)
    return tuple(_choice(measured, within[measured.name], known, sizes[measured.name]) for measured in found)


def options(plan: Plan, found: Sequence[sensitivity.Measured]) -> dict[str, Options]:
    """What every undecided weight takes and costs in each of its formats."""
    weights = {weight.name.removesuffix(".weight"): weight for weight in plan.undecided()}
    return {
        measured.name: {
            each.named: Option(sum(each.parts(weights[measured.name].shape)), measured.kl_of(each.named))
            for each in candidates(plan.recipe, weights[measured.name].role, weights[measured.name].shape)
        }
        for measured in found
    }


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


def _within_bound(plan: Plan, known: Mapping[str, Options]) -> dict[str, Named]:
    """The narrowest format of each whose cost the bound allows, else the widest."""
    bound = head_bound(plan)
    fitting = {name: [text for text, option in found.items() if option.cost <= bound] for name, found in known.items()}
    return {name: next(iter(fitting[name]), list(found)[-1]) for name, found in known.items()}


def _within_bits(plan: Plan, known: Mapping[str, Options]) -> dict[str, Named]:
    """The formats of least cost that the budget allows."""
    return spend(known, sum(quantise.stored_bytes(weight, plan.recipe) for weight in plan.undecided()))


def _choice(measured: sensitivity.Measured, text: Named, known: Mapping[str, Options], size: int) -> Choice:
    option = known[measured.name][text]
    return Choice(
        name=measured.name,
        format=text,
        bits=8 * option.nbytes / size,
        error=measured.errors[text],
        kl=option.cost,
        narrow=next(iter(measured.errors)),
        kl_narrow=measured.kl,
    )
