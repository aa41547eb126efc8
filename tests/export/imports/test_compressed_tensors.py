# SPDX-License-Identifier: Apache-2.0
"""compressed-tensors' packed integers, bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import packers
from orinkit.errors import CheckpointError
from orinkit_export.imports import compressed_tensors
from orinkit_export.imports.compressed_tensors import PackQuantized
from packers import STYLES

NAME = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize(("rows", "groups"), [(24, 1), (20, 3), (5, 2)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_exact(rows: int, groups: int, group_size: int, act_order: bool, symmetric: bool, tmp_path: Path) -> None:
    """Rows beyond a multiple of eight, too: zero points are packed along them."""
    group = packers.shuffled(3, groups * group_size, group_size) if act_order else None
    given = packers.linear(rows, rows, groups * group_size, group_size, symmetric=symmetric, group=group)
    checkpoint = packers.alone(tmp_path, {NAME: packers.compressed(given)})
    found = PackQuantized().module(checkpoint, NAME)
    assert (found.shape, found.group_size, found.has_zeros) == (given.q.shape, group_size, not symmetric)
    assert (found.order is None) == (not act_order or groups == 1)
    assert np.array_equal(found.read_values(), given.q)
    assert np.array_equal(found.zeros(), given.z)
    assert np.array_equal(found.read_scales(), given.s)
    assert set(found.sources) == checkpoint.names


def test_an_order_that_was_never_filled_in(tmp_path: Path) -> None:
    tensors = packers.compressed(packers.linear(1, 8, 64, 32)) | {"weight_g_idx": np.full(64, -1, np.int32)}
    assert PackQuantized().module(packers.alone(tmp_path, {NAME: tensors}), NAME).order is None


def settings() -> dict[str, Any]:
    return copy.deepcopy(STYLES["compressed"].settings(32))


@pytest.mark.parametrize("actorder", [None, "weight", "static", "group", "dynamic", True])
def test_any_activation_order(actorder: Any) -> None:
    """What it did to the columns stands in weight_g_idx or is undone."""
    given = settings()
    given["config_groups"]["group_0"]["weights"]["actorder"] = actorder
    assert compressed_tensors.parse(given) == PackQuantized()


def test_a_group_may_have_the_format() -> None:
    given = settings() | {"format": "mixed-precision"}
    given["config_groups"]["group_0"]["format"] = "pack-quantized"
    assert compressed_tensors.parse(given) == PackQuantized()


def test_what_older_releases_write_besides() -> None:
    assert compressed_tensors.parse(settings() | {"sparsity_config": {}, "transform_config": {}}) == PackQuantized()
    assert compressed_tensors.parse(settings() | {"sparsity_config": {"format": "dense"}}) == PackQuantized()


TOP = [
    ({"format": "float-quantized"}, "format: expected 'pack-quantized', found 'float-quantized'"),
    ({"format": "marlin-24"}, "format: expected 'pack-quantized', found 'marlin-24'"),
    ({"format": None}, "format: expected 'pack-quantized', found None"),
    ({"quantization_status": "frozen"}, "quantization_status: expected 'compressed', found 'frozen'"),
    ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "format: expected 'dense', found 'sparse-24-bitmask'"),
    ({"transform_config": {"config_groups": {"u": {}}}}, "config_groups: expected {}, found an object of 1 keys"),
    ({"config_groups": ["W4A16"]}, "config_groups: expected an object, found a list of 1 items"),
    ({"config_groups": {"W4A16": ["Linear"]}}, "W4A16: expected an object, found a list of 1 items"),
]


@pytest.mark.parametrize(("changes", "says"), TOP)
def test_settings_that_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=rf"config\.json: quantization_config: {says}"):
        compressed_tensors.parse(settings() | changes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_bits", 8),
        ("num_bits", None),
        ("type", "float"),
        ("strategy", "channel"),
        ("strategy", "tensor_group"),
        ("strategy", "block"),
    ],
)
def test_weights_that_are_refused(key: str, value: Any) -> None:
    given = settings()
    given["config_groups"]["group_0"]["weights"][key] = value
    with pytest.raises(CheckpointError, match=f"quantization_config: {key}: expected .*, found {value!r}; use the"):
        compressed_tensors.parse(given)


@pytest.mark.parametrize("key", ["input_activations", "output_activations"])
def test_quantised_activations(key: str) -> None:
    given = settings()
    given["config_groups"]["group_0"][key] = {"num_bits": 8}
    with pytest.raises(CheckpointError, match=f"quantization_config: {key}: expected none, found an object of 1 keys"):
        compressed_tensors.parse(given)


def test_every_group_is_looked_at() -> None:
    given = settings()
    other = copy.deepcopy(given["config_groups"]["group_0"])
    other["weights"]["num_bits"] = 8
    given["config_groups"]["group_1"] = other
    with pytest.raises(CheckpointError, match="num_bits: expected 4, found 8"):
        compressed_tensors.parse(given)


def test_zero_points_that_are_not_packed(tmp_path: Path) -> None:
    given = packers.linear(1, 8, 64, 32)
    tensors = packers.compressed(given) | {"weight_zero_point": (given.z - 8).astype(np.int8)}
    with pytest.raises(CheckpointError, match=rf"{NAME}\.weight_zero_point: expected I32, found I8; use the float"):
        PackQuantized().module(packers.alone(tmp_path, {NAME: tensors}), NAME).zeros()


def test_one_scale_for_a_row(tmp_path: Path) -> None:
    tensors = packers.compressed(packers.linear(1, 8, 256, 256))
    with pytest.raises(CheckpointError, match="expected groups of one of 32, 64, 128 weights, found 1 groups in a row"):
        PackQuantized().module(packers.alone(tmp_path, {NAME: tensors}), NAME)
