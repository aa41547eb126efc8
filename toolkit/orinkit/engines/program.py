# SPDX-License-Identifier: Apache-2.0
"""The graph of a bundle as plain values, for engines that execute it themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orinkit.errors import GraphError
from orinkit.ops import DOMAIN, OPS

if TYPE_CHECKING:
    import onnx_ir as ir

PACKED = ("weight", "scales", "zeros")
"""Inputs of OrinInt4Gemm that the kernels want in their own layout."""

PLUGIN_ATTRIBUTES = frozenset({"plugin_namespace", "plugin_version"})


@dataclass(frozen=True)
class Weight:
    """One tensor of the data file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class State:
    """One state input: its sizes after the slots; None = the rows of a cache."""

    dtype: str
    sizes: tuple[int | None, ...]


@dataclass(frozen=True)
class Node:
    """One op: inputs by the names of its description (absent ones left out), outputs in order."""

    op_type: str
    name: str
    inputs: dict[str, str]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Program:
    """A decoder graph: nodes in order, weights and states by name."""

    nodes: tuple[Node, ...]
    weights: dict[str, Weight]
    states: dict[str, State]
    vocab: int

    @property
    def packed(self) -> frozenset[str]:
        """The weights of INT4 products; an embedding may read the same ones."""
        products = [node for node in self.nodes if node.op_type == "OrinInt4Gemm"]
        return frozenset(node.inputs[part] for node in products for part in PACKED if part in node.inputs)


def read_program(path: Path) -> Program:
    """The program of `model.onnx`. Raises GraphError: not a graph that orinkit writes."""
    import onnx_ir as ir  # here, because a board that runs a plan reads no graph and has no such package

    try:
        graph = ir.load(path).graph
    except Exception as error:  # noqa: BLE001  (protobuf and onnx_ir raise what they like)
        raise GraphError(f"{path}: expected an ONNX model, found: {str(error)[:200]}; get the bundle again") from None
    states = {
        str(value.name): _state(value) for value in graph.inputs if str(value.name).startswith(("kv_", "conv_", "rec_"))
    }
    shape = graph.outputs[0].shape if graph.outputs else None
    vocab = shape[1] if shape is not None and len(shape) == 2 else None
    if not isinstance(vocab, int):
        raise GraphError(f"{path}: expected logits of a known width as first output, found {shape}")
    weights = {name: _weight(path, name, value) for name, value in graph.initializers.items()}
    return Program(tuple(_node(path, node) for node in graph), weights, states, vocab)


def _node(path: Path, node: ir.Node) -> Node:
    if node.domain != DOMAIN or node.op_type not in OPS:
        raise GraphError(f"{path}: {node.name}: expected one of {sorted(OPS)}, found {node.domain}.{node.op_type}")
    pairs = zip(OPS[node.op_type].inputs, node.inputs, strict=False)
    attributes = {name: item.value for name, item in node.attributes.items() if name not in PLUGIN_ATTRIBUTES}
    return Node(
        node.op_type,
        str(node.name),
        {tensor.name: str(value.name) for tensor, value in pairs if value is not None},
        tuple(str(value.name) for value in node.outputs),
        attributes,
    )


def _weight(path: Path, name: str, value: ir.Value) -> Weight:
    import onnx_ir as ir

    tensor = value.const_value
    if not isinstance(tensor, ir.ExternalTensor) or tensor.offset is None or tensor.length is None:
        raise GraphError(f"{path}: {name}: expected its bytes in the data file, found them elsewhere")
    return Weight(tensor.dtype.numpy().name, tuple(tensor.shape.numpy()), tensor.offset, tensor.length)


def _state(value: ir.Value) -> State:
    if value.shape is None or value.dtype is None:
        raise GraphError(f"{value.name}: expected a typed graph input")
    sizes = tuple(size if isinstance(size, int) else None for size in list(value.shape)[1:])
    return State(value.dtype.numpy().name, sizes)
