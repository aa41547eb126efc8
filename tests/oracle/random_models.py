# SPDX-License-Identifier: Apache-2.0
"""Small random checkpoints, one for every way of computing that an architecture may ask for.

They are made, not stored: the oracle reads one through `transformers`, the tests export the same one. Every number is
drawn from the raw 64-bit stream of PCG64, which NumPy keeps stable, and scaled by products and sums alone.
The weights are lively, so that a mistake shows: norms far from 1, attention far from uniform, an epsilon that counts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orinkit_export import safetensors

VOCAB, HIDDEN, INTERMEDIATE = 96, 64, 112
WINDOW = 12

Config = dict[str, Any]
Tensors = Iterator[tuple[str, tuple[int, ...], float, float]]
"""Names, shapes and bounds of uniform numbers."""


@dataclass(frozen=True)
class RandomModel:
    """A checkpoint by its `config.json`."""

    name: str
    config: Config
    stored_as: str
    """dtype of the weights in the file: BF16, F16 or F32."""
    prefix: str = "model."
    """How the file begins the names of the text model's tensors."""
    prompts: tuple[int, ...] = (40, 7, 23, 70)
    """Tokens of each prompt."""

    def write(self, folder: Path) -> None:
        """Write config.json and model.safetensors into `folder`."""
        dtype = safetensors.DTYPES[self.stored_as]
        bits = np.random.PCG64(list(self.name.encode()))
        tensors = {name: _uniform(bits, shape, low, high).astype(dtype) for name, shape, low, high in _layout(self)}
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
        safetensors.write(folder / "model.safetensors", tensors)

    def token_ids(self) -> list[NDArray[np.int32]]:
        """The prompts."""
        bits = np.random.PCG64([*self.name.encode(), 0])
        return [_uniform(bits, (length,), 0, VOCAB).astype(np.int32) for length in self.prompts]


FILES = ("config.json", "model.safetensors")
"""What `digest` covers."""


def digest(folder: Path) -> str:
    """sha256 of the settings and weights of the checkpoint in `folder`."""
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in FILES)).hexdigest()


def _uniform(bits: np.random.PCG64, shape: tuple[int, ...], low: float, high: float) -> NDArray[np.float64]:
    raw = np.asarray(bits.random_raw(math.prod(shape)), np.uint64)
    unit = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (unit * (high - low) + low).reshape(shape)


def _layout(model: RandomModel) -> Tensors:
    """The tensors of a checkpoint by the names of Hugging Face."""
    text = model.config.get("text_config", model.config)
    hidden, intermediate = text["hidden_size"], text["intermediate_size"]
    unit = text["model_type"] == "qwen3_5_text"
    yield f"{model.prefix}embed_tokens.weight", (VOCAB, hidden), -0.5, 0.5
    for index in range(text["num_hidden_layers"]):
        layer = f"{model.prefix}layers.{index}"
        yield _norm(f"{layer}.input_layernorm", hidden, unit)
        is_linear = unit and (index + 1) % 4
        yield from _gated_delta(f"{layer}.linear_attn", text) if is_linear else _attention(f"{layer}.self_attn", text)
        yield _norm(f"{layer}.post_attention_layernorm", hidden, unit)
        for part, rows, columns in (
            ("gate", intermediate, hidden),
            ("up", intermediate, hidden),
            ("down", hidden, intermediate),
        ):
            yield _matrix(f"{layer}.mlp.{part}_proj", rows, columns)
    yield _norm(f"{model.prefix}norm", hidden, unit)
    if not text["tie_word_embeddings"]:
        yield "lm_head.weight", (VOCAB, hidden), -0.5, 0.5
    if "text_config" in model.config:
        yield "model.visual.patch_embed.proj.weight", (4, 3), -1, 1
        yield "mtp.fc.weight", (hidden, 2 * hidden), -1, 1


