# SPDX-License-Identifier: Apache-2.0
"""What all formats have in common: groups, scales, orders, and the settings of config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import packers
from orinkit.errors import CheckpointError
from orinkit_export.imports.module import Module, Stored, expect, nibbles, section

Array = NDArray[Any]
NAME = "model.layers.0.mlp.down_proj"
FLOATS = (np.float16, ml_dtypes.bfloat16, np.float32)


def stored(folder: Path, **tensors: Array) -> Stored:
    return Stored(packers.alone(folder, {NAME: tensors}), NAME)


def test_tensors_by_suffix(tmp_path: Path) -> None:
    found = stored(tmp_path, scales=np.ones((2, 3), np.float16), g_idx=np.arange(3, dtype=np.int32))
    assert "scales" in found
    assert "qzeros" not in found
    assert found.sources("scales", optional=("qzeros", "g_idx")) == (f"{NAME}.scales", f"{NAME}.g_idx")
    with pytest.raises(CheckpointError, match=rf"no tensor '{NAME}\.qzeros'"):
        found.sources("scales", "qzeros")
    assert found.shape("scales") == (2, 3)
    with pytest.raises(CheckpointError, match=rf"{NAME}\.g_idx: expected a matrix, found shape \(3,\)"):
        found.shape("g_idx")
    with pytest.raises(CheckpointError, match=rf"no tensor '{NAME}\.qzeros'"):
        found.shape("qzeros")


def test_nibbles_begin_with_the_lowest() -> None:
    words = np.array([[0x76543210, -0x01234568], [0, -1]], np.int32)  # the second is 0xFEDCBA98
    assert nibbles(words).tolist() == [list(range(16)), [0] * 8 + [15] * 8]


@pytest.mark.parametrize("dtype", [np.int64, np.int16, np.uint32, np.float32])
def test_integers_of_another_type(dtype: Any, tmp_path: Path) -> None:
    found = stored(tmp_path, qweight=np.ones((2, 2), dtype))
    with pytest.raises(CheckpointError, match=rf"{NAME}\.qweight: expected I32, found \w\d\d; use the float"):
        found.integers("qweight", (2, 2))


def test_integers_of_another_shape(tmp_path: Path) -> None:
    found = stored(tmp_path, qweight=np.ones((2, 2), np.int32))
    with pytest.raises(CheckpointError, match=r"expected shape \(2, 3\), found \(2, 2\)"):
        found.integers("qweight", (2, 3))


# Groups


@pytest.mark.parametrize(("columns", "groups", "size"), [(96, 3, 32), (64, 1, 64), (384, 3, 128)])
def test_group_sizes(columns: int, groups: int, size: int, tmp_path: Path) -> None:
    assert stored(tmp_path).group_size(columns, groups) == size


@pytest.mark.parametrize(
    ("columns", "groups"), [(1024, 1), (256, 1), (1024, 2), (64, 4), (96, 2), (100, 3), (64, 0), (64, 5)]
)
def test_groups_that_the_ops_do_not_have(columns: int, groups: int, tmp_path: Path) -> None:
    """One scale for a row among them."""
    says = f"{NAME}: expected groups of one of 32, 64, 128 weights, found {groups} groups in a row of {columns}; use"
    with pytest.raises(CheckpointError, match=says):
        stored(tmp_path).group_size(columns, groups)


# Scales


@pytest.mark.parametrize("dtype", FLOATS)
def test_scales_keep_their_value_and_sign(dtype: Any, tmp_path: Path) -> None:
    given = np.array([[0.5, -0.0078125, 0.0], [2**-23, -2.0, 1.0]]).astype(dtype)
    found = stored(tmp_path, scales=given).scales("scales", (2, 3))
    assert found.dtype == np.float16
    assert np.array_equal(found.astype(np.float64), given.astype(np.float64))


@pytest.mark.parametrize(
    ("dtype", "value"), [(ml_dtypes.bfloat16, 1.3e-7), (ml_dtypes.bfloat16, 1e5), (np.float32, 0.1)]
)
def test_scales_that_float16_does_not_hold(dtype: Any, value: float, tmp_path: Path) -> None:
    given = np.array([[1, -value]]).astype(dtype)
    says = rf"{NAME}\.scales: expected scales that float16 holds exactly, found -[\d.e-]+; use the float"
    with pytest.raises(CheckpointError, match=says):
        stored(tmp_path, scales=given).scales("scales", (1, 2))


def test_scales_that_are_not_finite(tmp_path: Path) -> None:
    given = np.array([[1, np.nan]], np.float16)
    with pytest.raises(CheckpointError, match="found nan"):
        stored(tmp_path, scales=given).scales("scales", (1, 2))


# The order of columns


def test_no_order(tmp_path: Path) -> None:
    """Not stored, never filled in, or as the columns lie."""
    for number, group in enumerate((None, np.full(64, -1), np.arange(64) // 32)):
        tensors = {} if group is None else {"g_idx": group.astype(np.int32)}
        assert stored(tmp_path / str(number), **tensors).order("g_idx", 64, 32) is None


def test_columns_by_group(tmp_path: Path) -> None:
    group = packers.shuffled(1, 96, 32).astype(np.int32)
    order = stored(tmp_path, g_idx=group).order("g_idx", 96, 32)
    assert order is not None
    assert order.dtype == np.int32
    expected = [column for wanted in range(3) for column in range(96) if group[column] == wanted]
    assert order.tolist() == expected


@pytest.mark.parametrize("group", [[0] * 33 + [1] * 31, [0] * 64, [1] * 32 + [2] * 32, [-1] * 32 + [0] * 32])
def test_groups_of_unequal_size(group: list[int], tmp_path: Path) -> None:
    found = stored(tmp_path, g_idx=np.array(group, np.int32))
    with pytest.raises(CheckpointError, match=rf"{NAME}\.g_idx: expected 32 columns in every group, found other"):
        found.order("g_idx", 64, 32)


# Zero points


def module(zeros: Array | None, is_symmetric: bool) -> Module:
    none = np.zeros((2, 64), np.uint8)
    scales = np.ones((2, 2), np.float16)
    read = None if zeros is None else lambda: zeros
    return Module(NAME, (), (2, 64), 32, None, is_symmetric, lambda: none, lambda: scales, read)


def test_zero_points() -> None:
    given = np.array([[0, 15], [8, 3]], np.uint8)
    assert np.array_equal(module(given, False).zeros(), given)
    assert module(given, False).has_zeros
    for eights in (module(None, False), module(np.full((2, 2), 8, np.uint8), True)):
        assert not eights.has_zeros
        assert eights.zeros().tolist() == [[8, 8], [8, 8]]


def test_what_is_called_symmetric_is() -> None:
    with pytest.raises(CheckpointError, match=f"{NAME}: expected zero points of 8, as config.json says symmetric"):
        module(np.array([[8, 8], [8, 7]], np.uint8), True).zeros()


# Settings


def test_settings() -> None:
    settings = {"bits": 4, "nothing": None, "inside": {"a": 1}}
    assert expect(settings, "bits", None, 3, 4) == 4
    assert expect(settings, "nothing", "default", "default") == "default"
    assert expect(settings, "absent", None, None) is None
    assert section(settings, "inside") == {"a": 1}
    assert section(settings, "nothing") == section(settings, "absent") == {}


@pytest.mark.parametrize("found", [8, "4", 4.0, True, [4], {"a": 4}])
def test_a_setting_of_another_value_or_type(found: Any) -> None:
    says = r"config\.json: quantization_config: bits: expected 3 or 4, found .*; use the float checkpoint that it was"
    with pytest.raises(CheckpointError, match=says):
        expect({"bits": found}, "bits", None, 3, 4)


def test_a_setting_that_must_be_absent() -> None:
    with pytest.raises(CheckpointError, match="bits: expected none, found 4"):
        expect({"bits": 4}, "bits", None, None)


@pytest.mark.parametrize("found", [1, "text", ["list"]])
def test_a_section_that_is_none(found: Any) -> None:
    with pytest.raises(CheckpointError, match="quantization_config: inside: expected an object, found"):
        section({"inside": found}, "inside")
