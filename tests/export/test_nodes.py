# SPDX-License-Identifier: Apache-2.0
"""Nodes and the functions that they share."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from orinkit.errors import GraphError
from orinkit.ops import OPS
from orinkit_export.nodes import INT32_MAX, OpNodes

LINEAR: dict[str, Any] = {"n": 8, "k": 4, "activation": "none", "norm_eps": 1e-6, "float32_output": 0}


def value(name: str) -> ir.Value:
    return ir.Value(name=name)


def add(nodes: OpNodes, name: str, inputs: int = 2, bias: bool = False, **changed: Any) -> ir.Node:
    """An OrinLinear; `bias` leaves out the two inputs in front of it."""
    tail = [None, None, value("bias"), None] if bias else []
    nodes.add(name, "OrinLinear", [value(f"i{index}") for index in range(inputs)] + tail, **(LINEAR | changed))
    return nodes.nodes[-1]


def test_a_node_carries_every_attribute_and_the_fields_of_a_plugin() -> None:
    node = add(OpNodes(), "layers.0.qkv")
    found = {name: attribute.value for name, attribute in node.attributes.items()}
    assert found == LINEAR | {"plugin_namespace": "orin", "plugin_version": "1"}
    assert (node.domain, node.op_type, node.name) == ("orin", "OrinLinear", "layers.0.qkv")
    kinds = {name: node.attributes[name].type.name for name in LINEAR}
    assert kinds == {"n": "INT", "k": "INT", "activation": "STRING", "norm_eps": "FLOAT", "float32_output": "INT"}


def test_outputs_are_named_after_the_node() -> None:
    nodes = OpNodes()
    attributes: dict[str, Any] = {"key_heads": 1, "value_heads": 1, "key_dim": 8, "value_dim": 8, "conv_width": 4}
    inputs = [value(tensor.name) for tensor in OPS["OrinGatedDelta"].inputs]
    outputs = nodes.add("mixer", "OrinGatedDelta", inputs, **attributes, norm_eps=1e-6)
    assert [output.name for output in outputs] == ["mixer.y", "mixer.conv_out", "mixer.rec_out"]


def test_inputs_that_are_left_out_at_the_end_are_cut_off() -> None:
    nodes = OpNodes()
    assert len(add(nodes, "plain").inputs) == 2
    with_bias = add(nodes, "with bias", bias=True)
    assert [None if given is None else given.name for given in with_bias.inputs] == ["i0", "i1", None, None, "bias"]


def test_one_function_for_the_same_attributes_and_inputs() -> None:
    nodes = OpNodes()
    same = [add(nodes, "a"), add(nodes, "b")]
    others = [add(nodes, "c", n=16), add(nodes, "d", bias=True), add(nodes, "e", activation="swiglu")]
    others += [add(nodes, "f", norm_eps=1e-5), add(nodes, "g", inputs=3), add(nodes, "h", n=16, bias=True)]
    assert same[0].overload == same[1].overload
    assert len({node.overload for node in (same[0], *others)}) == 7
    assert [function.overload for function in nodes.functions] == [node.overload for node in (same[0], *others)]
    for node in nodes.nodes:
        (function,) = [one for one in nodes.functions if one.identifier() == node.op_identifier()]
        assert len(function.inputs) == len(node.inputs)
        assert len(function.outputs) == len(node.outputs)


def test_overloads_are_counted_by_op() -> None:
    nodes = OpNodes()
    add(nodes, "linear")
    ids, table = value("ids"), value("table")
    nodes.add("embedding", "OrinEmbedding", [ids, table], hidden=8, group_size=0, float32_output=0)
    assert [(function.name, function.overload) for function in nodes.functions] == [
        ("OrinLinear", "v0"),
        ("OrinEmbedding", "v0"),
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n": INT32_MAX + 1}, "OrinLinear: n: expected a 32-bit integer, found 2147483648"),
        ({"k": -(1 << 40)}, "OrinLinear: k: expected a 32-bit integer"),
        ({"norm_eps": 0}, "OrinLinear: norm_eps: expected float, found 0"),
        ({"n": 8.0}, "OrinLinear: n: expected int, found 8.0"),
        ({"activation": 0}, "OrinLinear: activation: expected string, found 0"),
        ({"colour": 1}, "OrinLinear: expected attributes"),
    ],
)
def test_attributes_that_a_plugin_would_misread(changed: dict[str, Any], message: str) -> None:
    nodes = OpNodes()
    with pytest.raises(GraphError, match=message):
        add(nodes, "linear", **changed)
    assert nodes.nodes == []
    assert nodes.functions == []


def test_the_largest_integer_fits() -> None:
    assert add(OpNodes(), "linear", n=INT32_MAX).attributes["n"].value == 2**31 - 1
