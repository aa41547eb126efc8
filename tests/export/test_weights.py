# SPDX-License-Identifier: Apache-2.0
"""Fused rows, effective norms and rotary tables, each compared with the checkpoint's own tensors row by row."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import small_models
from orinkit.errors import CheckpointError
from orinkit.model import ModelSpec, Rope
from orinkit_export import weights as weights_module
from orinkit_export.architectures import model_spec
from orinkit_export.checkpoint import Checkpoint
from orinkit_export.weights import Weight, Weights, rope_frequencies
from small_models import CAPACITY, NAMES

Array = NDArray[Any]
HYBRID, GATED_LAYER = ["qwen3_5-2-2", "qwen3_5-2-4", "qwen3_5-2-6"], 3
DENSE = [name for name in NAMES if name not in HYBRID]
DIM = 32


def of(checkpoint: Checkpoint) -> tuple[ModelSpec, dict[str, Weight]]:
    spec = model_spec(checkpoint.text_config)
    return spec, {weight.name: weight for weight in Weights(checkpoint, spec, CAPACITY)}


def read(weight: Weight) -> Array:
    whole = np.concatenate(list(weight.blocks()))
    assert whole.dtype == np.float32
    assert whole.shape == weight.shape
    return whole


def vector(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_has_its_shape_and_its_sources(name: str, tmp_path: Path) -> None:
    checkpoint = small_models.checkpoint(name, tmp_path)
    spec, weights = of(checkpoint)
    used = []
    for weight in weights.values():
        read(weight)
        used += [source for source in weight.sources if not (spec.tied and weight.name == "head.weight")]
    assert len(set(used)) == len(used)
    assert all("visual" in left or left.startswith("mtp.") for left in checkpoint.unused(used))


@pytest.mark.parametrize("name", NAMES)
def test_roles(name: str, tmp_path: Path) -> None:
    """What a recipe may quantise, what stays in the activation type, what stays in float32."""
    _, weights = of(small_models.checkpoint(name, tmp_path))
    rules = {
        "embedding.weight": "embedding",
        "head.weight": "head",
        r"layers\.\d\.(qkv|o|gate_up|down)\.weight": "projection",
        r"layers\.\d\.(qkvz|out)\.weight": "gated_delta",
        r"layers\.\d\.(ba\.weight|conv_weight|\w+\.bias)": "wide",
        r"rope\.(cos|sin)|final_norm|layers\.\d\.(norm1|norm2|q_norm|k_norm|norm|a_log|dt_bias)": "float32",
    }
    for weight in weights.values():
        assert [role for rule, role in rules.items() if re.fullmatch(rule, weight.name)] == [weight.role]


# Attention


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("suffix", ["weight", "bias"])
def test_query_key_and_value_rows(name: str, suffix: str, tmp_path: Path) -> None:
    checkpoint = small_models.checkpoint(name, tmp_path)
    _, weights = of(checkpoint)
    theirs = [f"model.layers.1.self_attn.{part}_proj.{suffix}" for part in "qkv"]
    assert (f"layers.1.qkv.{suffix}" in weights) == (suffix == "weight" or name == "qwen2")
    if f"layers.1.qkv.{suffix}" in weights:
        assert weights[f"layers.1.qkv.{suffix}"].sources == tuple(theirs)
        expected = np.concatenate([checkpoint.read(tensor) for tensor in theirs])
        assert np.array_equal(read(weights[f"layers.1.qkv.{suffix}"]), expected)


@pytest.mark.parametrize("suffix", ["weight", "bias"])
def test_gates_are_parted_from_queries(suffix: str, tmp_path: Path) -> None:
    """The checkpoint has a head's query rows, then its gate rows; the op wants all queries, then all gates."""
    name, heads = f"model.layers.{GATED_LAYER}.self_attn", 4
    biases = {f"{name}.{part}_proj.bias": vector(1, rows) for part, rows in (("q", 256), ("k", 64), ("v", 64))}
    checkpoint = small_models.checkpoint("qwen3_5-2-2", tmp_path, changed=biases)
    _, weights = of(checkpoint)
    q, k, v = (checkpoint.read(f"{name}.{part}_proj.{suffix}") for part in "qkv")
    queries = [q[head * 2 * DIM + d] for head in range(heads) for d in range(DIM)]
    gates = [q[head * 2 * DIM + DIM + d] for head in range(heads) for d in range(DIM)]
    found = read(weights[f"layers.{GATED_LAYER}.qkv.{suffix}"])
    assert np.array_equal(found, np.array([*queries, *gates, *k, *v]))


