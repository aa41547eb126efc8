# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orinkit import target
from orinkit.bundle import Bundle, Manifest
from orinkit.errors import BundleError, VerificationError
from orinkit.ops import VERSIONS
from orinkit.recipe import Bounds
from orinkit_export import gate, plan
from orinkit_export.build import build
from orinkit_export.evaluate import Quality
from orinkit_export.report import data
from programs import (
    BUILD,
    DEMO,
    EVALUATION,
    ROOT,
    SMALL,
    TARGET,
    finish,
    is_tidy,
    listing,
    refused,
    run,
    small_desk,
    write_recipe,
)

QUALITY = Quality(100, 10.0, 10.3, 3.0, 0.03, 0.2, 0.92, (100,))
IMPOSSIBLE = EVALUATION | {"bounds": {"perplexity_increase": 1e6, "kl_mean": 0.0, "top1": 0.0}}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (70_000_000_000, (2.5, 0.02, 0.93)),
        (7_000_000_000, (2.5, 0.02, 0.93)),
        (6_999_999_999, (4, 0.04, 0.91)),
        (1_500_000_000, (4, 0.04, 0.91)),
        (1_499_999_999, (6, 0.06, 0.89)),
        (5_526_680, (6, 0.06, 0.89)),
    ],
)
def test_bounds_by_size(parameters: int, expected: tuple[float, float, float]) -> None:
    assert gate.bounds(Bounds(), parameters) == Bounds(*expected)


def test_each_bound_of_the_recipe_counts_by_itself() -> None:
    assert gate.bounds(Bounds(kl_mean=0.5), 5) == Bounds(6, 0.5, 0.89)
    assert gate.bounds(Bounds(0.0, 0.0, 0.0), 5) == Bounds(0.0, 0.0, 0.0)


