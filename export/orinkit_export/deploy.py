# SPDX-License-Identifier: Apache-2.0
"""The deploy graph: the same nodes as the bundle's graph, in the form that TensorRT's parser takes.

no function bodies      a parser prefers them to plugins in some releases, and plugins to them in others
no initializers         weights are inputs, so that a plan is small and is built in little memory
fixed state shapes      slots and rows of the caches are the recipe's; only T, B, B+1 and R vary
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from orinkit.engines.deploy import PACKED, DeployWeights, PackedProduct, WeightInput
from orinkit.memory.rings import ring_rows
from orinkit.model import ModelSpec
from orinkit.recipe import Recipe
from orinkit_export import bodies, graph
from orinkit_export.store import Entry

IR_VERSION = 9
"""Of ONNX 1.15, the release of opset 20."""
_PRODUCT, _PARTS = "OrinInt4Gemm", ("weight", "scales", "zeros")
_FIRST_PART = 1
"""Place of the weight among a product's inputs; scales and zeros follow."""


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
    products = dict.fromkeys(_product(node) for node in model.graph if node.op_type == _PRODUCT)
    return DeployWeights(tuple(found), tuple(products))


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
    """Give the INT4 weights of products inputs of their own, and drop the inputs that nothing reads any more."""
    packed: dict[str, ir.Value] = {}
    for node in made:
        for place in range(_FIRST_PART, _FIRST_PART + len(_PARTS)) if node.op_type == _PRODUCT else ():
            value = node.inputs[place]
            if value is not None:
                name = f"{value.name}{PACKED}"
                packed.setdefault(name, ir.Value(name=name, type=value.type, shape=value.shape))
                node.replace_input_with(place, packed[name])
    kept = [value for value in made.inputs if value.uses()]
    made.inputs.clear()
    made.inputs.extend([*kept, *packed.values()])


def _product(node: ir.Node) -> PackedProduct:
    names = [None if value is None else str(value.name) for value in node.inputs[_FIRST_PART:][: len(_PARTS)]]
    return PackedProduct(str(names[0]), str(names[1]), names[2])
