# SPDX-License-Identifier: Apache-2.0
"""A whole exported graph computed by the NumPy references of its ops: what every engine is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from orinkit.errors import GraphError, VerificationError
from orinkit.ops import DOMAIN, OPS

Array = NDArray[Any]
PLUGIN_ATTRIBUTES = {"plugin_namespace", "plugin_version"}


class ReferenceGraph:
    """Executes the nodes one by one; weights are mapped when a node needs them and let go after it."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self.largest = 0.0
        """Largest magnitude that any value between ops had so far."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Graph outputs by name, `inputs` unchanged. Raises VerificationError: a value that is not finite."""
        values: dict[str, Array] = dict(inputs)
        for node in self._graph:
            if node.domain != DOMAIN or node.op_type not in OPS:
                raise GraphError(f"{node.name}: expected an op of {sorted(OPS)}, found {node.domain}.{node.op_type}")
            op = OPS[node.op_type]
            attributes = {name: _plain(attribute) for name, attribute in node.attributes.items()}
            for name in PLUGIN_ATTRIBUTES:
                attributes.pop(name)
            results = op.compute([self._value(values, value) for value in node.inputs], attributes)
            for output, tensor, array in zip(node.outputs, op.outputs, results, strict=True):
                if not tensor.state:
                    self._check(str(node.name), array)
                values[str(output.name)] = array
        return {str(output.name): values[str(output.name)] for output in self._graph.outputs}

    def _value(self, values: Mapping[str, Array], value: ir.Value | None) -> Array | None:
        if value is None:
            return None
        if str(value.name) in values:
            return values[str(value.name)]
        tensor = value.const_value
        if tensor is None:
            raise GraphError(f"{value.name}: expected a graph input, a weight or a node's output")
        return tensor.numpy()

    def _check(self, node: str, array: Array) -> None:
        largest = float(np.abs(array.astype(np.float32)).max(initial=0))
        if not np.isfinite(largest):
            raise VerificationError(
                f"{node}: its output does not fit into {array.dtype}; this model needs another activation type"
            )
        self.largest = max(self.largest, largest)


def _plain(attribute: ir.Attr) -> Any:
    return attribute.value
