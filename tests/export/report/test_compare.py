# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orinkit_export.cli import main
from orinkit_export.cost import Cost
from orinkit_export.report.compare import Pair, page, pairs, text, warnings
from orinkit_export.report.data import Matrix, Report
from programs import desk, finish

NAMES = ("build/a", "build/b")


def orin_compare(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


@pytest.fixture
def both(report: Report) -> tuple[Report, Report]:
    """Two reports of little: two matrices each, one of them in both."""
    o, down, up = (Matrix(f"layers.0.{kind}", "int4", 64, 32, 0.02, 0.01) for kind in ("o", "down", "gate_up"))
    quality = replace(report.quality, kl_mean=0.02, top1=0.9, perplexity_increase=-0.5)
    a = replace(report, quality=quality, matrices=(o, down), data_bytes=100, stages={"model": Cost(10.0, 1000)})
    b = replace(
        a,
        quality=replace(quality, kl_mean=0.03, top1=0.81),
        matrices=(replace(o, after=0.005, bytes=48), replace(up, after=None)),
        data_bytes=120,
        stages={"model": Cost(15.0, 900), "verify": Cost(1.0, 1500)},
    )
    return a, b


@pytest.mark.parametrize(
    ("a", "b", "change"),
    [(2.0, 3.0, "+50.0 %"), (4, 1, "-75.0 %"), (None, 1.0, "-"), (1.0, None, "-"), (0.0, 1.0, "-"), (-1.0, 1.0, "-")],
)
def test_a_change_is_in_per_cent_of_the_first(a: float | None, b: float | None, change: str) -> None:
    assert Pair("x", a, b).change == change


def test_what_is_compared(both: tuple[Report, Report]) -> None:
    found = {heading: {pair.name: (pair.a, pair.b) for pair in of} for heading, of in pairs(*both).items()}
    assert found["against the float model"]["KL divergence, mean, nats"] == (0.02, 0.03)
    assert found["against the float model"]["same best token, share"] == (0.9, 0.81)
    assert found["sizes, bytes"] | {"bits per weight": None} == {
        "o int4": (32, 48),
        "down int4": (32, None),
        "gate_up int4": (None, 32),
        "rest": (36, 40),
        "total": (100, 120),
        "bits per weight": None,
    }
    assert found["error of each matrix"] == {"layers.0.o": (0.01, 0.005), "layers.0.down": (0.01, None)}
    assert found["seconds of each stage"] == {"model": (10.0, 15.0), "verify": (None, 1.0)}
    assert found["memory, bytes"] == {"most": (1000, 1500)}


def test_the_text_has_columns(both: tuple[Report, Report]) -> None:
    lines = list(text(*both, NAMES))
    assert lines[:3] == ["A: build/a", "B: build/b", ""]
    rows = [re.split(r"\s{2,}", line) for line in lines]
    assert ["KL divergence, mean, nats", "0.02", "0.03", "+50.0 %"] in rows
    assert ["layers.0.down", "0.01", "-", "-"] in rows
    heads = [line for line in lines if line.endswith("B to A")]
    assert len(heads) == len(pairs(*both))
    assert all(len(line) <= 80 for line in lines)


def test_what_cannot_be_compared_is_said(both: tuple[Report, Report]) -> None:
    a, b = both
    assert list(warnings(a, b)) == []
    elsewhere = replace(b, compared_with="0" * 64)
    assert [line.split(":")[0] for line in warnings(a, elsewhere)] == [
        "evaluated on different texts or against different float models"
    ]
    recipe = replace(b.recipe, calibration=replace(b.recipe.calibration, sequences=9))
    assert "calibrated on different texts" in next(warnings(a, replace(b, recipe=recipe)))
    assert any(line.startswith("note: evaluated on different texts") for line in text(a, elsewhere, NAMES))
    assert "evaluated on different texts" in page(a, elsewhere, NAMES)


def test_the_page_draws_both(both: tuple[Report, Report]) -> None:
    made = page(*both, ("build/a", "<b>"))
    assert made.count('<span class="key s0">build/a</span><span class="key s1">&lt;b&gt;</span>') == 4
    for shown in ("+50.0 %", "layers.0.down", "<td>0.005</td>", "<td>1,500</td>", 'aria-label="o"'):
        assert shown in made
    assert "<b></b>" not in made


def test_the_verb(calibrated: Path, tmp_path: Path) -> None:
    finish(desk(tmp_path))
    result = orin_compare(calibrated / "out", tmp_path / "out.report", "-o", tmp_path / "both.html")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "note: evaluated on different texts or against different float models" in result.stdout
    assert "against the float model" in result.stdout
    assert str(calibrated / "out") in (tmp_path / "both.html").read_text(encoding="utf-8")


def test_the_verb_refuses_what_has_no_report(calibrated: Path, tmp_path: Path) -> None:
    result = orin_compare(calibrated / "out", tmp_path)
    assert (result.exit_code, result.stdout) == (78, "")
    assert "expected a bundle with its report in" in result.stderr
    result = orin_compare(calibrated / "out", calibrated / "out", "-o", tmp_path / "none/both.html")
    assert (result.exit_code, "writing failed" in result.stderr) == (75, True)
