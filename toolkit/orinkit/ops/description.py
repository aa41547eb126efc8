# SPDX-License-Identifier: Apache-2.0
"""How an op is described."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from orinkit.errors import GraphError

DOMAIN = "orin"
"""ONNX domain and TensorRT plugin namespace of every op."""

Array = NDArray[Any]
Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Tensor:
    """One input or output. `shape` is for readers: letters as in docs/contract.md."""

    name: str
    shape: str
    dtypes: tuple[str, ...]
    doc: str
    optional: bool = False
    state: bool = False
    """Updated in place: the output `<name>_out` lies at the same address."""


_KINDS = {"int": int, "float": float, "string": str}


@dataclass(frozen=True)
class Attribute:
    """One attribute; every node carries every attribute of its op."""

    name: str
    kind: Literal["int", "float", "string"]
    doc: str


@dataclass(frozen=True)
class Op:
    """One plugin operation."""

    name: str
    doc: str
    inputs: tuple[Tensor, ...]
    attributes: tuple[Attribute, ...]
    outputs: tuple[Tensor, ...]
    reference: Callable[..., tuple[Array, ...]]
    """NumPy implementation: inputs by position (None where absent), attributes by keyword; never changes an input."""
    version: str = "1"

    def check_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Every attribute must be there, of its kind, and no other. Raises GraphError."""
        expected = {attribute.name for attribute in self.attributes}
        if set(attributes) != expected:
            raise GraphError(f"{self.name}: expected attributes {sorted(expected)}, found {sorted(attributes)}")
        for attribute in self.attributes:
            value = attributes[attribute.name]
            if type(value) is not _KINDS[attribute.kind]:
                raise GraphError(f"{self.name}: {attribute.name}: expected {attribute.kind}, found {value!r}")

    def compute(self, inputs: Sequence[Array | None], attributes: Mapping[str, Any]) -> tuple[Array, ...]:
        """Check `inputs` and `attributes` against the description and run the reference. Raises GraphError."""
        self.check_attributes(attributes)
        if len(inputs) > len(self.inputs):
            raise GraphError(f"{self.name}: expected at most {len(self.inputs)} inputs, found {len(inputs)}")
        padded = [*inputs, *[None] * (len(self.inputs) - len(inputs))]
        for tensor, array in zip(self.inputs, padded, strict=True):
            if array is None and not tensor.optional:
                raise GraphError(f"{self.name}: the input {tensor.name} is missing")
            if array is not None and array.dtype.name not in tensor.dtypes:
                raise GraphError(f"{self.name}: {tensor.name} must be {tensor.dtypes}, found {array.dtype.name}")
        return self.reference(*padded, **attributes)


ACTIVATION = ("float16", "float32")
"""Types of values between ops: float16 on a board, float32 for verification on a host."""


def sequence_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """The three inputs by which an op with state finds its sequences."""
    return (
        Tensor("cu_seqlens", "[B+1]", ("int32",), "exclusive prefix sum of this step's tokens per sequence"),
        Tensor("past_lens", "[B]", ("int32",), "tokens of the sequence in the caches before this step"),
        Tensor("slots", "[B]", ("int32",), "cache slot of the sequence; -1 = padded row"),
    )


def rms_norm(x: Float32, weight: Array, eps: float) -> Float32:
    """x * rsqrt(mean(x^2) + eps) * weight over the last axis, in float32."""
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight, np.float32)


def sigmoid(x: Float32) -> Float32:
    """1 / (1 + exp(-x)); only negative arguments reach exp, which would overflow."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, np.float32(1), small) / (1 + small), np.float32)


def silu(x: Float32) -> Float32:
    """x * sigmoid(x)."""
    return np.asarray(x * sigmoid(x), np.float32)
