# SPDX-License-Identifier: Apache-2.0
"""The deploy graph: the same nodes as the bundle's graph, in the form that TensorRT's parser takes.

no function bodies      a parser prefers them to plugins in some releases, and plugins to them in others
no initializers         weights are inputs, so that a plan is small and is built in little memory
fixed state shapes      slots and rows of the caches are the recipe's; only T, B, B+1 and R vary
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from orinkit.engines.deploy import PACKED, DeployWeights, PackedMatrix, WeightInput
from orinkit.memory.rings import ring_rows
from orinkit.model import ModelSpec
from orinkit.recipe import Recipe
from orinkit_export import bodies, graph
from orinkit_export.store import Entry

IR_VERSION = 9
"""Of ONNX 1.15, the release of opset 20."""
_MATRIX = {"OrinInt4Gemm": slice(1, 4), "OrinEmbedding": slice(1, 3)}
"""Places of an INT4 matrix among the inputs of an op: weight, scales, and zeros if it takes any."""


def build(spec: ModelSpec, entries: Mapping[str, Entry], recipe: Recipe) -> ir.Model:
    """The deploy graph of `spec` over the stored tensors `entries`."""
    model = graph.build(spec, entries, recipe.activations, weights_as_inputs=True)
    model.functions.clear()
    for node in model.graph:
        node.overload = ""
    del model.opset_imports[bodies.MICROSOFT]
    model.ir_version = IR_VERSION
    _fix_states(model.graph, spec, recipe)
    _name_packed(model.graph)
    return model


def weights(model: ir.Model, entries: Mapping[str, Entry]) -> DeployWeights:
    """Where the bytes of the deploy graph's weight inputs lie."""
    found = []
    for value in model.graph.inputs:
        entry = entries.get(str(value.name).removesuffix(PACKED))
        if entry is not None:
            found.append(WeightInput(str(value.name), entry.dtype, entry.shape, entry.offset, entry.nbytes))
    matrices = dict.fromkeys(_matrix(node) for node in model.graph if _has_int4(node))
    return DeployWeights(tuple(found), tuple(matrices))


def _fix_states(made: ir.Graph, spec: ModelSpec, recipe: Recipe) -> None:
    shapes = recipe.shapes
    sizes = {"S": shapes.slots}
    for index, layer in enumerate(spec.layers):
        if layer.attention:
            sizes[f"C_{index}"] = ring_rows(layer.attention.window, shapes.capacity, shapes.chunk)
    for value in (*made.inputs, *made.outputs):
        if value.shape is not None:
            names = [size if isinstance(size, int) else str(size.value) for size in value.shape]
            value.shape = ir.Shape([sizes.get(size, size) if isinstance(size, str) else size for size in names])


def _name_packed(made: ir.Graph) -> None:
    """Say in their names that INT4 matrices are wanted in the kernel layout."""
    parts = {value for node in made if _has_int4(node) for value in node.inputs[_MATRIX[node.op_type]] if value}
    for value in parts:
        value.name = f"{value.name}{PACKED}"


def _has_int4(node: ir.Node) -> bool:
    return node.op_type in _MATRIX and bool(node.attributes["group_size"].value)


def _matrix(node: ir.Node) -> PackedMatrix:
    names = [None if value is None else str(value.name) for value in node.inputs[_MATRIX[node.op_type]]]
    return PackedMatrix(str(names[0]), str(names[1]), *names[2:])
