# SPDX-License-Identifier: Apache-2.0
"""What ONNX Runtime executes for each op: one ONNX function per op and set of attributes (an overload).

A body computes a step of one sequence (B = 1) in its slot; the engine runs the sequences of a batch one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from orinkit.ops import OPS
from orinkit_export.bodies import attention, embedding, gated_delta, projection
from orinkit_export.bodies.builder import MICROSOFT, OPSET, Body

_BUILDERS: dict[str, Callable[..., list[ir.Value]]] = {
    "OrinEmbedding": embedding.build,
    "OrinInt4Gemm": projection.int4_gemm,
    "OrinLinear": projection.linear,
    "OrinAttention": attention.build,
    "OrinGatedDelta": gated_delta.build,
}


def function(op_type: str, overload: str, attributes: Mapping[str, Any], present: Sequence[bool]) -> ir.Function:
    """The body of `op_type` for these attribute values; `present` says which inputs the node has."""
    body = Body(OPS[op_type], present)
    return body.function(overload, _BUILDERS[op_type](body, **attributes), attributes)


__all__ = ["MICROSOFT", "OPSET", "function"]
