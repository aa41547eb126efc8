# SPDX-License-Identifier: Apache-2.0
"""A whole exported graph computed by the NumPy references of its ops: what every engine is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
            with np.errstate(over="ignore", invalid="ignore"):  # `_check` tells it
                results = op.compute([self._value(values, value) for value in node.inputs], attributes)
            for output, tensor, array in zip(node.outputs, op.outputs, results, strict=True):
                if not tensor.state:
                    self._check(str(node.name), array)
                values[str(output.name)] = array
        return {str(output.name): values[str(output.name)] for output in self._graph.outputs}

    def logits(self, sequences: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Logits of every position of the sequences, one after another [T, V], in one packed step."""
        lengths = [len(sequence) for sequence in sequences]
        edges = np.cumsum([0, *lengths], dtype=np.int32)
        inputs: dict[str, Array] = {
            "input_ids": np.concatenate([np.asarray(sequence, np.int32) for sequence in sequences]),
            "cu_seqlens": edges,
            "past_lens": np.zeros(len(lengths), np.int32),
            "slots": np.arange(len(lengths), dtype=np.int32),
            "logit_rows": np.arange(edges[-1], dtype=np.int32),
        }
        for value in self._graph.inputs:
            if value.name not in inputs:
                inputs[str(value.name)] = _empty_state(value, len(lengths), max(lengths))
        return np.asarray(self.run(inputs)["logits"], np.float32)

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


def _empty_state(value: ir.Value, slots: int, rows: int) -> Array:
    """Zeros for a state input: its symbolic dimensions are S, then the rows of a cache."""
    if value.shape is None or value.dtype is None:
        raise GraphError(f"{value.name}: expected a typed graph input; was this graph written by orinkit?")
    shape = [slots, *(size if isinstance(size, int) else rows for size in list(value.shape)[1:])]
    return np.zeros(shape, value.dtype.numpy())


def _plain(attribute: ir.Attr) -> Any:
    return attribute.value
