# SPDX-License-Identifier: Apache-2.0
"""A graph read as plain values."""

from __future__ import annotations

from pathlib import Path

import pytest

from orinkit.engines.launches import output_width
from orinkit.engines.program import read_program
from orinkit.errors import GraphError
from orinkit.ops import OPS


def test_the_demo_graph(demo_bundle: Path) -> None:
    program = read_program(demo_bundle / "model.onnx")
    assert [node.op_type for node in program.nodes[:3]] == ["OrinEmbedding", "OrinInt4Gemm", "OrinLinear"]
    assert program.nodes[-1].outputs == ("logits",)
    assert program.vocab == 4096
    known = set(program.weights) | set(program.states)
    known |= {"input_ids", "cu_seqlens", "past_lens", "slots", "logit_rows"}
    for node in program.nodes:
        assert set(node.attributes) == {attribute.name for attribute in OPS[node.op_type].attributes}
        assert set(node.inputs.values()) <= known
        known |= set(node.outputs)
    size = (demo_bundle / "model.data").stat().st_size
    assert all(weight.offset + weight.nbytes <= size for weight in program.weights.values())


def test_rows_of_caches_are_open_and_all_else_is_known(demo_bundle: Path) -> None:
    states = read_program(demo_bundle / "model.onnx").states
    assert states["kv_3"].sizes == (2, 1, None, 256)
    assert all(None not in state.sizes for name, state in states.items() if not name.startswith("kv_"))


def test_widths_are_those_of_the_next_input(demo_bundle: Path) -> None:
    program = read_program(demo_bundle / "model.onnx")
    widths = {node.outputs[0]: output_width(node) for node in program.nodes}
    for node in program.nodes:
        if node.op_type in ("OrinInt4Gemm", "OrinLinear"):
            assert widths[node.inputs["x"]] == node.attributes["k"], node.name


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a"])
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(GraphError, match=r"model\.onnx"):
        read_program(path)
