# SPDX-License-Identifier: Apache-2.0
"""GPTQ v1 and v2, with and without act-order, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import packers
from orinkit.errors import CheckpointError
from orinkit_export.imports import gptq
from orinkit_export.imports.gptq import Gptq

NAME = "model.layers.0.mlp.down_proj"
V1, V2 = Gptq(is_v1=True, is_symmetric=False), Gptq(is_v1=False, is_symmetric=False)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("stored", [V1, V2], ids=["v1", "v2"])
def test_exact(stored: Gptq, groups: int, group_size: int, act_order: bool, tmp_path: Path) -> None:
    group = packers.shuffled(7, groups * group_size, group_size) if act_order else None
    given = packers.linear(groups, 24, groups * group_size, group_size, group=group, least=int(stored.is_v1))
    pack = packers.gptq_v1 if stored.is_v1 else packers.gptq_v2
    checkpoint = packers.alone(tmp_path, {NAME: pack(given)})
    found = stored.module(checkpoint, NAME)
    assert (found.shape, found.group_size) == (given.q.shape, group_size)
    assert (found.order is None) == (not act_order or groups == 1)
    assert np.array_equal(found.read_values(), given.q)
    assert np.array_equal(found.zeros(), given.z)
    assert np.array_equal(found.read_scales(), given.s)
    assert set(found.sources) == checkpoint.names


def test_without_g_idx(tmp_path: Path) -> None:
    tensors = packers.gptq_v2(packers.linear(1, 8, 64, 32))
    del tensors["g_idx"]
    assert V2.module(packers.alone(tmp_path, {NAME: tensors}), NAME).order is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, V1),
        ({"checkpoint_format": "gptq"}, V1),
        ({"checkpoint_format": None, "format": None}, V1),
        ({"format": "gptq_v2"}, V2),
        ({"checkpoint_format": "gptq_v2", "format": "gptq_v2", "pack_dtype": "int32"}, V2),
        ({"sym": True, "desc_act": True}, Gptq(is_v1=True, is_symmetric=True)),
    ],
)
def test_settings(given: dict[str, Any], expected: Gptq) -> None:
    assert gptq.parse({"bits": 4, "group_size": 128} | given) == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bits": 3}, "bits: expected 4, found 3"),
        ({"bits": 8}, "bits: expected 4, found 8"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format: expected 'gptq' or 'gptq_v2', found 'marlin'"),
        ({"format": "gptq_p"}, "checkpoint_format: .* found 'gptq_p'"),
        ({"is_marlin_format": True}, "is_marlin_format: expected False, found True"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: quantization_config: {says}; use the float checkpoint"):
        gptq.parse({"bits": 4} | changes)


def test_a_zero_point_stored_as_15(tmp_path: Path) -> None:
    """v2 holds it; in v1 nobody knows whether it is 16 or a 0 that wrapped."""
    given = packers.linear(1, 24, 96, 32, least=1)
    given.z[5, 1] = 15
    tensors = packers.gptq_v2(given)
    assert V2.module(packers.alone(tmp_path / "2", {NAME: tensors}), NAME).zeros()[5, 1] == 15
    says = rf"{NAME}\.qzeros: expected zero points of 1 to 15, found a stored 15: 16, or 0 that wrapped; use the float"
    with pytest.raises(CheckpointError, match=says):
        V1.module(packers.alone(tmp_path / "1", {NAME: tensors}), NAME).zeros()


def test_a_zero_point_of_0_that_borrowed_from_its_neighbours(tmp_path: Path) -> None:
    """A tool that subtracts 1 from all nibbles of a word at once leaves a 15 wherever a 0 was."""
    given = packers.linear(1, 24, 96, 32, least=1)
    given.z[8:11, 2] = 0
    tensors = packers.gptq_v2(given)
    words = tensors["qzeros"].view(np.uint32) - np.uint32(0x11111111)
    checkpoint = packers.alone(tmp_path, {NAME: tensors | {"qzeros": words.view(np.int32)}})
    with pytest.raises(CheckpointError, match="found a stored 15"):
        V1.module(checkpoint, NAME).zeros()


def test_groups_of_other_sizes_than_the_first(tmp_path: Path) -> None:
    tensors = packers.gptq_v2(packers.linear(1, 8, 64, 32)) | {"g_idx": np.repeat([0, 1], [40, 24]).astype(np.int32)}
    with pytest.raises(CheckpointError, match=rf"{NAME}\.g_idx: expected 32 columns in every group"):
        V2.module(packers.alone(tmp_path, {NAME: tensors}), NAME)


def test_one_scale_for_a_row(tmp_path: Path) -> None:
    tensors = packers.gptq_v2(packers.linear(1, 8, 256, 256))
    with pytest.raises(CheckpointError, match="expected groups of one of 32, 64, 128 weights, found 1 groups in a row"):
        V2.module(packers.alone(tmp_path, {NAME: tensors}), NAME)


def test_zero_points_of_another_number(tmp_path: Path) -> None:
    tensors = packers.gptq_v2(packers.linear(1, 24, 64, 32)) | {"qzeros": np.ones((2, 4), np.int32)}
    with pytest.raises(CheckpointError, match=r"qzeros': expected shape \(2, 3\), found \(2, 4\)"):
        V2.module(packers.alone(tmp_path, {NAME: tensors}), NAME).zeros()
