# SPDX-License-Identifier: Apache-2.0
"""Writing an ONNX function body as the formula reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from orinkit.ops import DOMAIN, Op

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""

OPSET = 20
"""Default-domain opset of graphs and bodies: below the ceiling of every TensorRT that a target may have."""


class Body:
    """One function body under construction: inputs by name (None where the node leaves one out), nodes on a tape."""

    def __init__(self, op: Op, present: Sequence[bool]) -> None:
        self._op = op
        self._tape = tape.Tape()
        self._inputs = [ir.Value(name=tensor.name) for tensor in op.inputs]
        self._present = {tensor.name for tensor, here in zip(op.inputs, present, strict=False) if here}

    def __getitem__(self, name: str) -> ir.Value:
        return next(value for value in self._inputs if value.name == name)

    def __contains__(self, name: str) -> bool:
        return name in self._present

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Append a node with one output."""
        return self._tape.op(op_type, inputs, attributes, domain=domain)

    def ops(self, op_type: str, *inputs: ir.Value | None, outputs: int, domain: str = "", **attributes: Any) -> Any:
        """Append a node with several outputs; gives the sequence of them."""
        return self._tape.op_multi_out(op_type, inputs, attributes, num_outputs=outputs, domain=domain)

    def const(self, value: Any, dtype: Any) -> ir.Value:
        """A constant tensor."""
        return self.op("Constant", value=ir.tensor(np.asarray(value, dtype)))

    def ints(self, *values: int) -> ir.Value:
        """A constant int64 vector."""
        return self.const(values, np.int64)

    def scalar(self, value: float) -> ir.Value:
        """A constant float32 scalar."""
        return self.const(value, np.float32)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.op("Cast", value, to=dtype.value)

    def float32(self, value: ir.Value) -> ir.Value:
        return self.cast(value, ir.DataType.FLOAT)

    def int64(self, value: ir.Value) -> ir.Value:
        return self.cast(value, ir.DataType.INT64)

    def reshape(self, value: ir.Value, *shape: int) -> ir.Value:
        """0 keeps a dimension, -1 is what is left."""
        return self.op("Reshape", value, self.ints(*shape))

    def split(self, value: ir.Value, sizes: Sequence[int], axis: int) -> Sequence[ir.Value]:
        """Parts of the given sizes along `axis`; a part of size 0 is left out."""
        kept = [size for size in sizes if size]
        if len(kept) == 1:
            return [value]
        return list(self.ops("Split", value, self.ints(*kept), outputs=len(kept), axis=axis))

    def dim(self, value: ir.Value, axis: int) -> ir.Value:
        """One dimension as an int64 vector of length 1."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def row_numbers(self, count: ir.Value) -> ir.Value:
        """int64 0, 1, .., count-1; `count` is a vector of length 1."""
        zero, one = self.const(0, np.int64), self.const(1, np.int64)
        return self.op("Range", zero, self.op("Squeeze", count), one)

    def rms_norm(self, x: ir.Value, weight: ir.Value, eps: float) -> ir.Value:
        """x * rsqrt(mean(x^2) + eps) * weight over the last axis; float32."""
        mean = self.op("ReduceMean", self.op("Mul", x, x), self.ints(-1))
        root = self.op("Sqrt", self.op("Add", mean, self.scalar(eps)))
        return self.op("Mul", self.op("Div", x, root), weight)

    def silu(self, x: ir.Value) -> ir.Value:
        return self.op("Mul", x, self.op("Sigmoid", x))

    def function(self, overload: str, outputs: Sequence[ir.Value], attributes: Mapping[str, Any]) -> ir.Function:
        """The finished function; `attributes` are the values that it was built for, kept as its documentation."""
        graph = ir.Graph(
            self._inputs[: self._last_present() + 1],
            outputs,
            nodes=self._tape.nodes,
            opset_imports={"": OPSET, MICROSOFT: 1},
            name=f"{self._op.name}_{overload}",
            doc_string=", ".join(f"{name}={value}" for name, value in sorted(attributes.items())),
        )
        return ir.Function(DOMAIN, self._op.name, overload, graph=graph, attributes=[])

    def _last_present(self) -> int:
        return max(index for index, value in enumerate(self._inputs) if value.name in self._present)
