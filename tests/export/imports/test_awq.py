# SPDX-License-Identifier: Apache-2.0
"""AutoAWQ's two layouts, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import packers
from orinkit.errors import CheckpointError
from orinkit_export.imports import awq
from packers import STYLES, Tensors

NAME = "model.layers.0.mlp.down_proj"
PACK = {"gemm": packers.awq_gemm, "gemv": packers.awq_gemv}
VERSIONS = pytest.mark.parametrize("version", PACK)


def settings(version: str, **changes: Any) -> dict[str, Any]:
    return STYLES[f"awq-{version}"].settings(32) | changes


@VERSIONS
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("groups", [1, 3, 8, 9])
def test_exact(version: str, group_size: int, groups: int, tmp_path: Path) -> None:
    given = packers.linear(groups, 24, groups * group_size, group_size)
    checkpoint = packers.alone(tmp_path, {NAME: PACK[version](given)})
    found = awq.parse(settings(version, group_size=group_size)).module(checkpoint, NAME)
    assert (found.shape, found.group_size, found.order) == (given.q.shape, group_size, None)
    assert np.array_equal(found.read_values(), given.q)
    assert np.array_equal(found.zeros(), given.z)
    assert np.array_equal(found.read_scales(), given.s)
    assert set(found.sources) == checkpoint.names


@VERSIONS
def test_symmetric(version: str, tmp_path: Path) -> None:
    """The zero points are stored all the same; they must be what is said of them."""
    stored = awq.parse(settings(version, zero_point=False))
    eights = packers.alone(tmp_path / "8", {NAME: PACK[version](packers.linear(1, 8, 64, 32, symmetric=True))})
    assert not stored.module(eights, NAME).has_zeros
    assert (stored.module(eights, NAME).zeros() == 8).all()
    others = packers.alone(tmp_path / "9", {NAME: PACK[version](packers.linear(1, 8, 64, 32))})
    with pytest.raises(CheckpointError, match="expected zero points of 8, as config"):
        stored.module(others, NAME).zeros()


@pytest.mark.parametrize(
    "given", [{}, {"version": "GEMM"}, {"format": "gemm"}, {"version": None}, {"version": "gemm", "format": "x"}]
)
def test_gemm_by_any_name(given: dict[str, Any]) -> None:
    assert awq.parse({"bits": 4} | given) == awq.Gemm(is_symmetric=False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bits": 8}, "bits: expected 4, found 8"),
        ({"bits": None}, "bits: expected 4, found None"),
        ({"version": "gemv_fast"}, "version: expected 'gemm' or 'gemv', found 'gemv_fast'"),
        ({"version": "marlin"}, "version: .* found 'marlin'"),
        ({"version": None, "format": "llm-awq"}, "version: .* found 'llm-awq'"),
        ({"backend": "llm-awq"}, "version: .* found 'llm-awq'"),
        ({"version": "gemv", "group_size": -1}, "group_size: expected 32 or 64 or 128, found -1"),
        ({"version": "gemv", "group_size": None}, "group_size: .* found None"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: quantization_config: {says}; use the float checkpoint"):
        awq.parse(settings("gemm") | changes)


def without(tensors: Tensors, suffix: str) -> Tensors:
    return {name: array for name, array in tensors.items() if name != suffix}


@VERSIONS
@pytest.mark.parametrize("suffix", ["qzeros", "scales"])
def test_a_missing_tensor(version: str, suffix: str, tmp_path: Path) -> None:
    tensors = without(PACK[version](packers.linear(1, 8, 64, 32)), suffix)
    checkpoint = packers.alone(tmp_path, {NAME: tensors})
    with pytest.raises(CheckpointError, match=f"no tensor '{NAME}.{suffix}'"):
        awq.parse(settings(version)).module(checkpoint, NAME)


def test_one_scale_for_a_row(tmp_path: Path) -> None:
    tensors = packers.awq_gemm(packers.linear(1, 8, 256, 256))
    with pytest.raises(CheckpointError, match="expected groups of one of 32, 64, 128 weights, found 1 groups in a row"):
        awq.parse(settings("gemm")).module(packers.alone(tmp_path, {NAME: tensors}), NAME)


@pytest.mark.parametrize("columns", [80, 2048])
def test_rows_that_the_groups_of_gemv_do_not_fit(columns: int, tmp_path: Path) -> None:
    tensors = packers.awq_gemv(packers.linear(1, 8, 64, 32)) | {"qweight": np.ones((8, columns // 8), np.int32)}
    with pytest.raises(CheckpointError, match=f"expected groups of 32 weights, found rows of {columns} and 4 words"):
        awq.parse(settings("gemv")).module(packers.alone(tmp_path, {NAME: tensors}), NAME)


def test_the_other_layout_is_noticed(tmp_path: Path) -> None:
    """By its shapes, whatever config.json says."""
    gemv = packers.alone(tmp_path / "gemv", {NAME: packers.awq_gemv(packers.linear(1, 24, 64, 32))})
    with pytest.raises(CheckpointError, match="expected"):
        awq.parse(settings("gemm")).module(gemv, NAME)
