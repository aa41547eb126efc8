# SPDX-License-Identifier: Apache-2.0
"""Modules fused to the matrices of the graph: what is stored stands for the checkpoint's weights, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import packers
import quantised_models
from orinkit import int4
from orinkit.errors import CheckpointError
from orinkit_export import safetensors
from orinkit_export.architectures import model_spec
from orinkit_export.checkpoint import WEIGHTS, Checkpoint
from orinkit_export.imports.compressed_tensors import PackQuantized
from orinkit_export.imports.gptq import Gptq
from orinkit_export.imports.integers import Integers, Part, integers
from orinkit_export.imports.module import Format
from orinkit_export.weights import Weight, Weights
from packers import STYLES, Linear, Tensors
from small_models import CAPACITY

Array = NDArray[Any]
A, B = "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"
V2, PACKED = Gptq(is_v1=False, is_symmetric=False), PackQuantized()


def reversed_rows(part: Part) -> Array:
    """A way of fusing that nothing needs."""
    return np.concatenate([part(B, 16), part(A, 8)])[::-1]


def fused(folder: Path, stored: Format, a: Tensors, b: Tensors, is_gathered: bool = False) -> Integers | None:
    checkpoint = packers.alone(folder, {A: a, B: b})
    return integers(stored, checkpoint, (A, B), (24, 64), reversed_rows, is_gathered)


def pair(**options: Any) -> tuple[Linear, Linear]:
    return packers.linear(1, 8, 64, 32, **options), packers.linear(2, 16, 64, 32, **options)


# What is stored


@pytest.mark.parametrize("is_gathered", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
def test_tensors(act_order: bool, is_gathered: bool, tmp_path: Path) -> None:
    group = packers.shuffled(5, 64, 32) if act_order else None
    a, b = pair(group=group)
    found = fused(tmp_path, V2, packers.gptq_v2(a), packers.gptq_v2(b), is_gathered)
    assert found is not None
    tensors = dict(found.tensors())
    assert {name: (array.dtype.name, array.shape) for name, array in tensors.items()} == found.layout
    assert found.nbytes == sum(array.nbytes for array in tensors.values())
    assert ("columns" in tensors) == (act_order and not is_gathered)
    expected = np.concatenate([b.dequantised(), a.dequantised()])[::-1]
    order = np.argsort(a.group, kind="stable")
    wide = int4.dequantise(tensors["weight"], tensors["scales"], tensors["zeros"])
    assert np.array_equal(wide, expected[:, order])
    if "columns" in tensors:
        assert np.array_equal(tensors["columns"], order)
    (block,) = found.blocks()
    assert np.array_equal(block, expected[:, order] if is_gathered else expected)


def test_zero_points_of_some_modules(tmp_path: Path) -> None:
    """The others get the 8 that they stand for; where no module has any, none are stored."""
    a, b = packers.linear(1, 8, 64, 32, symmetric=True), packers.linear(2, 16, 64, 32)
    found = fused(tmp_path / "some", PACKED, packers.compressed(a), packers.compressed(b))
    assert found is not None
    zeros = int4.unpack(dict(found.tensors())["zeros"], 2)
    assert np.array_equal(zeros, np.concatenate([b.z, a.z])[::-1])
    a, b = pair(symmetric=True)
    none = fused(tmp_path / "none", PACKED, packers.compressed(a), packers.compressed(b))
    assert none is not None
    assert list(dict(none.tensors())) == list(none.layout) == ["weight", "scales"]


def test_wide_modules_are_none_of_ours(tmp_path: Path) -> None:
    wide = {"weight": np.ones((8, 64), np.float16)}
    assert fused(tmp_path, V2, wide, wide) is None


# Whole models


def read(weight: Weight) -> NDArray[np.float32]:
    return np.concatenate(list(weight.blocks()))


def weights(checkpoint: Checkpoint) -> dict[str, Weight]:
    return {weight.name: weight for weight in Weights(checkpoint, model_spec(checkpoint.text_config), CAPACITY)}


@pytest.mark.parametrize("name", ["qwen3_5-2-4", "qwen2"])
@pytest.mark.parametrize("style", STYLES)
def test_every_matrix_is_that_of_the_dequantised_checkpoint(name: str, style: str, tmp_path: Path) -> None:
    """In the order of its inputs: those of down_proj come by group, because the rows of gate and up are moved."""
    quantised, floats = quantised_models.write(tmp_path, name, STYLES[style], 32)
    found, expected = weights(quantised), weights(floats)
    assert list(found) == list(expected)
    for ours, weight in found.items():
        wide = read(expected[ours])
        down = found.get(ours.replace("gate_up.weight", "down.weight").replace("gate_up.bias", "down.weight"))
        order = down.integers.order if down and down.integers else None
        if order is not None and ours.endswith("down.weight"):
            wide = wide[:, order]
        elif order is not None and "gate_up" in ours:
            wide = wide.reshape(-1, 2, *wide.shape[1:])[order].reshape(wide.shape)
        assert np.array_equal(read(weight), wide), ours
        is_projection = expected[ours].role in ("projection", "gated_delta")
        assert (weight.role == "imported") == (weight.integers is not None) == is_projection
        if weight.integers:
            has_columns = STYLES[style].act_order and not ours.endswith("down.weight")
            assert ("columns" in weight.integers.layout) == has_columns
            assert ("zeros" in weight.integers.layout) != STYLES[style].symmetric
    used = [source for weight in found.values() for source in weight.sources]
    assert all("visual" in left or left.startswith("mtp.") for left in quantised.unused(used))


def test_biases_of_gate_and_up_move_with_their_rows(tmp_path: Path) -> None:
    quantised, _ = quantised_models.write(tmp_path, "llama3", STYLES["gptq-act-order"], 32)
    biases = {f"model.layers.0.mlp.{part}_proj.bias": np.random.default_rng(1).random(96) for part in ("gate", "up")}
    tensors = {name: quantised.read_stored(name) for name in sorted(quantised.names)}
    tensors |= {name: array.astype(np.float32) for name, array in biases.items()}
    safetensors.write(quantised.folder / WEIGHTS, tensors)
    found = weights(Checkpoint.open(quantised.folder))
    down = found["layers.0.down.weight"].integers
    assert down is not None
    assert down.order is not None
    gate, up = (tensors[name] for name in biases)
    expected = [row for place in down.order for row in (gate[place], up[place])]
    assert np.array_equal(read(found["layers.0.gate_up.bias"]), expected)


# Refusals


def test_half_of_a_matrix(tmp_path: Path) -> None:
    a, b = pair()
    wide = {"weight": b.dequantised()}
    says = f"{B}: expected all projections that share an input to be quantised or none, found this one wide among {A}, "
    with pytest.raises(CheckpointError, match=says):
        fused(tmp_path, V2, packers.gptq_v2(a), wide)


def test_two_orders(tmp_path: Path) -> None:
    a, b = (pair(group=packers.shuffled(seed, 64, 32))[seed] for seed in (0, 1))
    says = f"{B}: expected one g_idx for projections that share an input, found another than in {A}; use the float"
    with pytest.raises(CheckpointError, match=says):
        fused(tmp_path / "two", V2, packers.gptq_v2(a), packers.gptq_v2(b))
    with pytest.raises(CheckpointError, match=says):
        fused(tmp_path / "one", V2, packers.gptq_v2(a), packers.gptq_v2(pair()[1]))


def test_two_group_sizes(tmp_path: Path) -> None:
    a, b = packers.linear(1, 8, 64, 32), packers.linear(2, 16, 64, 64)
    with pytest.raises(CheckpointError, match=f"{B}: expected groups of 32 as in {A}, found 64; use the float"):
        fused(tmp_path, V2, packers.gptq_v2(a), packers.gptq_v2(b))


@pytest.mark.parametrize(("n", "k"), [(24, 64), (16, 128)])
def test_sizes_that_config_json_does_not_have(n: int, k: int, tmp_path: Path) -> None:
    a, b = packers.linear(1, 8, 64, 32), packers.linear(2, n, k, 32)
    says = rf"expected \[24, 64\] weights by config\.json, found {A} \[8, 64\], {B} \[{n}, {k}\]; does config\.json fit"
    with pytest.raises(CheckpointError, match=says):
        fused(tmp_path, V2, packers.gptq_v2(a), packers.gptq_v2(b))


def test_rows_that_only_add_up(tmp_path: Path) -> None:
    a, b = packers.linear(1, 16, 64, 32), packers.linear(2, 8, 64, 32)
    found = fused(tmp_path, V2, packers.gptq_v2(a), packers.gptq_v2(b))
    assert found is not None
    with pytest.raises(CheckpointError, match=f"{B}: expected 16 rows by config.json, found 8; does config"):
        list(found.tensors())


def test_what_is_called_symmetric_is_checked_where_nothing_of_it_is_stored(tmp_path: Path) -> None:
    a, b = pair()
    found = fused(tmp_path, Gptq(is_v1=False, is_symmetric=True), packers.gptq_v2(a), packers.gptq_v2(b))
    assert found is not None
    with pytest.raises(CheckpointError, match="expected zero points of 8"):
        list(found.tensors())
