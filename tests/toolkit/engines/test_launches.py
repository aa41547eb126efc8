# SPDX-License-Identifier: Apache-2.0
"""Nodes as launches: every field that the kernels have is filled from the graph, and steps set only what varies."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orinkit.engines.launches import Launch, StepShape, make_launch, settle
from orinkit.engines.program import Node, Program, read_program
from orinkit.errors import EngineError

HEADERS = Path(__file__).parents[3] / "plugins/kernels"
KINDS = {"P": ctypes.c_void_p, "I": ctypes.c_int32, "F": ctypes.c_float}


class Library:
    """The structs of the kernel library, read from its headers: no GPU is needed to fill them."""

    def fields(self, launcher: str) -> dict[str, str]:
        text = (HEADERS / launcher / "launch.h").read_text(encoding="utf-8").replace("\\\n", " ")
        fields = re.search(rf"#define ORIN_{launcher.upper()}_FIELDS\(P, I, F\)(.*)", text)
        assert fields is not None
        return {name: kind for kind, name in re.findall(r"\b([PIF])\((\w+)\)", fields[1])}

    def arguments(self, launcher: str, **values: Any) -> ctypes.Structure:
        fields = self.fields(launcher)
        assert set(values) == set(fields)
        struct = type(launcher, (ctypes.Structure,), {"_fields_": [(n, KINDS[k]) for n, k in fields.items()]})
        filled: ctypes.Structure = struct(**values)
        return filled

    def bound(self, launcher: str, arguments: ctypes.Structure) -> Callable[[int], None]:
        def refuse(stream: int) -> None:
            raise AssertionError(f"{launcher} with {arguments} on stream {stream}: nothing can be launched here")

        return refuse


@pytest.fixture(scope="module")
def program(demo_bundle: Path) -> Program:
    return read_program(demo_bundle / "model.onnx")


def addresses_of(program: Program) -> dict[str, int]:
    names = {name for node in program.nodes for name in (*node.inputs.values(), *node.outputs)}
    return {name: 256 * (index + 1) for index, name in enumerate(sorted(names))}


def launch_of(program: Program, node: Node) -> Any:
    library: Any = Library()
    return make_launch(library, program, node, addresses_of(program), {"kv_3": 1024})


def test_every_node_of_the_demo_graph(program: Program) -> None:
    addresses = addresses_of(program)
    for node in program.nodes:
        launch = launch_of(program, node)
        for name, value in node.inputs.items():
            assert getattr(launch.arguments, name) == addresses[value], (node.name, name)
        assert launch.arguments.y == addresses[node.outputs[0]]
        launch.set(StepShape(tokens=7, sequences=3, logit_rows=2, max_step=5, max_length=99))
        found = {name: getattr(launch.arguments, name) for name in launch.vary(StepShape(1, 1, 1, 1, 1))}
        picks = "rows" in node.inputs
        assert found.get("tokens") == (2 if picks and launch.launcher == "int4_gemm" else 7)
        assert found.get("sequences", 3) == 3
        assert (found.get("max_step", 5), found.get("max_length", 99)) == (5, 99)


def test_attributes_arrive(program: Program) -> None:
    by_name = {node.name: launch_of(program, node).arguments for node in program.nodes}
    attention, gate_up = by_name["layers.3.attention"], by_name["layers.3.gate_up"]
    assert (attention.heads, attention.kv_heads, attention.head_dim, attention.capacity) == (2, 1, 256, 1024)
    assert (attention.gate, attention.window, attention.kv_scale) == (1, 0, None)
    assert (gate_up.n, gate_up.k, gate_up.group_size, gate_up.swiglu) == (1536, 256, 128, 1)
    assert by_name["head"].float32_output == 1
    assert by_name["layers.0.ba"].bits == 16
    assert by_name["embedding"].bits == 16


def test_an_input_without_a_kernel_is_refused(program: Program) -> None:
    node = program.nodes[1]
    strange = Node(node.op_type, node.name, node.inputs | {"order": node.inputs["x"]}, node.outputs, node.attributes)
    with pytest.raises(EngineError, match="order"):
        launch_of(program, strange)


def test_only_behind_a_product_is_settled_what_earlier_launches_wrote() -> None:
    library = Library()

    def launch(launcher: str) -> Launch:
        fields = library.fields(launcher)
        arguments = library.arguments(launcher, **{name: None if kind == "P" else 0 for name, kind in fields.items()})
        return Launch(launcher, launcher, arguments, lambda _: {}, lambda _: None)

    order = ("attention", "int4_gemm", "attention", "attention", "linear", "gated_delta", "embedding", "gated_delta")
    launches = [launch(launcher) for launcher in order]
    settle(launches)
    settled = [getattr(each.arguments, "settled", None) for each in launches]
    assert settled == [0, None, 1, 0, None, 1, None, 0]
