# SPDX-License-Identifier: Apache-2.0
"""Which nodes a layer becomes, and which tensors they read."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from orinkit.model import Attention, GatedDelta, LayerSpec, ModelSpec, Rope
from orinkit_export import layers
from orinkit_export.graph import GraphBuilder
from orinkit_export.store import Entry

HIDDEN, VOCAB, EPS = 64, 96, 1e-6
ATTENTION = Attention(4, 2, head_dim=32, rotary_dim=16, scale=0.5, window=7, softcap=2.0, gate=True, qk_norm=True)
GATED_DELTA = GatedDelta(2, 4, key_dim=32, value_dim=16, conv_width=4)

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""dtype and shape of stored tensors."""


def builder(tensors: Tensors, activations: str = "float16") -> GraphBuilder:
    entries = {name: Entry(name, dtype, shape, 0, 0) for name, (dtype, shape) in tensors.items()}
    return GraphBuilder(entries, activations, EPS)


def wide(stem: str, rows: int, columns: int) -> Tensors:
    return {f"{stem}.weight": ("float16", (rows, columns))}


def int8(stem: str, rows: int, columns: int) -> Tensors:
    return {f"{stem}.weight": ("int8", (rows, columns)), f"{stem}.scale": ("float16", (rows,))}


def int4(stem: str, rows: int, columns: int, group: int = 32) -> Tensors:
    scales = (rows, columns // group)
    return {f"{stem}.weight": ("int8", (rows, columns // 2)), f"{stem}.scales": ("float16", scales)}


def vectors(*names: str, width: int = HIDDEN) -> Tensors:
    return dict.fromkeys(names, ("float32", (width,)))


def hidden() -> ir.Value:
    return ir.val("hidden", dtype=ir.DataType.FLOAT16, shape=["T", HIDDEN])


def plain(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def inputs(node: ir.Node) -> list[str | None]:
    return [None if value is None else value.name for value in node.inputs]


def nodes(g: GraphBuilder) -> dict[str, ir.Node]:
    return {str(node.name): node for node in g.nodes.nodes}


# Projections


def test_a_wide_projection() -> None:
    g = builder(wide("m", 48, HIDDEN) | vectors("norm"))
    layers.project(g, "m", hidden(), norm="norm")
    (node,) = g.nodes.nodes
    assert (node.op_type, inputs(node)) == ("OrinLinear", ["hidden", "m.weight", None, "norm"])
    expected = {"n": 48, "k": HIDDEN, "activation": "none", "norm_eps": EPS, "float32_output": 0}
    assert plain(node).items() >= expected.items()


def test_an_int8_projection() -> None:
    g = builder(int8("m", 48, HIDDEN) | {"m.bias": ("float16", (48,))})
    layers.project(g, "m", hidden(), residual=ir.Value(name="residual"), activation="swiglu")
    (node,) = g.nodes.nodes
    assert node.op_type == "OrinLinear"
    assert inputs(node) == ["hidden", "m.weight", "m.scale", None, "m.bias", "residual"]
    assert plain(node)["activation"] == "swiglu"


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("with_zeros", [False, True])
def test_an_int4_projection(group: int, with_zeros: bool) -> None:
    zeros: Tensors = {"m.zeros": ("int8", (48, 1))} if with_zeros else {}
    g = builder(int4("m", 48, HIDDEN, group) | zeros)
    layers.project(g, "m", hidden(), rows=ir.Value(name="rows"), name="other", float32_output=1)
    (node,) = g.nodes.nodes
    assert (node.op_type, node.name) == ("OrinInt4Gemm", "other")
    expected = ["hidden", "m.weight", "m.scales", "m.zeros" if with_zeros else None, None, None, None, "rows"]
    assert inputs(node) == expected
    assert plain(node).items() >= {"n": 48, "k": HIDDEN, "group_size": group, "float32_output": 1}.items()


def test_columns_come_last() -> None:
    g = builder(int4("m", 48, HIDDEN) | {"m.columns": ("int32", (HIDDEN,))} | vectors("norm"))
    layers.project(g, "m", hidden(), norm="norm")
    (node,) = g.nodes.nodes
    assert inputs(node) == ["hidden", "m.weight", "m.scales", None, "norm", None, None, None, "m.columns"]


# Embedding and head


def spec(tied: bool = True) -> ModelSpec:
    return ModelSpec("qwen3.5", HIDDEN, VOCAB, EPS, tied, 128, Rope(1e4), (LayerSpec(128, attention=ATTENTION),))


@pytest.mark.parametrize(
    ("tensors", "scale", "group"),
    [
        (wide("embedding", VOCAB, HIDDEN), [], 0),
        (int8("embedding", VOCAB, HIDDEN), ["embedding.scale"], 0),
        (int4("embedding", VOCAB, HIDDEN), ["embedding.scales"], 32),
    ],
)
@pytest.mark.parametrize("activations", ["float16", "float32"])
def test_embedding(tensors: Tensors, scale: list[str], group: int, activations: str) -> None:
    g = builder(tensors, activations)
    layers.embed(g, spec())
    (node,) = g.nodes.nodes
    assert inputs(node) == ["input_ids", "embedding.weight", *scale]
    expected = {"hidden": HIDDEN, "group_size": group, "float32_output": int(activations == "float32")}
    assert plain(node).items() >= expected.items()


@pytest.mark.parametrize("own_head", [False, True])
def test_the_head_is_the_embedding_where_none_is_stored(own_head: bool) -> None:
    stored = int4("embedding", VOCAB, HIDDEN) | vectors("final_norm")
    g = builder(stored | (wide("head", VOCAB, HIDDEN) if own_head else {}))
    layers.embed(g, spec())
    layers.head(g, hidden())
    embedding, head = g.nodes.nodes
    assert (head.name, head.op_type) == ("head", "OrinLinear" if own_head else "OrinInt4Gemm")
    assert (head.inputs[1] is embedding.inputs[1]) == (not own_head)
    assert (head.inputs[2] is embedding.inputs[2]) == (not own_head)
    assert inputs(head)[-1] == "logit_rows"
    assert "final_norm" in inputs(head)
    assert plain(head)["float32_output"] == 1


# Layers


def attention_tensors() -> Tensors:
    tables: Tensors = {f"rope.{name}": ("float32", (128, 8)) for name in ("cos", "sin")}
    norms = vectors("layers.3.norm1") | vectors("layers.3.q_norm", "layers.3.k_norm", width=32)
    rows = ATTENTION.qkv_rows
    return int4("layers.3.qkv", rows, HIDDEN) | int4("layers.3.o", HIDDEN, 128) | tables | norms


def test_an_attention_layer() -> None:
    g = builder(attention_tensors())
    x, layer = hidden(), LayerSpec(attention=ATTENTION, gated_delta=None, intermediate=128)
    y = layers.after_mixer(g, 3, layer, layers.mixer(g, 3, layer, x), x)
    qkv, mixer, o = g.nodes.nodes
    assert [node.name for node in (qkv, mixer, o)] == ["layers.3.qkv", "layers.3.attention", "layers.3.o"]
    assert qkv.inputs[4] is not None
    assert qkv.inputs[4].name == "layers.3.norm1"
    assert inputs(mixer) == [
        *("layers.3.qkv.y", "kv_3", "cu_seqlens", "past_lens", "slots"),
        *("layers.3.q_norm", "layers.3.k_norm", "rope.cos", "rope.sin"),
    ]
    facts = {name: getattr(ATTENTION, name) for name in ("heads", "kv_heads", "head_dim", "rotary_dim", "window")}
    facts |= {"scale": 0.5, "softcap": 2.0, "gate": 1, "norm_eps": EPS}
    assert plain(mixer).items() >= facts.items()
    assert inputs(o) == ["layers.3.attention.y", "layers.3.o.weight", "layers.3.o.scales", None, None, None, "hidden"]
    assert y is o.outputs[0]
    (state,) = g.state_outputs
    assert (state.name, state.dtype) == ("kv_3_out", ir.DataType.FLOAT16)
    assert str(state.shape) == str(g.inputs["kv_3"].shape) == "[S,2,2,C_3,32]"


def test_an_attention_layer_without_norms_of_heads() -> None:
    tensors = {name: entry for name, entry in attention_tensors().items() if "_norm" not in name}
    g = builder(tensors)
    layers.attention(g, 3, ATTENTION, hidden())
    assert inputs(nodes(g)["layers.3.attention"])[5:7] == [None, None]


def test_a_gated_delta_layer() -> None:
    heads, stem = GATED_DELTA.value_heads, "layers.0"
    tensors = int8(f"{stem}.qkvz", GATED_DELTA.channels + 64, HIDDEN) | wide(f"{stem}.ba", 2 * heads, HIDDEN)
    tensors |= int4(f"{stem}.out", HIDDEN, 64) | {f"{stem}.conv_weight": ("float16", (GATED_DELTA.channels, 4))}
    tensors |= vectors(f"{stem}.norm1") | vectors(f"{stem}.a_log", f"{stem}.dt_bias", width=heads)
    g = builder(tensors | vectors(f"{stem}.norm", width=16))
    x, layer = hidden(), LayerSpec(attention=None, gated_delta=GATED_DELTA, intermediate=128)
    layers.after_mixer(g, 0, layer, layers.mixer(g, 0, layer, x), x)
    qkvz, ba, mixer, out = g.nodes.nodes
    assert [node.op_type for node in (qkvz, ba, mixer, out)] == [
        *("OrinLinear", "OrinLinear", "OrinGatedDelta", "OrinInt4Gemm"),
    ]
    assert inputs(mixer) == [
        *("layers.0.qkvz.y", "layers.0.ba.y", "layers.0.conv_weight", "layers.0.a_log", "layers.0.dt_bias"),
        *("layers.0.norm", "conv_0", "rec_0", "cu_seqlens", "past_lens", "slots"),
    ]
    assert inputs(out)[-1] == "hidden"
    for node in (qkvz, ba):
        assert inputs(node)[0] == "hidden"
        assert inputs(node)[3] == "layers.0.norm1"
    facts = {"key_heads": 2, "value_heads": 4, "key_dim": 32, "value_dim": 16, "conv_width": 4, "norm_eps": EPS}
    assert plain(mixer).items() >= facts.items()
    found = [(state.name, state.dtype, str(state.shape)) for state in g.state_outputs]
    assert found == [
        ("conv_0_out", ir.DataType.FLOAT16, "[S,192,3]"),
        ("rec_0_out", ir.DataType.FLOAT, "[S,4,32,16]"),
    ]


def test_a_swiglu_block() -> None:
    stored = int4("layers.1.gate_up", 256, HIDDEN) | int4("layers.1.down", HIDDEN, 128) | vectors("layers.1.norm2")
    g = builder(stored)
    x = hidden()
    layers.after_inner(g, 1, layers.inner(g, 1, x), x)
    gate_up, down = g.nodes.nodes
    assert (plain(gate_up)["activation"], plain(down)["activation"]) == ("swiglu", "none")
    assert inputs(gate_up)[4] == "layers.1.norm2"
    assert inputs(down) == ["layers.1.gate_up.y", "layers.1.down.weight", "layers.1.down.scales", *[None] * 3, "hidden"]
