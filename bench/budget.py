# SPDX-License-Identifier: Apache-2.0
"""What a budget of bits per weight gains over one format for all matrices, at the same bits.

    python bench/budget.py CHECKPOINT --text NAME=FILE --text NAME=FILE:0.95 [--bits 4.25] [--bits 4.5] [--out FILE]

Texts and comparison are those of quantisation.py; the budget is spent by calibration text alone. It counts every
matrix that is quantised, the head among them, scales included. `by output error` spends the same bits by the share of
the power of its own outputs that a matrix loses, weighed by its size, instead of by what its rounding does to the
predictions.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import quantisation

from orinkit.memory.formats import candidates
from orinkit.recipe import Calibration
from orinkit_export import choose, sensitivity
from orinkit_export.evaluate import Quality
from orinkit_export.plan import Plan
from orinkit_export.sensitivity import Measured

UNIFORM = (64, 32)


def measured(plan: Plan) -> tuple[Measured, ...]:
    """What each matrix costs."""
    tried = {weight.name: candidates(plan.recipe, weight.role, weight.shape) for weight in plan.undecided()}
    with tempfile.TemporaryDirectory() as folder:
        return sensitivity.run(plan, tried, Path(folder))


def by_output_error(plan: Plan, found: tuple[Measured, ...]) -> tuple[Measured, ...]:
    """The same with an error of the outputs that counts for as much in each matrix, for each of its weights."""
    sizes = {weight.name: weight.shape[0] * weight.shape[1] for weight in plan.undecided()}
    return tuple(replace(each, kl=next(iter(each.errors.values())) * sizes[f"{each.name}.weight"]) for each in found)


def ways(plan: Plan, budgets: list[float]) -> Iterator[tuple[str, Plan]]:
    """Names, and plans with nothing left open."""
    for size in UNIFORM:
        yield f"groups of {size}", quantisation.with_settings(plan, group_size=size)
    found: tuple[Measured, ...] = ()
    for bits in budgets:
        asked = quantisation.with_settings(plan, bits=bits, head="auto")
        found = found or measured(asked)
        for name, costs in (("", found), (" by output error", by_output_error(asked, found))):
            yield f"{bits} bits{name}", choose.settled(asked, choose.chosen(asked, costs))


def _numbers(quality: Quality) -> dict[str, float]:
    return {key: value for key, value in vars(quality).items() if key != "histogram"}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--bits", type=float, action="append", required=True)
    parser.add_argument("--method", default="awq+gptq")
    parser.add_argument("--sequences", type=int, default=24, help="of 512 tokens of each text (default %(default)s)")
    parser.add_argument(
        "--calibration", type=int, default=Calibration().sequences, help="sequences (default %(default)s)"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    plan = quantisation.planned(arguments.checkpoint, arguments.calibration, Calibration().tokens)
    plan = quantisation.with_settings(plan, method=arguments.method)
    ids = quantisation.read_texts(plan, arguments.text, arguments.sequences, 512)
    compared = quantisation.Texts(plan, quantisation.floats(plan), ids)
    rows: list[dict[str, Any]] = []
    for way, other in ways(plan, arguments.bits):
        arrays = quantisation.ours(other)
        found = {name: _numbers(quality) for name, quality in compared.compare(arrays).items()}
        row = {"way": way, "bits": quantisation.bits(other), "formats": other.recipe.quantise.formats, "texts": found}
        rows.append(row)
        print(json.dumps(row), flush=True)
    told = {"model": arguments.checkpoint.name, "method": arguments.method, "calibration": arguments.calibration}
    record = {**told, "sequences": arguments.sequences, "float": dict.fromkeys(ids), "ways": rows}
    print(quantisation.table(record))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
