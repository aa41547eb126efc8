# SPDX-License-Identifier: Apache-2.0
"""Op nodes, each with the function body that ONNX Runtime executes for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir import convenience

from orinkit.errors import GraphError
from orinkit.ops import DOMAIN, OPS
from orinkit_export import bodies

INT32_MAX = 2**31 - 1


class OpNodes:
    """Nodes in order, and one function per op and distinct set of attributes and inputs."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self._functions: dict[tuple[Any, ...], ir.Function] = {}

    def add(
        self, name: str, op_type: str, inputs: Sequence[ir.Value | None], **attributes: int | float | str
    ) -> Sequence[ir.Value]:
        """Append a node called `name`; its outputs are called `name.<output>`. Inputs that are left out are None.

        Raises GraphError: attributes that are not the op's, integers beyond 32 bits.
        """
        op = OPS[op_type]
        op.check_attributes(attributes)
        last = max(index for index, value in enumerate(inputs) if value is not None)
        given = list(inputs[: last + 1])
        node = ir.Node(
            DOMAIN,
            op_type,
            given,
            convenience.convert_attributes(attributes | {"plugin_namespace": DOMAIN, "plugin_version": op.version}),
            overload=self._overload(op_type, attributes, tuple(value is not None for value in given)),
            num_outputs=len(op.outputs),
            name=name,
        )
        for tensor, output in zip(op.outputs, node.outputs, strict=True):
            output.name = f"{name}.{tensor.name}"
        self.nodes.append(node)
        return node.outputs

    @property
    def functions(self) -> list[ir.Function]:
        return list(self._functions.values())

    def _overload(self, op_type: str, attributes: dict[str, Any], present: tuple[bool, ...]) -> str:
        for name, value in attributes.items():
            if isinstance(value, int) and abs(value) > INT32_MAX:  # TensorRT's parser would truncate it
                raise GraphError(f"{op_type}: {name}: expected a 32-bit integer, found {value}")
        key = (op_type, tuple(sorted(attributes.items())), present)
        if key not in self._functions:
            overload = f"v{sum(known[0] == op_type for known in self._functions)}"
            self._functions[key] = bodies.function(op_type, overload, attributes, present)
        return self._functions[key].overload
