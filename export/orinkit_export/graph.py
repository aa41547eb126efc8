# SPDX-License-Identifier: Apache-2.0
"""ModelSpec and stored weights to ONNX: one decoder graph for every engine (docs/contract.md), constructed, not traced.

Every node is one of our ops; each carries a function body for ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from orinkit.model import ModelSpec
from orinkit.ops import DOMAIN
from orinkit_export import bodies, layers
from orinkit_export.nodes import OpNodes
from orinkit_export.store import DATA, Entry

IR_VERSION = 10
"""First version with function overloads."""


class GraphBuilder:
    """Values of the graph under construction: step inputs, states, initializers, nodes."""

    def __init__(
        self, entries: Mapping[str, Entry], activations: str, eps: float, *, weights_as_inputs: bool = False
    ) -> None:
        """Tensors of `entries` become initializers, or graph inputs where `weights_as_inputs`."""
        self._weights_as_inputs = weights_as_inputs
        self.nodes = OpNodes()
        self.eps = eps
        self.activations = ir.DataType.from_numpy(np.dtype(activations))
        self._entries = entries
        self._initializers: dict[str, ir.Value] = {}
        self.inputs: dict[str, ir.Value] = {}
        self.state_outputs: list[ir.Value] = []
        for name, shape in STEP_INPUTS:
            self.input(name, ir.DataType.INT32, shape)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a stored tensor."""
        return self._entries[name].shape

    def input(self, name: str, dtype: ir.DataType, shape: tuple[int | str, ...]) -> ir.Value:
        value = ir.val(name, dtype=dtype, shape=list(shape))
        self.inputs[name] = value
        return value

    def state_output(self, state: ir.Value, updated: ir.Value) -> None:
        """Declare `updated` as the graph output of the input `state`."""
        updated.name, updated.type, updated.shape = f"{state.name}_out", state.type, state.shape
        self.state_outputs.append(updated)

    def weight(self, name: str) -> ir.Value:
        """A stored tensor as an initializer; asked for twice, it is the same one."""
        entry = self._entries[name]
        dtype = ir.DataType.from_numpy(np.dtype(entry.dtype))
        if self._weights_as_inputs:
            return self.inputs.get(name) or self.input(name, dtype, entry.shape)
        if name not in self._initializers:
            tensor = ir.ExternalTensor(DATA, entry.offset, entry.nbytes, dtype, shape=ir.Shape(entry.shape), name=name)
            self._initializers[name] = ir.Value(
                name=name, shape=ir.Shape(entry.shape), type=ir.TensorType(dtype), const_value=tensor
            )
        return self._initializers[name]

    def weight_if_stored(self, name: str) -> ir.Value | None:
        return self.weight(name) if name in self else None

    @property
    def sequences(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The inputs by which ops with state find their sequences."""
        return self.inputs["cu_seqlens"], self.inputs["past_lens"], self.inputs["slots"]

    def model(self, name: str, *outputs: ir.Value) -> ir.Model:
        """The finished model; its outputs are `outputs`, then the states."""
        graph = ir.Graph(
            list(self.inputs.values()),
            [*outputs, *self.state_outputs],
            nodes=self.nodes.nodes,
            initializers=list(self._initializers.values()),
            opset_imports={"": bodies.OPSET, DOMAIN: 1, bodies.MICROSOFT: 1},
            name=name,
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="orinkit", functions=self.nodes.functions)


STEP_INPUTS: tuple[tuple[str, tuple[int | str, ...]], ...] = (
    ("input_ids", ("T",)),
    ("cu_seqlens", ("B1",)),
    ("past_lens", ("B",)),
    ("slots", ("B",)),
    ("logit_rows", ("R",)),
)
"""Graph inputs that are not state, all int32; B1 is B+1."""


def build(
    spec: ModelSpec, entries: Mapping[str, Entry], activations: str, *, weights_as_inputs: bool = False
) -> ir.Model:
    """The graph of `spec` over the stored tensors `entries`; `activations` is float16 or float32."""
    builder = GraphBuilder(entries, activations, spec.norm_eps, weights_as_inputs=weights_as_inputs)
    hidden = layers.embed(builder, spec)
    for index, layer in enumerate(spec.layers):
        hidden = layers.layer(builder, index, layer, hidden)
    logits = layers.head(builder, hidden)
    logits.name, logits.type, logits.shape = "logits", ir.TensorType(ir.DataType.FLOAT), ir.Shape(("R", spec.vocab))
    return builder.model(spec.architecture, logits)


PARTS: dict[str, tuple[str, ...]] = {
    "mixer": ("hidden",),
    "middle": ("mixer", "hidden"),
    "inner": ("middle",),
    "out": ("inner", "middle"),
}
"""The parts of a layer by the rows that they make, and the rows [T, .] that they are made of: `hidden` goes in, `mixer`
is the input of its output projection, `middle` lies between its halves, `inner` is the input of the down projection,
`out` goes on to the next layer."""


def layer_part(spec: ModelSpec, index: int, entries: Mapping[str, Entry], part: str) -> ir.Model:
    """One of PARTS in float32, for calibration. Inputs: its rows, the step inputs that it needs, states, weights."""
    builder = GraphBuilder(entries, "float32", spec.norm_eps, weights_as_inputs=True)
    layer = spec.layers[index]
    rows = [builder.input(name, ir.DataType.FLOAT, ("T", f"{name}_width")) for name in PARTS[part]]
    if part == "mixer":
        y = layers.mixer(builder, index, layer, *rows)
    elif part == "middle":
        y = layers.after_mixer(builder, index, layer, *rows)
    elif part == "inner":
        y = layers.inner(builder, index, *rows)
    else:
        y = layers.after_inner(builder, index, *rows)
    y.name, y.type = part, ir.TensorType(ir.DataType.FLOAT)
    for name in ("input_ids", "logit_rows"):
        del builder.inputs[name]
    return builder.model("layer", y)


def save(model: ir.Model, path: Path) -> None:
    """Write the graph beside its `model.data`, which lies there already."""
    ir.save(model, path)
