# SPDX-License-Identifier: Apache-2.0
"""The gate: how far an export may be from its float model before a build is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orinkit.errors import VerificationError
from orinkit.recipe import Bounds
from orinkit_export.evaluate import Quality

DEFAULTS = (
    (7e9, Bounds(perplexity_increase=2.5, kl_mean=0.02, top1=0.93)),
    (1.5e9, Bounds(perplexity_increase=4.0, kl_mean=0.04, top1=0.91)),
    (0.0, Bounds(perplexity_increase=6.0, kl_mean=0.06, top1=0.89)),
)
"""Least number of weights, and the bounds from there on, which are goals: small models lose more by four bits."""


@dataclass(frozen=True)
class Check:
    """One number against its bound."""

    name: str
    value: float
    bound: float
    passed: bool
    used: float
    """How much of what is allowed is used up: 1 at the bound."""

    def __str__(self) -> str:
        limit = "at least" if self.name == "top1" else "at most"
        return f"{self.name}: expected {limit} {self.bound:g}, found {self.value:.4g}"


def bounds(stated: Bounds, parameters: int) -> Bounds:
    """The recipe's bounds; where it states none, those for a model of so many weights."""
    usual = next(found for least, found in DEFAULTS if parameters >= least)
    chosen = {name: getattr(usual if value is None else stated, name) for name, value in vars(stated).items()}
    return Bounds(**chosen)


def checks(quality: Quality, limits: Bounds) -> Iterator[Check]:
    """Every bound with the number that it is for; a number that is not one passes no bound."""
    for name, bound in vars(limits).items():
        value = getattr(quality, name)
        distance, allowed = (1 - value, 1 - bound) if name == "top1" else (value, bound)
        used = max(distance, 0.0) / allowed if allowed else float(distance > 0)
        yield Check(name, value, bound, value >= bound if name == "top1" else value <= bound, used)


def refuse(missed: Sequence[Check], report: Path) -> None:
    """Raises VerificationError when any bound was missed."""
    if missed:
        raise VerificationError(
            f"{'; '.join(map(str, missed))}; look at {report}, change the recipe (docs/quality.md says what helps), "
            "or take it as it is with --accept"
        )
