# SPDX-License-Identifier: Apache-2.0
"""Architecture facts as values. Everything the graph, the engines and the runtime know of a model stands here."""

from __future__ import annotations

from dataclasses import dataclass

from orinkit.errors import ConfigError


@dataclass(frozen=True)
class Attention:
    """Softmax attention with grouped heads, rotary embedding and a key/value cache."""

    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    """Leading dimensions of a head that are rotated."""
    scale: float
    """Factor of the scores before softmax."""
    window: int = 0
    """A token sees itself and the window-1 tokens before it; 0 = all."""
    softcap: float = 0.0
    """Scores become softcap * tanh(scores / softcap); 0 = off."""
    gate: bool = False
    """The output is multiplied by sigmoid of a gate projected beside the query."""
    qk_norm: bool = False
    """RMSNorm over each query and key head before the rotation."""

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused projection: query, gate if any, key, value."""
        return (self.heads * (2 if self.gate else 1) + 2 * self.kv_heads) * self.head_dim

    def validate(self) -> None:
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ConfigError(f"heads: expected a multiple of kv_heads={self.kv_heads}, found {self.heads}")
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise ConfigError(f"rotary_dim: expected even and at most {self.head_dim}, found {self.rotary_dim}")


@dataclass(frozen=True)
class GatedDelta:
    """Gated delta rule with a causal convolution in front and a gated norm behind."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int

    @property
    def channels(self) -> int:
        """Channels of the convolution: query, key, value."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def z_dim(self) -> int:
        """Width of the gate z and of the mixer's output."""
        return self.value_heads * self.value_dim

    def validate(self) -> None:
        if self.key_heads < 1 or self.value_heads % self.key_heads:
            raise ConfigError(f"value_heads: expected a multiple of {self.key_heads}, found {self.value_heads}")


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer: exactly one mixer, then a SwiGLU block of width `intermediate`."""

    intermediate: int
    attention: Attention | None = None
    gated_delta: GatedDelta | None = None

    def validate(self) -> None:
        if (self.attention is None) == (self.gated_delta is None):
            raise ConfigError("expected exactly one of attention and gated_delta")


@dataclass(frozen=True)
class Rope:
    """Rotary frequencies. With `factor` > 1: Llama 3's scaling by wavelength."""

    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only language model."""

    architecture: str
    hidden: int
    vocab: int
    norm_eps: float
    tied: bool
    max_positions: int
    rope: Rope
    layers: tuple[LayerSpec, ...]
    eos: tuple[int, ...] = ()
    """Token ids that end an answer."""

    def validate(self) -> None:
        if not self.layers:
            raise ConfigError("layers: expected at least one")
