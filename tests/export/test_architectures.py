# SPDX-License-Identifier: Apache-2.0
"""What `config.json` files of every family say, in old and new spelling, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny_checkpoint
from orinkit import config
from orinkit.errors import CheckpointError
from orinkit.model import Attention, GatedDelta, LayerSpec, ModelSpec, Rope
from orinkit_export.architectures import ARCHITECTURES, by_name, model_spec
from orinkit_export.checkpoint import Checkpoint

Config = dict[str, Any]


def dense(model_type: str, **settings: Any) -> Config:
    return {
        "model_type": model_type,
        "hidden_size": 512,
        "vocab_size": 1000,
        "intermediate_size": 1536,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
    } | settings


def hybrid(**settings: Any) -> Config:
    gated_delta = {
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 64,
        "linear_conv_kernel_dim": 4,
    }
    return dense("qwen3_5_text", num_hidden_layers=8, head_dim=256) | gated_delta | settings


def attention(spec: ModelSpec, layer: int = 0) -> Attention:
    found = spec.layers[layer].attention
    assert found is not None
    return found


def windows(**settings: Any) -> list[int]:
    return [layer.attention.window if layer.attention else -1 for layer in model_spec(dense(**settings)).layers]


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_dense_families(model_type: str) -> None:
    settings = dense(model_type, sliding_window=None, tie_word_embeddings=True, rope_theta=5e5, eos_token_id=7)
    spec = model_spec(settings)
    own = Attention(8, 2, head_dim=64, rotary_dim=64, scale=0.125, qk_norm=model_type == "qwen3")
    assert spec == ModelSpec(
        architecture=model_type,
        hidden=512,
        vocab=1000,
        norm_eps=1e-6,
        tied=True,
        max_positions=4096,
        rope=Rope(5e5),
        layers=(LayerSpec(1536, attention=own),) * 4,
        eos=(7,),
    )


def test_hybrid_family() -> None:
    spec = model_spec(hybrid())
    linear = LayerSpec(1536, gated_delta=GatedDelta(4, 8, key_dim=128, value_dim=64, conv_width=4))
    full = LayerSpec(1536, attention=Attention(8, 2, 256, rotary_dim=64, scale=1 / 16, gate=True, qk_norm=True))
    assert spec.architecture == "qwen3.5"
    assert spec.layers == (linear, linear, linear, full) * 2
    assert by_name(spec.architecture).unit_norms


@pytest.mark.parametrize("entry", ARCHITECTURES, ids=lambda entry: entry.name)
def test_only_the_hybrid_family_stores_norms_less_one(entry: Any) -> None:
    assert by_name(entry.name) is entry
    assert entry.unit_norms == (entry.name == "qwen3.5")


def test_a_spec_travels_as_plain_data() -> None:
    for settings in (hybrid(), dense("mistral")):
        spec = model_spec(settings)
        assert config.parse(config.dump(spec), ModelSpec, "manifest") == spec


# Layers


def test_layer_types_where_they_are_listed() -> None:
    types = ["full_attention", *["linear_attention"] * 6, "full_attention"]
    spec = model_spec(hybrid(layer_types=types))
    assert [layer.gated_delta is not None for layer in spec.layers] == [kind == "linear_attention" for kind in types]


@pytest.mark.parametrize(("interval", "full"), [(1, range(8)), (2, (1, 3, 5, 7)), (3, (2, 5)), (9, ())])
def test_full_attention_interval(interval: int, full: Any) -> None:
    spec = model_spec(hybrid(full_attention_interval=interval))
    assert [i for i, layer in enumerate(spec.layers) if layer.attention] == list(full)


def test_an_output_gate_can_be_absent() -> None:
    assert not attention(model_spec(hybrid(attn_output_gate=False)), 3).gate


def test_head_dim_may_be_null() -> None:
    assert attention(model_spec(dense("mistral", head_dim=None))).head_dim == 64
    assert attention(model_spec(dense("llama", head_dim=96))).head_dim == 96


def test_without_key_value_heads_every_head_has_its_own() -> None:
    settings = dense("llama")
    del settings["num_key_value_heads"]
    assert attention(model_spec(settings)).kv_heads == 8


# Windows


def test_mistral_has_a_window_unless_it_is_null() -> None:
    assert windows(model_type="mistral") == [4096] * 4
    assert windows(model_type="mistral", sliding_window=100) == [100] * 4
    assert windows(model_type="mistral", sliding_window=None) == [0] * 4


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_qwen_has_windows_only_where_it_says_so(model_type: str) -> None:
    settings = {"model_type": model_type, "sliding_window": 100}
    assert windows(**settings) == [0] * 4
    assert windows(**settings, use_sliding_window=False, max_window_layers=2) == [0] * 4
    assert windows(**settings, use_sliding_window=True, max_window_layers=3) == [0, 0, 0, 100]
    assert windows(**settings, use_sliding_window=True, max_window_layers=0) == [100] * 4
    types = ["sliding_attention", "full_attention"] * 2
    assert windows(**settings, layer_types=types) == [100, 0, 100, 0]
    assert windows(model_type=model_type, sliding_window=None, layer_types=["full_attention"] * 4) == [0] * 4


def test_llama_has_no_window() -> None:
    assert windows(model_type="llama", sliding_window=100) == [0] * 4


# Rotary embedding


def test_theta_in_old_and_new_spelling() -> None:
    assert model_spec(dense("llama")).rope == Rope(10000.0)
    assert model_spec(dense("qwen3", rope_theta=1000000)).rope == Rope(1e6)
    assert model_spec(dense("qwen3", rope_parameters={"rope_type": "default", "rope_theta": 1e6})).rope == Rope(1e6)
    assert model_spec(dense("qwen3", rope_theta=1e6, rope_scaling=None)).rope == Rope(1e6)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
    ],
)
def test_llama3_scaling(settings: Config) -> None:
    assert model_spec(dense("llama", **settings)).rope == Rope(5e5, 8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 64),
        ({"partial_rotary_factor": 0.5}, 128),
        ({"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1e7, "mrope_section": [11, 11, 10]}}, 128),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [11, 11, 10]}}, 64),
    ],
)
def test_the_rotated_part_of_a_head(settings: Config, expected: int) -> None:
    """Text gives all sections of a multimodal rotary embedding the same position: the plain one."""
    spec = model_spec(hybrid(**settings))
    assert attention(spec, 3).rotary_dim == expected
    assert spec.rope.factor == 1.0


# End tokens


def test_end_tokens_of_the_generation_settings_come_first() -> None:
    settings = dense("llama", eos_token_id=2)
    assert model_spec(settings, {"eos_token_id": [5, 6]}).eos == (5, 6)
    assert model_spec(settings, {"temperature": 0.7}).eos == (2,)
    assert model_spec(settings, None).eos == (2,)
    assert model_spec(dense("llama")).eos == ()
    assert model_spec(dense("llama", eos_token_id=[1, 2])).eos == (1, 2)


def test_the_text_model_of_a_multimodal_checkpoint(tmp_path: Path) -> None:
    """Settings inside text_config; what it leaves out or null stands outside."""
    text = hybrid(eos_token_id=None)
    whole = {
        "model_type": "qwen3_5",
        "text_config": text,
        "vision_config": {"hidden_size": 7},
        "tie_word_embeddings": True,
        "eos_token_id": 9,
    }
    spec = model_spec(Checkpoint.open(tiny_checkpoint.single(tmp_path, config=whole)).text_config)
    assert spec == model_spec(hybrid(tie_word_embeddings=True, eos_token_id=9))


# Refusals

COUNTS = ["hidden_size", "vocab_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
NEEDED = [*COUNTS, "rms_norm_eps", "max_position_embeddings"]
LINEAR = [key for key in hybrid() if key.startswith("linear_")]


def refusal(settings: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        model_spec(settings)
    return str(caught.value)


@pytest.mark.parametrize("key", NEEDED)
def test_a_missing_key(key: str) -> None:
    settings = dense("llama")
    assert f"the key '{key}' is missing" in refusal({name: settings[name] for name in settings if name != key})
    assert f"the key '{key}' is missing" in refusal(settings | {key: None})


@pytest.mark.parametrize("key", LINEAR)
def test_a_missing_key_of_the_hybrid_family(key: str) -> None:
    assert f"the key '{key}' is missing" in refusal(hybrid(**{key: None}))


@pytest.mark.parametrize("key", [*COUNTS, "num_key_value_heads", "head_dim", "max_position_embeddings"])
@pytest.mark.parametrize("value", [0, -3, 1.5, "8", [8], True])
def test_a_number_that_is_none(key: str, value: Any) -> None:
    assert f"{key}: expected a whole number from 1 on, found" in refusal(dense("llama") | {key: value})


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "partial_rotary_factor"])
@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), "1e-6"])
def test_a_positive_number_that_is_none(key: str, value: Any) -> None:
    assert f"{key}: expected a positive number, found" in refusal(dense("llama") | {key: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dense("qwen3_5_moe"), "model_type 'qwen3_5_moe' is unknown; did you mean 'qwen3_5_text'?"),
        (dense("gpt2"), "model_type 'gpt2' is unknown; known: llama, mistral, qwen2, qwen3, qwen3_5, qwen3_5_text"),
        ({}, "model_type 'None' is unknown"),
        (dense("llama", hidden_act="gelu"), "hidden_act: expected 'silu', found 'gelu'; no op computes it"),
        (dense("llama", num_key_value_heads=3), "heads: expected a multiple of kv_heads=3, found 8"),
        (dense("llama", partial_rotary_factor=2), "rotary_dim: expected even and at most 64, found 128"),
        (dense("llama", hidden_size=4), "head_dim: expected a whole number from 1 on, found 0"),
        (
            dense("llama", layer_types=["full_attention"] * 3),
            "expected a list of 4 items, found a list of 3",
        ),
        (dense("llama", layer_types=4), "layer_types: expected a list of 4 items, found 4"),
        (dense("llama", layer_types=["mamba"] * 4), "layer_types: 'mamba' is unknown; no op computes it"),
        (dense("llama", layer_types=[[1]] * 4), "layer_types: a list of 1 items is unknown"),
        (dense("llama", layer_types=["linear_attention"] * 4), "the key 'linear_num_key_heads' is missing"),
        (dense("qwen3", layer_types=["sliding_attention"] * 4), "the key 'sliding_window' is missing"),
        (dense("qwen2", use_sliding_window=True, max_window_layers=0), "the key 'sliding_window' is missing"),
        (dense("qwen2", use_sliding_window=True, max_window_layers=-1), "max_window_layers: expected a whole number"),
        (dense("mistral", sliding_window=-1), "sliding_window: expected a whole number from 1 on, found -1"),
        (hybrid(linear_num_value_heads=6), "value_heads: expected a multiple of 4, found 6"),
        (hybrid(full_attention_interval=0), "full_attention_interval: expected a whole number from 1 on, found 0"),
        (dense("llama", eos_token_id="</s>"), "eos[0]: expected a whole number, found '</s>'"),
        (dense("llama", rope_scaling=[1]), "rope_parameters: expected an object, found a list of 1 items"),
        (
            dense("llama", rope_scaling={"type": "linear", "factor": 2}),
            "'default' or 'llama3', found 'linear'",
        ),
        (dense("qwen3", rope_scaling={"rope_type": "yarn", "factor": 4}), "'default' or 'llama3', found 'yarn'"),
        (
            dense("llama", rope_scaling={"rope_type": "llama3"} | LLAMA3 | {"factor": None}),
            "the key 'factor' is missing",
        ),
        (
            dense("llama", rope_scaling={"rope_type": "llama3"} | LLAMA3 | {"high_freq_factor": 1.0}),
            "low_freq_factor: expected less than high_freq_factor=1.0, found 1.0",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_refused(settings: Config, message: str) -> None:
    assert message in refusal(settings)