def _attention(name: str, text: Config) -> Tensors:
    family, heads = text["model_type"], text["num_attention_heads"]
    hidden = text["hidden_size"]
    dim = text.get("head_dim", hidden // heads)
    query, key = heads * dim, text["num_key_value_heads"] * dim
    gated, normed = family == "qwen3_5_text", family in ("qwen3", "qwen3_5_text")
    for part, rows in (("q", 2 * query if gated else query), ("k", key), ("v", key)):
        yield _matrix(f"{name}.{part}_proj", rows, hidden, gain=1.5)
        if family == "qwen2":
            yield f"{name}.{part}_proj.bias", (rows,), -0.5, 0.5
    yield _matrix(f"{name}.o_proj", hidden, query)
    for part in "qk" if normed else "":
        yield f"{name}.{part}_norm.weight", (dim,), 0.0 if gated else 1.0, 1.0 if gated else 2.0


def _gated_delta(name: str, text: Config) -> Tensors:
    hidden, heads, width = text["hidden_size"], text["linear_num_value_heads"], text["linear_value_head_dim"]
    channels = 2 * text["linear_num_key_heads"] * text["linear_key_head_dim"] + heads * width
    for part, rows in (("qkv", channels), ("z", heads * width), ("b", heads), ("a", heads)):
        yield _matrix(f"{name}.in_proj_{part}", rows, hidden)
    yield f"{name}.conv1d.weight", (channels, 1, text["linear_conv_kernel_dim"]), -0.9, 0.9
    yield f"{name}.A_log", (heads,), -1.5, 1.0
    yield f"{name}.dt_bias", (heads,), -4.0, 1.0
    yield _norm(f"{name}.norm", width, unit=False)
    yield _matrix(f"{name}.out_proj", hidden, heads * width)


def _matrix(name: str, rows: int, columns: int, gain: float = 1.0) -> tuple[str, tuple[int, ...], float, float]:
    """Rows of norm `gain`."""
    bound = gain * math.sqrt(3 / columns)
    return f"{name}.weight", (rows, columns), -bound, bound


def _norm(name: str, width: int, unit: bool) -> tuple[str, tuple[int, ...], float, float]:
    """0.5 to 1.5; `unit`: stored as the difference from 1."""
    return (f"{name}.weight", (width,), -0.5, 0.5) if unit else (f"{name}.weight", (width,), 0.5, 1.5)


def _config(model_type: str, **settings: Any) -> Config:
    return {
        "model_type": model_type,
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-3,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "eos_token_id": 1,
    } | settings


def _qwen3_5(value_heads: int, value_dim: int = 32, **settings: Any) -> Config:
    return _config(
        "qwen3_5_text",
        num_hidden_layers=4,
        head_dim=32,
        linear_num_key_heads=2,
        linear_num_value_heads=value_heads,
        linear_key_head_dim=32,
        linear_value_head_dim=value_dim,
        linear_conv_kernel_dim=4,
        **settings,
    )


def _rope(theta: float, **settings: Any) -> Config:
    return {"rope_type": "default", "rope_theta": theta, **settings}


_MROPE = {"mrope_section": [2, 1, 1], "mrope_interleaved": True}

MODELS = (
    RandomModel(
        "qwen3_5-2-2",
        _qwen3_5(
            2,
            layer_types=[*["linear_attention"] * 3, "full_attention"],
            rope_parameters=_rope(10000.0, partial_rotary_factor=0.25, **_MROPE),
            tie_word_embeddings=True,
        ),
        "BF16",
    ),
    RandomModel(  # as the multimodal checkpoints spell it
        "qwen3_5-2-4",
        {
            "model_type": "qwen3_5",
            "text_config": _qwen3_5(
                4, full_attention_interval=4, rope_parameters=_rope(1e6, partial_rotary_factor=0.5, **_MROPE)
            ),
            "vision_config": {"depth": 1, "hidden_size": 8, "num_heads": 1, "out_hidden_size": HIDDEN},
            "tie_word_embeddings": False,
        },
        "BF16",
        prefix="model.language_model.",
    ),
    RandomModel("qwen3_5-2-6", _qwen3_5(6, value_dim=16, rope_theta=10000.0, partial_rotary_factor=0.25), "F32"),
    RandomModel(
        "qwen3",
        _config("qwen3", head_dim=32, rope_parameters=_rope(1e6), tie_word_embeddings=True),
        "BF16",
    ),
    RandomModel(  # full attention below, a window above
        "qwen2",
        _config(
            "qwen2",
            num_key_value_heads=1,
            rope_theta=1e6,
            use_sliding_window=True,
            sliding_window=WINDOW,
            max_window_layers=1,
            tie_word_embeddings=True,
        ),
        "F16",
        prompts=(40, 7, 23, 200),
    ),
    RandomModel(  # wavelengths from 6 to 10^4 tokens: some kept, some scaled, some between
        "llama3",
        _config(
            "llama",
            head_dim=32,
            rope_theta=10000.0,
            rope_scaling={
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        "F32",
    ),
    RandomModel(
        "mistral",
        _config("mistral", head_dim=32, rope_theta=10000.0, sliding_window=WINDOW),
        "BF16",
        prompts=(40, 7, 23, 200),
    ),
)
