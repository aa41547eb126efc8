# SPDX-License-Identifier: Apache-2.0
"""The embedding kernels against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from op_cases import embedding, named
from orinkit import int4
from orinkit.engines.kernels import KernelLibrary
from orinkit.ops import OPS
from tolerances import RELATIVE_ERROR, relative_error

pytestmark = pytest.mark.gpu
BITS = {"wide": 16, "int8": 8, "int4": 4}


@pytest.mark.parametrize("hidden", [128, 224])
@pytest.mark.parametrize(
    ("kind", "in_kernel_layout"), [("wide", False), ("int8", False), ("int4", False), ("int4", True)]
)
def test_rows(kind: str, in_kernel_layout: bool, hidden: int, kernels: KernelLibrary, stream: Any) -> None:
    import gpu

    case = embedding(3, kind, hidden=hidden)
    (expected,) = OPS[case.op_type].compute(case.inputs, case.attributes)
    inputs = named(case)
    if in_kernel_layout:
        inputs["table"], inputs["scale"], _ = int4.to_kernel_layout(inputs["table"], inputs["scale"])
    arrays = {name: gpu.Array(array) for name, array in inputs.items()}
    y = gpu.Array(np.full_like(expected, np.nan))
    arguments = kernels.arguments(
        "embedding",
        ids=arrays["ids"].pointer,
        table=arrays["table"].pointer,
        scale=arrays["scale"].pointer if "scale" in arrays else None,
        y=y.pointer,
        tokens=len(expected),
        vocab=arrays["table"].shape[0],
        hidden=case.attributes["hidden"],
        bits=BITS[kind],
        group_size=case.attributes["group_size"],
        kernel_layout=int(in_kernel_layout),
    )
    kernels.launch("embedding", arguments, stream.handle)
    stream.sync()
    direct = y.read()
    assert relative_error(direct, expected) < RELATIVE_ERROR["float16"]
    y.write(np.full_like(expected, np.nan))
    stream.capture(lambda: kernels.launch("embedding", arguments, stream.handle))()
    stream.sync()
    assert np.array_equal(y.read(), direct)
