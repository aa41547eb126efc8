# SPDX-License-Identifier: Apache-2.0
"""Nodes of OrinLinear that reach every kernel, edge and option; and how one is launched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from op_cases import Case, projection

PROJECTIONS = {"Qwen3.5-0.8B": (32, 1024), "Qwen3.5-2B": (32, 2048), "Qwen3.5-4B": (64, 2560), "Qwen3.5-9B": (64, 4096)}
"""N and K of the gated-delta layers' b and a projections."""

ROWS = 6
"""Place of `rows` among the inputs."""


def with_rows(case: Case, rows: list[int]) -> Case:
    """The same node with picked rows; rows of x that are not picked hold NaN."""
    x = np.array(case.inputs[0])
    x[np.setdiff1d(np.arange(len(x)), rows)] = np.nan
    inputs = [x, *case.inputs[1:]]
    inputs[ROWS] = np.array(rows, np.int32)
    residual = inputs[ROWS - 1]
    if residual is not None:
        inputs[ROWS - 1] = np.resize(residual, (len(rows), residual.shape[1]))
    return replace(case, name=f"{case.name}-rows{len(rows)}", inputs=tuple(inputs))


def linear_cases() -> Iterator[Case]:
    """Kernels: streamed narrow and wide up to 16 tokens, tiles of 32, 64 and 128 above."""
    seed = 0
    for kind in ("wide", "int8"):
        for tokens in (1, 2, 8, 9, 16, 17, 33, 65, 128):
            for n, k in ((1, 16), (7, 48), (66, 1008), (130, 1040), (96, 5120)):
                seed += 1
                options = ("", "n", "br", "nbr")[seed % 4] + ("s" if n % 2 == 0 and seed % 3 == 0 else "")
                yield projection(seed, kind, tokens=tokens, n=n, k=k, options=options, float32_output=seed % 2)
        for tokens in (1, 8, 16):
            yield projection(76, kind, tokens=tokens, n=4290, k=272, options="nr")
            yield projection(77, kind, tokens=tokens, n=40_001, k=272, options="nb")
        for tokens in (1, 16, 24):
            picked = with_rows(
                projection(78, kind, tokens=64, n=98, k=320, options="nr"), [63, -1, 0, *range(5, tokens)]
            )
            yield with_rows(picked, [-1] * tokens)
            yield picked
            yield with_rows(projection(79, kind, tokens=64, n=98, k=320, options="b"), [-1, -1, 2, *range(5, tokens)])
        yield projection(80, kind, tokens=2047, n=1030, k=528, options="n")
        yield projection(81, kind, tokens=700, n=514, k=528, options="ns")
    for n, k in PROJECTIONS.values():
        for tokens in (1, 4, 300, 2048):
            yield projection(82, "wide", tokens=tokens, n=n, k=k, options="n")


def arguments(case: Case, pointers: dict[str, int], y: int, workspace: int | None) -> dict[str, Any]:
    """Fields of the launcher `linear`."""
    x, weight, *_ = case.inputs
    rows = case.inputs[ROWS]
    assert x is not None
    assert weight is not None
    return {
        **{name: pointers.get(name) for name in ("x", "weight", "scale", "norm", "bias", "residual", "rows")},
        "y": y,
        "workspace": workspace,
        "tokens": len(x),
        "outputs": len(x) if rows is None else len(rows),
        "n": case.attributes["n"],
        "k": case.attributes["k"],
        "bits": 8 * weight.itemsize,
        "swiglu": int(case.attributes["activation"] == "swiglu"),
        "float32_output": case.attributes["float32_output"],
        "norm_eps": case.attributes["norm_eps"],
    }
