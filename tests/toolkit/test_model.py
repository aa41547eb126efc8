# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from orinkit import config
from orinkit.errors import ConfigError
from orinkit.model import Attention, GatedDelta, LayerSpec, ModelSpec, Rope

ATTENTION = Attention(heads=8, kv_heads=2, head_dim=256, rotary_dim=64, scale=0.0625, gate=True, qk_norm=True)
GATED_DELTA = GatedDelta(key_heads=16, value_heads=32, key_dim=128, value_dim=128, conv_width=4)
MODEL = ModelSpec(
    architecture="qwen3_5",
    hidden=1024,
    vocab=248320,
    norm_eps=1e-6,
    tied=True,
    max_positions=262144,
    rope=Rope(theta=1e7),
    layers=(LayerSpec(3584, gated_delta=GATED_DELTA), LayerSpec(3584, attention=ATTENTION)),
    eos=(248046,),
)


def test_rows_of_the_fused_projection() -> None:
    assert ATTENTION.qkv_rows == 8 * 2 * 256 + 2 * 2 * 256
    assert replace(ATTENTION, gate=False).qkv_rows == 8 * 256 + 2 * 2 * 256


def test_widths_of_gated_delta() -> None:
    assert GATED_DELTA.channels == 2 * 16 * 128 + 32 * 128
    assert GATED_DELTA.z_dim == 32 * 128


def test_a_model_survives_dump_and_parse() -> None:
    assert config.parse(config.dump(MODEL), ModelSpec, "manifest") == MODEL


@pytest.mark.parametrize("value", [ATTENTION, GATED_DELTA, MODEL.layers[0], MODEL.rope, MODEL])
def test_facts_do_not_change(value: Any) -> None:
    name = next(iter(vars(value)))
    with pytest.raises(FrozenInstanceError):
        setattr(value, name, None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (replace(ATTENTION, kv_heads=3), "heads: expected a multiple of kv_heads=3, found 8"),
        (replace(ATTENTION, rotary_dim=63), "rotary_dim: expected even and at most 256, found 63"),
        (replace(ATTENTION, rotary_dim=258), "rotary_dim: expected even and at most 256, found 258"),
        (replace(GATED_DELTA, value_heads=24), "value_heads: expected a multiple of 16, found 24"),
        (LayerSpec(3584), "expected exactly one of attention and gated_delta"),
        (LayerSpec(3584, ATTENTION, GATED_DELTA), "expected exactly one of attention and gated_delta"),
        (replace(MODEL, layers=()), "layers: expected at least one"),
    ],
)
def test_facts_that_contradict_each_other_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(config.dump(value), type(value), "here")
    assert str(caught.value) == f"here: {message}"