def test_the_docs_say_the_same_bounds() -> None:
    text = (ROOT / "docs/quality.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:from ([\d.]+) B|less) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    assert [(1e9 * float(least or 0), Bounds(*map(float, bounds))) for least, *bounds in rows] == list(gate.DEFAULTS)


def test_numbers_against_their_bounds() -> None:
    found = {check.name: check for check in gate.checks(QUALITY, Bounds(4.0, 0.02, 0.9))}
    assert [(name, check.value, check.passed) for name, check in found.items()] == [
        ("perplexity_increase", 3.0, True),
        ("kl_mean", 0.03, False),
        ("top1", 0.92, True),
    ]
    assert [check.used for check in found.values()] == pytest.approx([0.75, 1.5, 0.8])
    assert str(found["kl_mean"]) == "kl_mean: expected at most 0.02, found 0.03"
    assert str(found["top1"]) == "top1: expected at least 0.9, found 0.92"


def test_a_number_at_its_bound_passes_and_what_is_no_number_does_not() -> None:
    assert all(check.passed for check in gate.checks(QUALITY, Bounds(3.0, 0.03, 0.92)))
    broken = replace(QUALITY, perplexity_increase=math.nan, kl_mean=math.nan, top1=math.nan)
    assert not any(check.passed for check in gate.checks(broken, Bounds(1e6, 1e3, 0.0)))


def test_a_bound_without_room_is_used_up_at_once() -> None:
    better = replace(QUALITY, perplexity_increase=-1.0, kl_mean=0.0)
    assert [check.used for check in gate.checks(better, Bounds(0.0, 0.0, 1.0))] == [0, 0, 1]
    assert [check.passed for check in gate.checks(better, Bounds(0.0, 0.0, 1.0))] == [True, True, False]


def test_all_that_was_missed_is_told() -> None:
    missed = [check for check in gate.checks(QUALITY, Bounds(1.0, 0.02, 0.9)) if not check.passed]
    says = r"perplexity_increase: .* found 3; kl_mean: .* found 0\.03; look at a/report\.html, .* --accept"
    with pytest.raises(VerificationError, match=says):
        gate.refuse(missed, Path("a/report.html"))
    gate.refuse([], Path("a/report.html"))


def change(folder: Path, **changes: Any) -> None:
    """Another recipe for the small model, not calibrated."""
    write_recipe(folder / "recipe.yaml", {**SMALL, "quantise": {"method": "rtn", "group_size": 32}}, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_desk(tmp_path)
    change(tmp_path)
    return tmp_path


def test_refused_accepted_and_rebuilt(folder: Path) -> None:
    out, says = folder / "out", ("kl_mean: expected at most 0, found", "out.report/report.html", "--accept")
    finish(folder)
    change(folder, evaluation=IMPOSSIBLE)

    before = listing(out)
    refused(run("orin-export", *BUILD, cwd=folder), says, 1)
    assert listing(out) == before
    assert [check.name for check in data.read(out).missed] == ["kl_mean"]
    assert "Refused: kl_mean: expected at most 0" in html(folder)

    done = run("orin-export", *BUILD, "--accept", cwd=folder)
    assert (done.returncode, "which misses a bound" in done.stdout) == (0, True)
    assert [step for step in ("quantise", "verify", "float model", "evaluate") if f"{step}: " in done.stderr] == []
    assert opened(out).report["accepted"] == 1
    assert "Accepted all the same: kl_mean: expected at most 0" in html(folder)
    assert is_tidy(folder)

    before = listing(folder)
    assert "up to date" in run("orin-export", *BUILD, "--accept", cwd=folder).stderr
    assert listing(folder) == before

    before = listing(out)
    refused(run("orin-export", *BUILD, cwd=folder), says, 1)
    assert listing(out) == before

    change(folder)
    assert "accepted" not in finish(folder).manifest.report
    assert "Within its bounds." in html(folder)


def html(folder: Path) -> str:
    return (folder / "out.report/report.html").read_text(encoding="utf-8")


def opened(folder: Path) -> Manifest:
    return Bundle.open(folder, keys=None, supported=VERSIONS).manifest


def test_a_report_never_replaces_files_of_somebody_else(folder: Path) -> None:
    (folder / "out.report").mkdir()
    finish(folder)
    (folder / "out.report/notes.txt").write_text("mine", encoding="utf-8")
    change(folder, name="other")
    with pytest.raises(BundleError, match=r"out\.report: expected a report, .* found 'notes\.txt'; choose another"):
        finish(folder)
    assert (folder / "out.report/notes.txt").read_text(encoding="utf-8") == "mine"
    assert not (folder / "out.work").exists()


def test_to_accept_what_misses_nothing_is_not_recorded(folder: Path) -> None:
    made = build(plan.read(folder / "recipe.yaml"), target.read(TARGET), folder / "out", accept=True)
    assert "accepted" not in made.manifest.report
    assert not data.read(folder / "out").accepted
    assert finish(folder) == made


def test_a_text_that_is_not_there_is_told_before_any_work(folder: Path) -> None:
    change(folder, evaluation={"text": "none.txt"})
    done = run("orin-export", *BUILD, cwd=folder)
    refused(done, ("evaluation: text: expected UTF-8 text at none.txt",), 78)
    assert "quantise" not in done.stderr


def test_another_recipe_keeps_the_float_model(folder: Path) -> None:
    for method in ("rtn", "none"):
        change(folder, evaluation=IMPOSSIBLE, quantise={"method": method, "group_size": 32})
        done = run("orin-export", *BUILD, cwd=folder)
        assert ("float model: " in done.stderr, "quantise: " in done.stderr) == (method == "rtn", True)


def test_another_text_of_the_same_name_is_another_export(folder: Path) -> None:
    change(folder, evaluation=EVALUATION | {"text": "mine.txt"})
    made = []
    for line in ("to be or not to be ", "that is the question "):
        (folder / "mine.txt").write_text(line * 4)
        made.append(finish(folder).manifest)
    assert made[0].recipe == made[1].recipe
    assert made[0].provenance.texts["evaluation"] != made[1].provenance.texts["evaluation"]
    assert made[0].report["quality_perplexity"] != made[1].report["quality_perplexity"]


def test_the_demo_is_within_the_bounds_of_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is shipped, on text that neither its training nor its calibration has seen; it loses at most half of what
    s = absmax / 7 and the nearest integers lose there."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    bench = importlib.import_module("quantisation")
    planned = plan.read(DEMO)
    assert planned.recipe.evaluation.bounds == Bounds()
    made = build(planned, target.read(TARGET), tmp_path / "demo")
    report = data.read(tmp_path / "demo")
    assert made.manifest.report["quality_kl_mean"] < 0.025
    assert report.quality.positions > 2000
    assert all(m.after < 0.6 * m.before for m in report.matrices if m.after is not None and m.before is not None)
    compared = bench.Texts(planned, bench.floats(planned), {"evaluation": planned.evaluation_ids})
    assert report.quality.kl_mean <= 0.5 * compared.compare(bench.plain(planned))["evaluation"].kl_mean
