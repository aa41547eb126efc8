# SPDX-License-Identifier: Apache-2.0
"""The words in which bodies are written, each executed by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from orinkit.ops import DOMAIN, OPS
from orinkit.ops.description import rms_norm, silu
from orinkit_export.bodies.builder import MICROSOFT, OPSET, Body

Array = NDArray[Any]
X = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
OP = OPS["OrinLinear"]
"""Any op will do: the body's inputs x and weight are its first two."""


def execute(build: Callable[[Body], Sequence[ir.Value]], dtype: ir.DataType = ir.DataType.FLOAT) -> list[Array]:
    """Outputs of a body whose x is X and whose weight is X's first row."""
    body = Body(OP, (True, True))
    outputs = build(body)
    function = body.function("v7", outputs, {"n": 1})
    x, weight = (ir.val(name, dtype=ir.DataType.FLOAT, shape=shape) for name, shape in (("x", [3, 8]), ("w", [8])))
    node = ir.Node(DOMAIN, OP.name, [x, weight], overload="v7", num_outputs=len(outputs), name="node")
    for index, output in enumerate(node.outputs):
        output.name, output.type = f"y{index}", ir.TensorType(dtype)
    imports = {"": OPSET, DOMAIN: 1, MICROSOFT: 1}
    graph = ir.Graph([x, weight], node.outputs, nodes=[node], opset_imports=imports, name="g")
    model = ir.to_proto(ir.Model(graph, ir_version=10, functions=[function]))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": X, "w": X[0]}))


def test_inputs_are_known_by_name() -> None:
    body = Body(OP, (True, True, False, False, True))
    assert [name for name in ("x", "weight", "scale", "norm", "bias", "rows") if name in body] == [
        "x",
        "weight",
        "bias",
    ]
    assert body["bias"].name == "bias"
    function = body.function("v3", [body.op("Identity", body["x"])], {"n": 8, "k": 4})
    assert [value.name for value in function.inputs] == ["x", "weight", "scale", "norm", "bias"]
    assert function.identifier() == (DOMAIN, "OrinLinear", "v3")
    assert function.doc_string == "k=4, n=8"


def test_rms_norm_and_silu() -> None:
    normed, gated = execute(lambda body: [body.rms_norm(body["x"], body["weight"], 0.5), body.silu(body["x"])])
    assert np.allclose(normed, rms_norm(X, X[0], 0.5), atol=1e-6)
    assert np.allclose(gated, silu(X), atol=1e-6)


@pytest.mark.parametrize("sizes", [[3, 5], [8], [0, 8], [2, 0, 6], [1, 2, 5, 0]])
def test_split_leaves_out_empty_parts(sizes: list[int]) -> None:
    kept = [size for size in sizes if size]
    # through Identity: a body's output must not be one of its inputs
    parts = execute(lambda body: [body.op("Identity", part) for part in body.split(body["x"], sizes, axis=1)])
    expected = np.split(X, np.cumsum(kept)[:-1], axis=1)
    assert [part.tolist() for part in parts] == [part.tolist() for part in expected]


def test_reshape_keeps_and_fills_dimensions() -> None:
    (found,) = execute(lambda body: [body.reshape(body["x"], 0, -1, 2)])
    assert np.array_equal(found, X.reshape(3, 4, 2))


def test_dimensions_and_row_numbers_are_int64() -> None:
    size, numbers = execute(
        lambda body: [body.dim(body["x"], 1), body.row_numbers(body.dim(body["x"], 0))], ir.DataType.INT64
    )
    assert (size.tolist(), numbers.tolist()) == ([8], [0, 1, 2])


def test_constants_and_casts() -> None:
    def build(body: Body) -> list[ir.Value]:
        whole = body.float32(body.int64(body.op("Mul", body["x"], body.scalar(10.0))))
        return [whole, body.float32(body.ints(4, -2)), body.cast(body.const([1.5], np.float64), ir.DataType.FLOAT)]

    whole, ints, wide = execute(build)
    assert np.array_equal(whole, np.trunc(X * np.float32(10)))
    assert (ints.tolist(), wide.tolist()) == ([4, -2], [1.5])
