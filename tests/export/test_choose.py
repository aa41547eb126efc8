# SPDX-License-Identifier: Apache-2.0
"""Formats that a recipe leaves to a measurement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orinkit.recipe import Bounds, Evaluation
from orinkit_export import choose, gate, plan
from orinkit_export.report import data, page
from programs import SMALL, desk, finish, small_desk, write_recipe


def small(folder: Path, **settings: Any) -> Path:
    """The desk of a small untied model whose recipe leaves its head open."""
    small_desk(folder)
    write_recipe(
        folder / "recipe.yaml", SMALL, quantise={"method": "rtn", "group_size": 32, "head": "auto", **settings}
    )
    return folder


@pytest.mark.parametrize(("bound", "chosen"), [(1e3, "int4-g32"), (0.0, "int8")])
def test_the_head_is_int4_where_its_bound_allows(bound: float, chosen: str, tmp_path: Path) -> None:
    folder = small(tmp_path, head_kl=bound)
    made = finish(folder)
    report = data.read(folder / "out")
    (choice,) = report.choices
    assert made.manifest.formats == {"head": chosen}
    assert made.manifest.recipe.quantise.head == "auto"
    assert (choice.name, choice.format, choice.narrow) == ("head", chosen, "int4-g32")
    assert choice.kl_narrow >= choice.kl > 0
    assert {matrix.name: matrix.format for matrix in report.matrices}["head"] == chosen
    assert f"<td>{chosen}</td>" in page.page(report)
    assert choose.settled(plan.read(folder / "recipe.yaml"), report.choices).undecided() == []
    assert "calibration" in made.manifest.provenance.texts


def test_a_budget_is_spent_on_matrices_and_kept(tmp_path: Path) -> None:
    folder = small(tmp_path, bits=4.8)
    planned = plan.read(folder / "recipe.yaml")
    made = finish(folder)
    report = data.read(folder / "out")
    stored = {matrix.name: matrix for matrix in report.matrices}
    undecided = [weight.name.removesuffix(".weight") for weight in planned.undecided()]
    assert list(made.manifest.formats) == sorted(undecided)
    assert [choice.name for choice in report.choices] == undecided
    assert len(set(made.manifest.formats.values())) > 1
    for choice in report.choices:
        matrix = stored[choice.name]
        assert choice.format == matrix.format
        assert choice.bits == pytest.approx(8 * matrix.bytes / matrix.weights, rel=1e-3)
        assert 0 < choice.kl <= choice.kl_narrow
    weights, taken = (sum(getattr(stored[name], key) for name in undecided) for key in ("weights", "bytes"))
    assert 4.6 * weights < 8 * taken <= 4.8 * weights
    assert finish(folder).digest == made.digest


def test_what_was_chosen_is_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small(tmp_path)
    first = finish(folder)
    assert finish(folder).digest == first.digest
    assert capsys.readouterr().err.endswith("out is up to date\n")


@pytest.mark.parametrize(("embedding", "shared"), [("int8", True), ("int4", False)])
def test_a_tied_head_shares_the_embedding_of_its_format(embedding: str, shared: bool, tmp_path: Path) -> None:
    folder = desk(tmp_path)
    settings = {"method": "rtn", "head": "auto", "head_kl": 0.0, "embedding": embedding}
    write_recipe(folder / "recipe.yaml", quantise=settings, calibration={"sequences": 2, "tokens": 32})
    planned = plan.read(folder / "recipe.yaml")
    assert "head.weight" in {weight.name for weight in planned.stored()}
    made = finish(folder)
    assert made.manifest.formats == {"head": "int8"}
    names = {matrix.name for matrix in data.read(folder / "out").matrices}
    assert ("head" not in names) == shared
    assert (folder / "out/model.data").stat().st_size <= planned.data_bytes() + 4096 * len(planned.stored())


def test_the_bound_of_the_head_is_a_part_of_that_of_the_export(tmp_path: Path) -> None:
    planned = plan.read(small(tmp_path) / "recipe.yaml")
    assert choose.head_bound(planned) == choose.HEAD_SHARE * 1e3
    usual = replace(planned, recipe=replace(planned.recipe, evaluation=Evaluation()))
    assert choose.head_bound(usual) == choose.HEAD_SHARE * 0.06
    assert gate.bounds(Bounds(), usual.parameters()).kl_mean == 0.06
    stated = replace(planned.recipe, quantise=replace(planned.recipe.quantise, head_kl=0.02))
    assert choose.head_bound(replace(planned, recipe=stated)) == 0.02


def test_nothing_is_left_open_without_quantisation(tmp_path: Path) -> None:
    planned = plan.read(small(tmp_path, method="none") / "recipe.yaml")
    assert (planned.undecided(), planned.is_calibrated) == ([], False)