# Gated delta


@pytest.mark.parametrize("name", HYBRID)
def test_gated_delta_rows(name: str, tmp_path: Path) -> None:
    checkpoint = small_models.checkpoint(name, tmp_path)
    spec, weights = of(checkpoint)
    theirs = "model.layers.0.linear_attn"
    for ours, parts in (("qkvz", ("qkv", "z")), ("ba", ("b", "a"))):
        expected = np.concatenate([checkpoint.read(f"{theirs}.in_proj_{part}.weight") for part in parts])
        assert np.array_equal(read(weights[f"layers.0.{ours}.weight"]), expected)
    assert np.array_equal(read(weights["layers.0.out.weight"]), checkpoint.read(f"{theirs}.out_proj.weight"))
    taps = checkpoint.read(f"{theirs}.conv1d.weight")
    assert np.array_equal(read(weights["layers.0.conv_weight"]), taps.reshape(len(taps), 4))
    assert np.array_equal(read(weights["layers.0.a_log"]), checkpoint.read(f"{theirs}.A_log"))
    assert np.array_equal(read(weights["layers.0.dt_bias"]), checkpoint.read(f"{theirs}.dt_bias"))
    assert spec.layers[0].gated_delta is not None
    assert weights["layers.0.qkvz.weight"].shape[0] == spec.layers[0].gated_delta.channels + len(
        checkpoint.read(f"{theirs}.in_proj_z.weight")
    )


# SwiGLU blocks


@pytest.mark.parametrize("suffix", ["weight", "bias"])
def test_gate_and_up_rows_alternate(suffix: str, tmp_path: Path) -> None:
    biases = {f"model.layers.0.mlp.{part}_proj.bias": vector(2, 112) for part in ("gate", "up")}
    checkpoint = small_models.checkpoint("llama3", tmp_path, changed=biases)
    gate, up = (checkpoint.read(f"model.layers.0.mlp.{part}_proj.{suffix}") for part in ("gate", "up"))
    found = read(of(checkpoint)[1][f"layers.0.gate_up.{suffix}"])
    assert np.array_equal(found, [row for pair in zip(gate, up, strict=True) for row in pair])


# Norms


@pytest.mark.parametrize("name", NAMES)
def test_norms_are_effective(name: str, tmp_path: Path) -> None:
    """Qwen3.5 stores w and applies 1 + w, but not in the norm behind the gated delta rule."""
    checkpoint = small_models.checkpoint(name, tmp_path)
    spec, weights = of(checkpoint)
    pairs = {"final_norm": "norm", "layers.2.norm1": "layers.2.input_layernorm"}
    pairs["layers.0.norm2"] = "layers.0.post_attention_layernorm"
    if name in (*HYBRID, "qwen3"):
        last = len(spec.layers) - 1
        pairs |= {f"layers.{last}.{part}_norm": f"layers.{last}.self_attn.{part}_norm" for part in "qk"}
    for ours, theirs in pairs.items():
        stored = checkpoint.read(f"model.{theirs}.weight")
        assert np.array_equal(read(weights[ours]), stored + 1 if name in HYBRID else stored)
    if name in HYBRID:
        plain = checkpoint.read("model.layers.0.linear_attn.norm.weight")
        assert np.array_equal(read(weights["layers.0.norm"]), plain)


# Vocabulary


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    checkpoint = small_models.checkpoint("qwen3", tmp_path)
    _, weights = of(checkpoint)
    assert weights["head.weight"].sources == weights["embedding.weight"].sources == ("model.embed_tokens.weight",)
    assert np.array_equal(read(weights["head.weight"]), checkpoint.read("model.embed_tokens.weight"))


