# SPDX-License-Identifier: Apache-2.0
"""Nodes of a program as launches of the kernel library.

A launch is a struct of addresses and sizes, made once; what varies from step to step are a few integers in it. The
launchers take inputs and attributes under the names that `ops` gives them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from orinkit.engines.kernels import KernelLibrary
from orinkit.engines.program import Node, Program
from orinkit.errors import EngineError


@dataclass(frozen=True)
class StepShape:
    """The sizes of one step."""

    tokens: int
    sequences: int
    logit_rows: int
    max_step: int
    """Most tokens of one sequence in the step."""
    max_length: int
    """Longest sequence after the step."""


_PRODUCTS = ("int4_gemm", "linear")
_WITH_STATE = ("attention", "gated_delta")

Sizes = dict[str, Any]
Vary = Callable[[StepShape], Sizes]


@dataclass(frozen=True)
class Launch:
    """One kernel launch of a context."""

    name: str
    launcher: str
    arguments: ctypes.Structure
    vary: Vary
    """The integers of the struct that a step decides."""
    enqueue: Callable[[int], None]
    """Enqueues it on a stream."""
    holds: tuple[ctypes.Structure, ...] = ()
    """Structs that `arguments` points at."""

    def set(self, shape: StepShape) -> None:
        """Make the struct that of a step."""
        for name, value in self.vary(shape).items():
            setattr(self.arguments, name, value)


def make_launch(
    library: KernelLibrary, program: Program, node: Node, addresses: Mapping[str, int], cache_rows: Mapping[str, int]
) -> Launch:
    """The launch of `node`; `addresses` of values by name, `cache_rows` of each kv state. Scratch is filled in later.

    Raises EngineError: an input that no kernel takes.
    """
    launcher, fixed, vary = _OPS[node.op_type](program, node, cache_rows)
    pointers: Sizes = {name: addresses[value] for name, value in node.inputs.items()}
    pointers["y"] = addresses[node.outputs[0]]
    fields = library.fields(launcher)
    unknown = set(pointers) - set(fields)
    if unknown:
        raise EngineError(f"{node.name}: the kernels take no {sorted(unknown)}; use another engine for this bundle")
    values = {name: None if kind == "P" else 0 for name, kind in fields.items()}
    first = vary(StepShape(1, 1, 1, 1, 1))
    arguments = library.arguments(launcher, **values | fixed | first | pointers)
    return Launch(node.name, launcher, arguments, vary, library.bound(launcher, arguments))


def settle(launches: Sequence[Launch]) -> None:
    """Tell the launches of a step which of them may read states, lengths and slots while the one in front still runs:
    those behind a product, which writes none of these. Whatever has written them came before that.
    """
    for before, launch in pairwise(launches):
        if launch.launcher in _WITH_STATE:
            launch.arguments.settled = int(before.launcher in _PRODUCTS)


def output_width(node: Node) -> int:
    """Columns of a node's first output."""
    a = node.attributes
    if node.op_type == "OrinEmbedding":
        return int(a["hidden"])
    if node.op_type == "OrinAttention":
        return int(a["heads"] * a["head_dim"])
    if node.op_type == "OrinGatedDelta":
        return int(a["value_heads"] * a["value_dim"])
    return int(a["n"] // 2 if a["activation"] == "swiglu" else a["n"])


def _embedding(program: Program, node: Node, _: Mapping[str, int]) -> tuple[str, Sizes, Vary]:
    table, group_size = program.weights[node.inputs["table"]], node.attributes["group_size"]
    bits = 16 if table.dtype == "float16" else 4 if group_size else 8
    fixed = {"vocab": table.shape[0], "hidden": node.attributes["hidden"], "bits": bits, "group_size": group_size}
    fixed["kernel_layout"] = int(node.inputs["table"] in program.packed)
    return "embedding", fixed, lambda step: {"tokens": step.tokens}


def _product(node: Node) -> Sizes:
    names = ("n", "k", "float32_output", "norm_eps")
    return {name: node.attributes[name] for name in names} | {"swiglu": int(node.attributes["activation"] == "swiglu")}


def _int4_gemm(_: Program, node: Node, __: Mapping[str, int]) -> tuple[str, Sizes, Vary]:
    fixed = _product(node) | {"group_size": node.attributes["group_size"]}
    picks = "rows" in node.inputs
    return "int4_gemm", fixed, lambda step: {"tokens": step.logit_rows if picks else step.tokens}


def _linear(program: Program, node: Node, _: Mapping[str, int]) -> tuple[str, Sizes, Vary]:
    fixed = _product(node) | {"bits": 16 if program.weights[node.inputs["weight"]].dtype == "float16" else 8}
    picks = "rows" in node.inputs
    return (
        "linear",
        fixed,
        lambda step: {"tokens": step.tokens, "outputs": step.logit_rows if picks else step.tokens},
    )


def _attention(_: Program, node: Node, cache_rows: Mapping[str, int]) -> tuple[str, Sizes, Vary]:
    fixed = dict(node.attributes) | {"capacity": cache_rows[node.inputs["kv"]]}
    return (
        "attention",
        fixed,
        lambda step: {
            "tokens": step.tokens,
            "sequences": step.sequences,
            "max_step": step.max_step,
            "max_length": step.max_length,
        },
    )


def _gated_delta(_: Program, node: Node, __: Mapping[str, int]) -> tuple[str, Sizes, Vary]:
    return "gated_delta", dict(node.attributes), lambda step: {"tokens": step.tokens, "sequences": step.sequences}


_OPS: dict[str, Callable[[Program, Node, Mapping[str, int]], tuple[str, Sizes, Vary]]] = {
    "OrinEmbedding": _embedding,
    "OrinInt4Gemm": _int4_gemm,
    "OrinLinear": _linear,
    "OrinAttention": _attention,
    "OrinGatedDelta": _gated_delta,
}
