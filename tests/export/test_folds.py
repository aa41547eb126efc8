# SPDX-License-Identifier: Apache-2.0
"""Folds leave the float function of every family as it is; those that look like folds and are none do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import float_models
from float_models import FloatModel, relative
from orinkit.engines.base import Float32
from orinkit.model import LayerSpec
from orinkit_export.folds import Arrays, Fold, folds
from small_models import NAMES

SAME, OTHER = 1e-5, 1e-2
"""Relative differences of logits: below the first is rounding, above the second another function."""

Changed = dict[str, NDArray[np.float32]]
POINTS = ("norm1", "mixer", "norm2", "inner")


def biases() -> Changed:
    """Biases of gate, up and value for the Llama model."""
    rng = np.random.default_rng(3)
    sizes = {"mlp.gate_proj": 112, "mlp.up_proj": 112, "self_attn.q_proj": 128}
    sizes |= {"self_attn.k_proj": 64, "self_attn.v_proj": 64}
    names = (f"model.layers.{index}.{part}.bias" for index in range(3) for part in sizes)
    return {name: rng.standard_normal(sizes[name.split(".", 3)[3][:-5]]).astype(np.float32) for name in names}


MODELS: dict[str, tuple[str, Changed | None]] = {name: (name, None) for name in NAMES} | {
    "llama3-biases": ("llama3", biases())
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    name, changed = MODELS[request.param]
    return float_models.small(name, tmp_path_factory.mktemp(name), changed)


@pytest.fixture(scope="module")
def expected(model: FloatModel) -> Float32:
    return model.logits()


def vector(width: int, seed: int = 0) -> Float32:
    """Random factors, most of them between 1/7 and 7."""
    return np.exp(np.random.default_rng(seed).standard_normal(width)).astype(np.float32)


def folded(model: FloatModel, choose: Callable[[int, Fold], bool]) -> FloatModel:
    """The model with random vectors in all folds that are chosen, by layer and fold."""
    for index, layer in enumerate(model.spec.layers):
        arrays = model.layer(index)
        for number, fold in enumerate(folds(layer, model.spec.hidden)):
            if choose(index, fold):
                fold.apply(arrays, vector(fold.width, 10 * index + number))
        model = model.replaced(index, arrays)
    return model


@pytest.mark.parametrize("point", POINTS)
def test_a_fold_changes_nothing(point: str, model: FloatModel, expected: Float32) -> None:
    changed = folded(model, lambda _, fold: fold.point == point)
    assert relative(changed.logits(), expected) < SAME


def test_all_folds_together_change_nothing(model: FloatModel, expected: Float32) -> None:
    changed = folded(model, lambda *_: True)
    assert sum(not np.array_equal(changed.weights[name], model.weights[name]) for name in model.weights) >= 6
    assert relative(changed.logits(), expected) < SAME


def test_half_a_fold_changes_a_lot(model: FloatModel, expected: Float32) -> None:
    """Every fold without its consumers: what the tests above would find."""
    for point in POINTS:
        arrays = model.layer(last := len(model.spec.layers) - 1)
        fold = next(fold for fold in folds(model.spec.layers[last], model.spec.hidden) if fold.point == point)
        before = {name: arrays[name] for name in fold.consumers}
        fold.apply(arrays, vector(fold.width))
        changed = model.replaced(last, arrays | before)
        assert relative(changed.logits(), expected) > OTHER, point


def test_every_channel_of_every_quantised_matrix_is_in_a_fold(model: FloatModel) -> None:
    for index, layer in enumerate(model.spec.layers):
        arrays = model.layer(index)
        found = {name: fold for fold in folds(layer, model.spec.hidden) for name in fold.consumers}
        expected = {name for name, array in arrays.items() if name.endswith(".weight") and array.ndim == 2}
        assert found.keys() == expected
        for name, fold in found.items():
            assert fold.share.shape == (arrays[name].shape[1],)
            assert set(fold.share) == set(range(fold.width))


# What is no fold


def scaled(arrays: Arrays, name: str, rows: slice, by: NDArray[Any]) -> None:
    arrays[name] = arrays[name].copy()
    arrays[name][rows] *= by.reshape(-1, *[1] * (arrays[name].ndim - 1))


def gate_to_down(layer: LayerSpec, arrays: Arrays) -> None:
    """SiLU is not linear."""
    a = vector(layer.intermediate)
    Fold("inner", ("down.weight",), np.arange(layer.intermediate), "gate_up.weight", 0, 2).apply(arrays, a)


def z_to_out(layer: LayerSpec, arrays: Arrays) -> None:
    """Nor is it behind z."""
    assert layer.gated_delta
    a, first = vector(layer.gated_delta.z_dim), layer.gated_delta.channels
    scaled(arrays, "qkvz.weight", slice(first, None), 1 / a)
    arrays["out.weight"] = arrays["out.weight"] * a


def value_through_the_convolution(layer: LayerSpec, arrays: Arrays) -> None:
    """What v -> o is in attention: here SiLU and a norm lie between."""
    assert layer.gated_delta
    d = layer.gated_delta
    a = vector(d.z_dim)
    scaled(arrays, "qkvz.weight", slice(d.channels - d.z_dim, d.channels), 1 / a)
    arrays["out.weight"] = arrays["out.weight"] * a


def key_through_the_convolution(layer: LayerSpec, arrays: Arrays) -> None:
    """Query divided, key multiplied: their product would stay the same, were it not for SiLU and the unit vectors."""
    assert layer.gated_delta
    d = layer.gated_delta
    a, keys = vector(d.key_heads * d.key_dim), d.key_heads * d.key_dim
    scaled(arrays, "qkvz.weight", slice(0, keys), 1 / a)
    scaled(arrays, "qkvz.weight", slice(keys, 2 * keys), a)


def query_to_key(layer: LayerSpec, arrays: Arrays) -> None:
    """Rotation mixes the channels, and q_norm and k_norm undo what they can."""
    assert layer.attention
    spec = layer.attention
    a, queries, keys = vector(spec.head_dim), spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    first = spec.qkv_rows - 2 * keys
    scaled(arrays, "qkv.weight", slice(0, queries), np.tile(1 / a, spec.heads))
    scaled(arrays, "qkv.weight", slice(first, first + keys), np.tile(a, spec.kv_heads))


def value_tiled(layer: LayerSpec, arrays: Arrays) -> None:
    """Query heads 0, 2 instead of 0, 1 take the vector of KV head 0."""
    assert layer.attention
    spec = layer.attention
    values = spec.kv_heads * spec.head_dim
    share = np.tile(np.arange(values), spec.heads // spec.kv_heads)
    Fold("mixer", ("o.weight",), share, "qkv.weight", spec.qkv_rows - values).apply(arrays, vector(values))


def norm_without_ba(layer: LayerSpec, arrays: Arrays) -> None:
    hidden = len(arrays["norm1"])
    Fold("norm1", ("qkvz.weight",), np.arange(hidden), "norm1").apply(arrays, vector(hidden))


def norm_before_one_is_added(layer: LayerSpec, arrays: Arrays) -> None:
    """The checkpoint's w divided by a, where the layer multiplies by 1 + w."""
    fold = next(folds(layer, len(arrays["norm1"])))
    a, before = vector(fold.width), arrays["norm1"]
    fold.apply(arrays, a)
    arrays["norm1"] = 1 + (before - 1) / a


