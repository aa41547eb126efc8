# SPDX-License-Identifier: Apache-2.0
"""Every op once: name, inputs, attributes, outputs, and a NumPy reference that computes."""

from __future__ import annotations

from orinkit.ops import attention, embedding, gated_delta, projection
from orinkit.ops.description import DOMAIN, Attribute, Op, Tensor

OPS: dict[str, Op] = {
    op.name: op for op in (embedding.OP, projection.INT4_GEMM, projection.LINEAR, attention.OP, gated_delta.OP)
}
"""By ONNX op_type."""

VERSIONS: dict[str, str] = {name: op.version for name, op in OPS.items()}
"""What this orinkit can execute; a bundle names what it needs."""

__all__ = ["DOMAIN", "OPS", "VERSIONS", "Attribute", "Op", "Tensor"]
