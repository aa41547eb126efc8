# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from orinkit.bundle import Bundle
from orinkit.ops import VERSIONS
from orinkit.ops.description import rms_norm
from orinkit_export import findings, gate, plan, rounding
from orinkit_export.report import data
from orinkit_export.report.data import Report
from programs import desk, finish, small_desk

POINTS = {"norm1", "mixer", "norm2", "inner"}


def test_the_head_of_the_report(report: Report, calibrated: Path) -> None:
    planned = plan.read(calibrated / "recipe.yaml")
    assert (report.name, report.target, report.recipe) == ("small", "host", planned.recipe)
    assert report.model.parameters == planned.parameters()
    assert (report.model.layers, report.model.vocab) == (len(planned.spec.layers), planned.spec.vocab)
    assert report.bounds == gate.bounds(planned.recipe.evaluation.bounds, planned.parameters())
    assert report.data_bytes == (calibrated / "out/model.data").stat().st_size
    assert list(report.stages) == ["model", "verify", "float", "evaluate"]
    assert all(cost.seconds > 0 and cost.peak_bytes > 1e6 for cost in report.stages.values())


def test_the_manifest_has_the_same_numbers(report: Report, calibrated: Path) -> None:
    manifest = Bundle.open(calibrated / "out", keys=None, supported=VERSIONS).manifest
    assert manifest.report == pytest.approx({**report.agreement, **report.quality.report()}, rel=1e-2)


def test_every_matrix_with_its_format_size_and_errors(report: Report, calibrated: Path) -> None:
    planned = plan.read(calibrated / "recipe.yaml")
    stored = {weight.name.removesuffix(".weight"): weight for weight in planned.stored() if ".weight" in weight.name}
    matrices = {matrix.name: matrix for matrix in report.matrices}
    assert list(matrices) == list(stored)
    for name, matrix in matrices.items():
        n, k = stored[name].shape
        assert matrix.weights == n * k
        is_int4 = matrix.kind not in ("embedding", "ba")
        assert matrix.format == ("int4-g32" if is_int4 else "float16")
        assert matrix.bytes == (n * k // 2 + n * k // 32 * 2 if is_int4 else 2 * n * k)
        assert (matrix.before is None, matrix.after is None) == (not is_int4, not is_int4)
        assert matrix.before is None or matrix.after is None or 0 < matrix.after < matrix.before < 0.1


def test_the_error_before_is_that_of_plain_rounding(report: Report, calibrated: Path) -> None:
    """The first layer's inputs are embedding rows behind its first norm."""
    planned = plan.read(calibrated / "recipe.yaml")
    stored = {weight.name: np.concatenate(list(weight.blocks())) for weight in planned.stored()}
    rows = stored["embedding.weight"][planned.calibration_ids].reshape(-1, planned.spec.hidden)
    x = rms_norm(rows, stored["layers.0.norm1"], planned.spec.norm_eps)
    wanted = rounding.plain_loss(stored["layers.0.qkvz.weight"], 32, x.T @ x / np.float32(len(x)))
    found = next(matrix.before for matrix in report.matrices if matrix.name == "layers.0.qkvz")
    assert found == pytest.approx(wanted, rel=1e-3)
    first = next(entry for entry in report.inputs if (entry.layer, entry.point) == (0, "norm1"))
    assert first.largest == pytest.approx(np.abs(x).max(), rel=1e-3)
    assert first.channel == np.abs(x).max(axis=0).argmax()
    assert first.typical == pytest.approx(np.median(np.abs(x).mean(axis=0)), rel=1e-3)
    assert first.outliers == (np.abs(x).mean(axis=0) > findings.OUTLIER * first.typical).sum()


def test_folds_and_inputs_of_every_layer_in_order(report: Report) -> None:
    layers = range(report.model.layers)
    for entries in (report.folds, report.inputs):
        assert {(entry.layer, entry.point) for entry in entries} == {(i, point) for i in layers for point in POINTS}
        assert [entry.layer for entry in entries] == sorted(entry.layer for entry in entries)
    assert all(0 < fold.ratio <= 1 <= fold.spread for fold in report.folds)
    assert all((fold.kind == "identity") == (fold.ratio == 1) for fold in report.folds)
    assert all(entry.largest >= entry.channel_mean > 0 for entry in report.inputs)


def test_without_calibration_there_are_sizes_and_no_errors(tmp_path: Path) -> None:
    finish(desk(tmp_path))
    found = data.read(tmp_path / "out")
    assert (found.folds, found.inputs) == ((), ())
    assert {(matrix.before, matrix.after) for matrix in found.matrices} == {(None, None)}
    assert found.sizes.keys() > {"embedding float16", "head int4-g128", "rest"}


def test_the_same_inputs_give_the_same_report_but_for_its_costs(calibrated: Path, tmp_path: Path) -> None:
    first = data.read(calibrated / "out")
    finish(small_desk(tmp_path))
    again = data.read(tmp_path / "out")
    assert {**vars(again), "stages": None} == {**vars(first), "stages": None}
