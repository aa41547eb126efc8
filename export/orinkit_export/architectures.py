# SPDX-License-Identifier: Apache-2.0
"""Architectures as data: what a Hugging Face `config.json` says, as a ModelSpec. A dense family is one table entry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orinkit import config as settings
from orinkit.errors import CheckpointError, ConfigError
from orinkit.model import Attention, GatedDelta, LayerSpec, ModelSpec, Rope
from orinkit_export.safetensors import brief


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
    """sliding_window where the key is absent; None = windows only where use_sliding_window or layer_types ask."""
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

    Raises CheckpointError: an unknown family, a missing or impossible value, or a feature that the ops do not have.
    """
    model_type = str(config.get("model_type"))
    if model_type not in _BY_TYPE:
        raise CheckpointError(
            f"config.json: model_type {model_type!r} is unknown; {settings.nearest(model_type, _BY_TYPE)}"
        )
    _refuse_unsupported(config)
    entry = _BY_TYPE[model_type]
    spec = ModelSpec(
        architecture=entry.name,
        hidden=_count(config, "hidden_size"),
        vocab=_count(config, "vocab_size"),
        norm_eps=_number(config, "rms_norm_eps"),
        tied=bool(config.get("tie_word_embeddings", False)),
        max_positions=_count(config, "max_position_embeddings"),
        rope=_rope(config),
        layers=tuple(_layer(config, entry, kind) for kind in _layer_types(config, entry)),
        eos=_eos(generation or {}) or _eos(config),
    )
    try:
        return settings.parse(settings.dump(spec), ModelSpec, "config.json")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise CheckpointError(f"config.json: hidden_act: expected 'silu', found {activation!r}; no op computes it")


def _layer_types(config: Mapping[str, Any], entry: Architecture) -> list[str]:
    count = _count(config, "num_hidden_layers")
    types = config.get("layer_types")
    if types is not None:
        if not isinstance(types, list) or len(types) != count:
            raise CheckpointError(f"config.json: layer_types: expected a list of {count} items, found {brief(types)}")
        return types
    if entry.hybrid_interval:
        interval = _count(config, "full_attention_interval", entry.hybrid_interval)
        return ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(count)]
    if config.get("use_sliding_window"):
        first = _count(config, "max_window_layers", least=0)
        return ["sliding_attention" if i >= first else "full_attention" for i in range(count)]
    windowed = entry.default_window is not None and config.get("sliding_window", entry.default_window) is not None
    return ["sliding_attention" if windowed else "full_attention"] * count


def _layer(config: Mapping[str, Any], entry: Architecture, kind: str) -> LayerSpec:
    intermediate = _count(config, "intermediate_size")
    if kind == "linear_attention":
        return LayerSpec(intermediate, gated_delta=_gated_delta(config))
    if kind not in ("full_attention", "sliding_attention"):
        raise CheckpointError(f"config.json: layer_types: {brief(kind)} is unknown; no op computes it")
    heads = _count(config, "num_attention_heads")
    head_dim = _count(config, "head_dim", _count(config, "hidden_size") // heads)
    rotary = _number(config, "partial_rotary_factor", entry.rotary_factor)
    rotary = _number(_rope_settings(config), "partial_rotary_factor", rotary)
    attention = Attention(
        heads=heads,
        kv_heads=_count(config, "num_key_value_heads", heads),
        head_dim=head_dim,
        rotary_dim=int(head_dim * rotary),
        scale=head_dim**-0.5,
        window=_count(config, "sliding_window", entry.default_window) if kind == "sliding_attention" else 0,
        gate=entry.gate and bool(config.get("attn_output_gate", True)),
        qk_norm=entry.qk_norm,
    )
    return LayerSpec(intermediate, attention=attention)


def _gated_delta(config: Mapping[str, Any]) -> GatedDelta:
    return GatedDelta(
        key_heads=_count(config, "linear_num_key_heads"),
        value_heads=_count(config, "linear_num_value_heads"),
        key_dim=_count(config, "linear_key_head_dim"),
        value_dim=_count(config, "linear_value_head_dim"),
        conv_width=_count(config, "linear_conv_kernel_dim"),
    )


def _rope_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """transformers 5 writes rope_parameters, earlier releases rope_theta and rope_scaling."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(found, Mapping):
        raise CheckpointError(f"config.json: rope_parameters: expected an object, found {brief(found)}")
    return found


def _rope(config: Mapping[str, Any]) -> Rope:
    found = _rope_settings(config)
    theta = _number(found, "rope_theta", _number(config, "rope_theta", 10000.0))
    kind = found.get("rope_type", found.get("type", "default"))
    if kind in ("default", "mrope"):
        return Rope(theta)
    if kind != "llama3":
        raise CheckpointError(f"config.json: rope_type: expected 'default' or 'llama3', found {brief(kind)}")
    low, high = _number(found, "low_freq_factor"), _number(found, "high_freq_factor")
    if not low < high:
        raise CheckpointError(f"config.json: low_freq_factor: expected less than high_freq_factor={high}, found {low}")
    positions = _count(found, "original_max_position_embeddings")
    return Rope(theta, _number(found, "factor"), low, high, positions)


def _eos(config: Mapping[str, Any]) -> tuple[int, ...]:
    found = config.get("eos_token_id")
    return tuple(found) if isinstance(found, list) else () if found is None else (found,)


def _count(config: Mapping[str, Any], key: str, default: int | None = None, least: int = 1) -> int:
    """A whole number; where the key is absent or null, the default."""
    value = _present(config, key, default)
    if type(value) is not int or value < least:
        raise CheckpointError(f"config.json: {key}: expected a whole number from {least} on, found {brief(value)}")
    return value


def _number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A positive number; where the key is absent or null, the default."""
    value = _present(config, key, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise CheckpointError(f"config.json: {key}: expected a positive number, found {brief(value)}")
    return float(value)


def _present(config: Mapping[str, Any], key: str, default: Any) -> Any:
    value = default if config.get(key) is None else config[key]
    if value is None:
        raise CheckpointError(f"config.json: the key {key!r} is missing; get the file again")
    return value
