# SPDX-License-Identifier: Apache-2.0
"""Architectures as data: what a Hugging Face `config.json` says, as a ModelSpec. A dense family is one table entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orinkit import config as settings
from orinkit.errors import CheckpointError
from orinkit.model import Attention, GatedDelta, LayerSpec, ModelSpec, Rope


@dataclass(frozen=True)
class Architecture:
    """What `config.json` leaves unsaid about a family."""

    name: str
    model_types: tuple[str, ...]
    unit_norms: bool = False
    """Norm weights are stored as w and applied as 1 + w."""
    qk_norm: bool = False
    gate: bool = False
    """q_proj holds an output gate beside each query head."""
    rotary_factor: float = 1.0
    """Default of partial_rotary_factor."""
    default_window: int | None = None
    """sliding_window where the key is absent."""
    hybrid_interval: int = 0
    """Default of full_attention_interval; 0 = every layer is attention."""


ARCHITECTURES = (
    Architecture("llama", ("llama",)),
    Architecture("mistral", ("mistral",), default_window=4096),
    Architecture("qwen2", ("qwen2",)),
    Architecture("qwen3", ("qwen3",), qk_norm=True),
    Architecture(
        "qwen3.5",
        ("qwen3_5_text", "qwen3_5"),
        unit_norms=True,
        qk_norm=True,
        gate=True,
        rotary_factor=0.25,
        hybrid_interval=4,
    ),
)

_BY_TYPE = {model_type: entry for entry in ARCHITECTURES for model_type in entry.model_types}
_BY_NAME = {entry.name: entry for entry in ARCHITECTURES}


def by_name(name: str) -> Architecture:
    """The table entry that a ModelSpec's `architecture` names."""
    return _BY_NAME[name]


def model_spec(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelSpec:
    """The facts of a text model's `config.json`; `generation` is generation_config.json if there is one.

    Raises CheckpointError: an unknown family, a missing key, or a feature that the ops do not have.
    """
    model_type = str(config.get("model_type"))
    if model_type not in _BY_TYPE:
        raise CheckpointError(
            f"config.json: model_type {model_type!r} is unknown; {settings.nearest(model_type, _BY_TYPE)}"
        )
    _refuse_unsupported(config)
    entry = _BY_TYPE[model_type]
    try:
        layers = tuple(_layer(config, entry, kind) for kind in _layer_types(config, entry))
        spec = ModelSpec(
            architecture=entry.name,
            hidden=config["hidden_size"],
            vocab=config["vocab_size"],
            norm_eps=float(config["rms_norm_eps"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            max_positions=config["max_position_embeddings"],
            rope=_rope(config),
            layers=layers,
            eos=_eos(generation or {}) or _eos(config),
        )
    except KeyError as error:
        raise CheckpointError(f"config.json: the key {error} is missing; {model_type} needs it") from None
    return settings.parse(settings.dump(spec), ModelSpec, "config.json")


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise CheckpointError(f"config.json: hidden_act: expected 'silu', found {activation!r}; no op computes it")
    if config.get("quantization_config"):
        raise CheckpointError("config.json: the checkpoint is quantised already; use the float one it was made from")


def _layer_types(config: Mapping[str, Any], entry: Architecture) -> list[str]:
    count = config["num_hidden_layers"]
    if config.get("layer_types"):
        types = list(config["layer_types"])
        if len(types) != count:
            raise CheckpointError(f"config.json: layer_types: expected {count} entries, found {len(types)}")
        return types
    if entry.hybrid_interval:
        interval = config.get("full_attention_interval", entry.hybrid_interval)
        return ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(count)]
    if config.get("use_sliding_window"):
        first = config.get("max_window_layers", count)
        return ["sliding_attention" if i >= first else "full_attention" for i in range(count)]
    windowed = entry.default_window is not None and config.get("sliding_window", entry.default_window) is not None
    return ["sliding_attention" if windowed else "full_attention"] * count


def _layer(config: Mapping[str, Any], entry: Architecture, kind: str) -> LayerSpec:
    intermediate = config["intermediate_size"]
    if kind == "linear_attention":
        return LayerSpec(intermediate, gated_delta=_gated_delta(config))
    if kind not in ("full_attention", "sliding_attention"):
        raise CheckpointError(f"config.json: layer_types: {kind!r} is unknown; no op computes it")
    window = config.get("sliding_window", entry.default_window) if kind == "sliding_attention" else 0
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rotary = _rope_settings(config).get(
        "partial_rotary_factor", config.get("partial_rotary_factor", entry.rotary_factor)
    )
    attention = Attention(
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        rotary_dim=int(head_dim * rotary),
        scale=head_dim**-0.5,
        window=window or 0,
        gate=entry.gate and bool(config.get("attn_output_gate", True)),
        qk_norm=entry.qk_norm,
    )
    return LayerSpec(intermediate, attention=attention)


def _gated_delta(config: Mapping[str, Any]) -> GatedDelta:
    return GatedDelta(
        key_heads=config["linear_num_key_heads"],
        value_heads=config["linear_num_value_heads"],
        key_dim=config["linear_key_head_dim"],
        value_dim=config["linear_value_head_dim"],
        conv_width=config["linear_conv_kernel_dim"],
    )


def _rope_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """transformers 5 writes rope_parameters, earlier releases rope_theta and rope_scaling."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}


def _rope(config: Mapping[str, Any]) -> Rope:
    found = _rope_settings(config)
    theta = float(found.get("rope_theta", config.get("rope_theta", 10000.0)))
    kind = found.get("rope_type", found.get("type", "default"))
    if kind in ("default", "mrope"):
        return Rope(theta)
    if kind != "llama3":
        raise CheckpointError(f"config.json: rope_type: expected 'default' or 'llama3', found {kind!r}")
    return Rope(
        theta,
        factor=float(found["factor"]),
        low_freq_factor=float(found["low_freq_factor"]),
        high_freq_factor=float(found["high_freq_factor"]),
        original_positions=int(found["original_max_position_embeddings"]),
    )


def _eos(config: Mapping[str, Any]) -> tuple[int, ...]:
    found = config.get("eos_token_id")
    return tuple(found) if isinstance(found, list) else () if found is None else (int(found),)
