# SPDX-License-Identifier: Apache-2.0
"""Graph fragments: embedding, the two kinds of mixer, the SwiGLU block, the head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from orinkit.errors import GraphError
from orinkit.model import Attention, GatedDelta, LayerSpec, ModelSpec

if TYPE_CHECKING:
    from orinkit_export.graph import GraphBuilder


def embed(g: GraphBuilder, spec: ModelSpec) -> ir.Value:
    """Token ids to hidden rows [T, H]."""
    scales = g.weight_if_stored("embedding.scales")
    group_size = spec.hidden // g.shape("embedding.scales")[1] if scales is not None else 0
    (y,) = g.nodes.add(
        "embedding",
        "OrinEmbedding",
        [g.inputs["input_ids"], g.weight("embedding.weight"), scales or g.weight_if_stored("embedding.scale")],
        hidden=spec.hidden,
        group_size=group_size,
        float32_output=int(g.activations == ir.DataType.FLOAT),
    )
    return y


def layer(g: GraphBuilder, index: int, spec: LayerSpec, hidden: ir.Value) -> ir.Value:
    """The rows behind a layer."""
    middle = after_mixer(g, index, spec, mixer(g, index, spec, hidden), hidden)
    return after_inner(g, index, inner(g, index, middle), middle)


def mixer(g: GraphBuilder, index: int, layer: LayerSpec, hidden: ir.Value) -> ir.Value:
    """What the mixer of a layer makes of hidden rows, in front of its output projection."""
    if layer.attention:
        return attention(g, index, layer.attention, hidden)
    if layer.gated_delta:
        return gated_delta(g, index, layer.gated_delta, hidden)
    raise GraphError(f"layers.{index}: expected a mixer, found none")


def after_mixer(g: GraphBuilder, index: int, layer: LayerSpec, y: ir.Value, hidden: ir.Value) -> ir.Value:
    """hidden + o(y) or hidden + out(y)."""
    return project(g, f"layers.{index}.{'o' if layer.attention else 'out'}", y, residual=hidden)


def attention(g: GraphBuilder, index: int, spec: Attention, hidden: ir.Value) -> ir.Value:
    """attention(qkv(norm(hidden)))."""
    prefix = f"layers.{index}"
    qkv = project(g, f"{prefix}.qkv", hidden, norm=f"{prefix}.norm1")
    kv = g.input(f"kv_{index}", g.activations, ("S", 2, spec.kv_heads, f"C_{index}", spec.head_dim))
    y, kv_out = g.nodes.add(
        f"{prefix}.attention",
        "OrinAttention",
        [
            qkv,
            kv,
            *g.sequences,
            g.weight_if_stored(f"{prefix}.q_norm"),
            g.weight_if_stored(f"{prefix}.k_norm"),
            g.weight("rope.cos"),
            g.weight("rope.sin"),
        ],
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        rotary_dim=spec.rotary_dim,
        window=spec.window,
        scale=spec.scale,
        softcap=spec.softcap,
        gate=int(spec.gate),
        norm_eps=g.eps,
    )
    g.state_output(kv, kv_out)
    return y


def gated_delta(g: GraphBuilder, index: int, spec: GatedDelta, hidden: ir.Value) -> ir.Value:
    """gated_delta(qkvz(norm(hidden)), ba(norm(hidden)))."""
    prefix = f"layers.{index}"
    qkvz = project(g, f"{prefix}.qkvz", hidden, norm=f"{prefix}.norm1")
    ba = project(g, f"{prefix}.ba", hidden, norm=f"{prefix}.norm1")
    conv = g.input(f"conv_{index}", g.activations, ("S", spec.channels, spec.conv_width - 1))
    rec = g.input(f"rec_{index}", ir.DataType.FLOAT, ("S", spec.value_heads, spec.key_dim, spec.value_dim))
    vectors = [g.weight(f"{prefix}.{name}") for name in ("conv_weight", "a_log", "dt_bias", "norm")]
    y, conv_out, rec_out = g.nodes.add(
        f"{prefix}.gated_delta",
        "OrinGatedDelta",
        [qkvz, ba, *vectors, conv, rec, *g.sequences],
        key_heads=spec.key_heads,
        value_heads=spec.value_heads,
        key_dim=spec.key_dim,
        value_dim=spec.value_dim,
        conv_width=spec.conv_width,
        norm_eps=g.eps,
    )
    g.state_output(conv, conv_out)
    g.state_output(rec, rec_out)
    return y


def inner(g: GraphBuilder, index: int, middle: ir.Value) -> ir.Value:
    """silu(gate(norm(middle))) * up(norm(middle))."""
    prefix = f"layers.{index}"
    return project(g, f"{prefix}.gate_up", middle, norm=f"{prefix}.norm2", activation="swiglu")


def after_inner(g: GraphBuilder, index: int, y: ir.Value, middle: ir.Value) -> ir.Value:
    """middle + down(y)."""
    return project(g, f"layers.{index}.down", y, residual=middle)


def head(g: GraphBuilder, hidden: ir.Value) -> ir.Value:
    """float32 logits of the wanted rows."""
    stem = "head" if "head.weight" in g else "embedding"
    return project(g, stem, hidden, norm="final_norm", rows=g.inputs["logit_rows"], name="head", float32_output=1)


def project(
    g: GraphBuilder,
    stem: str,
    x: ir.Value,
    *,
    norm: str | None = None,
    residual: ir.Value | None = None,
    rows: ir.Value | None = None,
    activation: str = "none",
    name: str | None = None,
    float32_output: int = 0,
) -> ir.Value:
    """The projection whose weights are stored under `stem`: OrinInt4Gemm where it has group scales, else OrinLinear."""
    weight = g.weight(f"{stem}.weight")
    n, columns = g.shape(f"{stem}.weight")
    tail = [g.weight(norm) if norm else None, g.weight_if_stored(f"{stem}.bias"), residual, rows]
    scales = g.weight_if_stored(f"{stem}.scales")
    if scales is None:
        inputs = [x, weight, g.weight_if_stored(f"{stem}.scale"), *tail]
        op_type, k, extra = "OrinLinear", columns, {}
    else:
        zeros, order = (g.weight_if_stored(f"{stem}.{name}") for name in ("zeros", "columns"))
        inputs = [x, weight, scales, zeros, *tail, order]
        op_type, k = "OrinInt4Gemm", 2 * columns
        extra = {"group_size": k // g.shape(f"{stem}.scales")[1]}
    (y,) = g.nodes.add(
        name or stem,
        op_type,
        inputs,
        n=n,
        k=k,
        **extra,
        activation=activation,
        norm_eps=g.eps,
        float32_output=float32_output,
    )
    return y