def gated_norm_with_one_added(layer: LayerSpec, arrays: Arrays) -> None:
    """And the reverse: this norm is a plain one."""
    fold = list(folds(layer, len(arrays["norm1"])))[1]
    a, before = vector(fold.width), arrays["norm"]
    fold.apply(arrays, a)
    arrays["norm"] = (1 + before) / a - 1


def without_the_bias(layer: LayerSpec, arrays: Arrays) -> None:
    """Rows of v divided, their bias not."""
    assert layer.attention
    before = arrays["qkv.bias"]
    fold = list(folds(layer, len(arrays["norm1"])))[1]
    fold.apply(arrays, vector(fold.width))
    arrays["qkv.bias"] = before


HYBRID = ("qwen3_5-2-2", "qwen3_5-2-4", "qwen3_5-2-6")
WRONG: list[tuple[Callable[[LayerSpec, Arrays], None], tuple[str, ...], int]] = [
    (gate_to_down, (*HYBRID, "qwen3", "qwen2", "llama3", "mistral"), 0),
    (z_to_out, HYBRID, 0),
    (value_through_the_convolution, HYBRID, 0),
    (key_through_the_convolution, HYBRID, 0),
    (query_to_key, (*HYBRID, "qwen3", "qwen2", "llama3", "mistral"), -1),
    (value_tiled, ("qwen3_5-2-4", "qwen3", "llama3", "mistral"), -1),
    (norm_without_ba, HYBRID, 0),
    (norm_before_one_is_added, HYBRID, 0),
    (gated_norm_with_one_added, HYBRID, 0),
    (without_the_bias, ("qwen2",), -1),
]


@pytest.mark.parametrize(
    ("wrong", "name", "index"),
    [(wrong, name, index) for wrong, names, index in WRONG for name in names],
    ids=[f"{wrong.__name__}-{name}" for wrong, names, _ in WRONG for name in names],
)
def test_what_looks_like_a_fold_changes_a_lot(
    wrong: Callable[[LayerSpec, Arrays], None], name: str, index: int, tmp_path: Path
) -> None:
    model = float_models.small(name, tmp_path / "checkpoint")
    at = index % len(model.spec.layers)
    arrays = model.layer(at)
    wrong(model.spec.layers[at], arrays)
    changed = model.replaced(at, arrays)
    assert relative(changed.logits(), model.logits()) > OTHER


# The parts of a fold


def test_gather_is_the_mean_over_the_channels_that_share() -> None:
    fold = Fold("mixer", (), np.array([0, 1, 0, 1, 2, 2]), "v")
    assert fold.gather(np.array([1, 2, 3, 6, 5, 7], np.float32)).tolist() == [2, 4, 6]


def test_apply_leaves_the_given_arrays_alone() -> None:
    fold = Fold("inner", ("down.weight",), np.arange(2), "gate_up.weight", 1, 2)
    gate_up, down, bias = np.ones((4, 3), np.float32), np.ones((3, 2), np.float32), np.ones(4, np.float32)
    arrays = {"gate_up.weight": gate_up, "gate_up.bias": bias, "down.weight": down}
    fold.apply(arrays, np.array([2, 4], np.float32))
    assert (gate_up == 1).all()
    assert (down == 1).all()
    assert (bias == 1).all()
    assert arrays["gate_up.weight"][:, 0].tolist() == [1, 0.5, 1, 0.25]
    assert arrays["gate_up.bias"].tolist() == [1, 0.5, 1, 0.25]
    assert arrays["down.weight"].tolist() == [[2, 4]] * 3
    assert all(array.dtype == np.float32 for array in arrays.values())
