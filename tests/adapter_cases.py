# SPDX-License-Identifier: Apache-2.0
"""Nodes as tests/plugins/tensorrt/host.cpp takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attention_cases import Step
from op_cases import Array, Case
from orinkit import int4
from orinkit.ops import OPS


def kernel_inputs(case: Case) -> list[Array | None]:
    """The inputs of a case as a plan gets them: INT4 matrices in the kernels' layout."""
    inputs = list(case.inputs)
    if case.op_type == "OrinInt4Gemm":
        _, weight, scales, zeros = inputs[:4]
        assert weight is not None
        assert scales is not None
        inputs[1:4] = int4.to_kernel_layout(weight, scales, zeros)
    if case.op_type == "OrinEmbedding" and case.attributes["group_size"]:
        _, table, scale = inputs
        assert table is not None
        assert scale is not None
        inputs[1:3] = int4.to_kernel_layout(table, scale)[:2]
    return inputs


def attention_case(name: str, step: Step) -> Case:
    """A step of attention as a node."""
    inputs = tuple(step.inputs.get(tensor.name) for tensor in OPS["OrinAttention"].inputs)
    return Case(name, "OrinAttention", inputs, step.attributes)


def write_cases(folder: Path, cases: Sequence[Case]) -> Path:
    """The file that host.cpp reads, with the bytes of inputs beside it."""
    lines = []
    for case in cases:
        op = OPS[case.op_type]
        lines.append(f"case {case.name} {case.op_type}")
        for attribute in op.attributes:
            kind = {"int": "int", "float": "float", "string": "text"}[attribute.kind]
            lines.append(f"{kind} {attribute.name} {case.attributes[attribute.name]}")
        for tensor, array in zip(op.inputs, kernel_inputs(case), strict=False):
            lines.append("input none" if array is None else _input(folder / f"{case.name}.{tensor.name}", array))
        for tensor, array in zip(op.outputs, op.compute(case.inputs, case.attributes), strict=True):
            lines.append(f"output {array.nbytes} {folder / case.name}.{tensor.name}")
    path = folder / "cases.txt"
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def _input(path: Path, array: Array) -> str:
    np.ascontiguousarray(array).tofile(path)
    return f"input {array.dtype.name} {array.ndim} {' '.join(map(str, array.shape))} {path}"