def test_an_untied_head_and_the_embedding_come_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = small_models.checkpoint("llama3", tmp_path)
    monkeypatch.setattr(weights_module, "BLOCK_ROWS", 40)
    _, weights = of(checkpoint)
    for ours, theirs in (("head.weight", "lm_head.weight"), ("embedding.weight", "model.embed_tokens.weight")):
        assert [len(block) for block in weights[ours].blocks()] == [40, 40, 16]
        assert np.array_equal(read(weights[ours]), checkpoint.read(theirs))


# Refusals


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        ("layers.0.qkv.weight", "model.layers.0.self_attn.k_proj.weight", (64, 63)),
        ("layers.0.o.weight", "model.layers.0.self_attn.o_proj.weight", (128, 64)),
        ("layers.1.gate_up.weight", "model.layers.1.mlp.up_proj.weight", (111, 64)),
        ("layers.1.norm1", "model.layers.1.input_layernorm.weight", (65,)),
        ("embedding.weight", "model.embed_tokens.weight", (95, 64)),
        ("head.weight", "lm_head.weight", (96, 65)),
    ],
)
def test_another_shape_or_none_is_refused_by_name(
    ours: str, theirs: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    changed = small_models.checkpoint("llama3", tmp_path / "shape", changed={theirs: vector(3, *shape)})
    with pytest.raises(CheckpointError, match=rf"{re.escape(theirs)}.*: expected shape \(.*\).*found \({shape[0]},"):
        read(of(changed)[1][ours])
    absent = small_models.checkpoint("llama3", tmp_path / "absent", changed={theirs: None})
    with pytest.raises(CheckpointError, match=f"no tensor '{re.escape(theirs)}'"):
        read(of(absent)[1][ours])


@pytest.mark.parametrize("part", "qkv")
def test_a_bias_that_only_one_part_has_is_not_dropped(part: str, tmp_path: Path) -> None:
    bias = f"model.layers.0.self_attn.{part}_proj.bias"
    checkpoint = small_models.checkpoint("llama3", tmp_path, changed={bias: vector(4, 128 if part == "q" else 64)})
    with pytest.raises(CheckpointError, match=r"no tensor 'model.layers.0.self_attn.\w_proj.bias'"):
        read(of(checkpoint)[1]["layers.0.qkv.bias"])


# Rotary embedding


def test_plain_frequencies() -> None:
    assert rope_frequencies(Rope(100.0), 8).tolist() == pytest.approx([1, 100**-0.25, 100**-0.5, 100**-0.75])


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_frequencies(factor: float) -> None:
    """Wavelength by wavelength as published with Llama 3.1: kept, divided, or blended between."""
    rope = Rope(500000.0, factor, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=8192)
    expected, kinds = [], set()
    for i in range(64):
        frequency = 500000.0 ** (-2 * i / 128)
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            kinds.add("kept")
        elif wavelength > 8192 / 1:
            kinds.add("divided")
            frequency /= factor
        else:
            kinds.add("blended")
            smooth = (8192 / wavelength - 1) / (4 - 1)
            frequency = (1 - smooth) * frequency / factor + smooth * frequency
        expected.append(frequency)
    assert kinds == {"kept", "divided", "blended"}
    assert rope_frequencies(rope, 128) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("name", "rotary"), [("qwen3_5-2-2", 8), ("qwen3_5-2-4", 16), ("llama3", 32), ("qwen2", 16)])
def test_tables_by_position(name: str, rotary: int, tmp_path: Path) -> None:
    spec, weights = of(small_models.checkpoint(name, tmp_path))
    cos, sin = read(weights["rope.cos"]), read(weights["rope.sin"])
    assert cos.shape == sin.shape == (CAPACITY, rotary // 2)
    for position in (0, 1, CAPACITY - 1):
        for i, frequency in enumerate(rope_frequencies(spec.rope, rotary)):
            assert cos[position, i] == pytest.approx(math.cos(position * frequency), abs=1e-7)
            assert sin[position, i] == pytest.approx(math.sin(position * frequency), abs=1e-7)
