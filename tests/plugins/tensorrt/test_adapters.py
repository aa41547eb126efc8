# SPDX-License-Identifier: Apache-2.0
"""The plugin library through TensorRT's own interfaces: against ops, in its real lean runtimes, emulated if need be."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attention_cases as attention
import gated_delta_cases as gated_delta
import int4_gemm_cases as int4_gemm
from adapter_cases import attention_case, kernel_inputs, write_cases
from op_cases import Case, embedding, projection
from orinkit.ops import OPS
from orinkit_export import sdk
from plugin_library import (
    BOARDS,
    NATIVE,
    ROOT,
    RUNTIMES,
    has_headers,
    library,
    program,
    runtime,
    tensorrt_headers,
    with_option,
)

PLUGINS = "liborin_plugins.so"
STACK_OF = {"aarch64": "jetpack-6.2", "x86_64": NATIVE}
DIRECT = tuple(f"direct-{stack}" for stack in (*BOARDS, NATIVE))


def cases() -> list[Case]:
    """A node of every op in forms that reach each of its inputs; small."""
    heads = attention.MODELS["Qwen3.5-0.8B and 2B"]
    plain = attention.MODELS["Llama-3.1-8B"]
    delta = gated_delta.Heads(2, 4, 64)
    found = [
        *(replace(embedding(1, kind), name=f"embedding-{kind}") for kind in ("wide", "int8", "int4")),
        projection(1, "wide", options="nbrp", float32_output=1),
        projection(2, "int8", options="ns", k=256),
        projection(3, "wide", tokens=40, options=""),
        int4_gemm.gemm(1, 66, 256, options="znr"),
        int4_gemm.gemm(33, 128, 256, group=32, options="nbs"),
        int4_gemm.gemm(5, 96, 128, group=64, options="nf", rows=(4, -1, 0)),
        int4_gemm.gemm(5, 96, 128, group=64, options="nc", rows=(4, -1, 0)),
        int4_gemm.gemm(33, 96, 128, options="zc"),
        attention_case("decode", attention.step(heads, [attention.Row(1, 70, 2), attention.Row(1, 3, 0)], 256)),
        attention_case("prefill", attention.step(plain, [attention.Row(40, 3, 1)], 96, window=32)),
        gated_delta.step(1, delta, [gated_delta.Row(1, 9, 2), gated_delta.Row(1, 0, 0)]),
        gated_delta.step(2, delta, [gated_delta.Row(70, 5, 1)]),
    ]
    return [replace(case, name=f"{index}-{case.name}") for index, case in enumerate(found)]


def tell(where: str, *words: object) -> list[dict[str, Any]]:
    """What the host program says of the library, in a runtime of RUNTIMES or opened directly."""
    if where in DIRECT:
        plugins = library(where.removeprefix("direct-"), PLUGINS)
        return plugins.run(program("host.cpp", plugins.machine, "10.3"), plugins.path, *words)
    plugins = library(STACK_OF[where.rsplit("-", 1)[1]], PLUGINS)
    lean, release = runtime(where)
    host = program("host.cpp", plugins.machine, release)
    first, *lines = plugins.run(host, plugins.path, "-r", lean, *words)
    numbers = [int(part) for part in where.split("-")[0].split(".")[:3]]
    assert first == {"runtime": numbers[0] * 10000 + numbers[1] * 100 + numbers[2]}
    return lines


@pytest.mark.parametrize("where", DIRECT + RUNTIMES)
def test_the_creators_are_the_ops(where: str) -> None:
    found = {line["op"]: (line["version"], line["fields"]) for line in tell(where, "list")}
    expected = {op.name: (op.version, {a.name: a.kind for a in op.attributes}) for op in OPS.values()}
    assert found == expected
    assert [list(fields) for _, fields in found.values()] == [list(fields) for _, fields in expected.values()]


@pytest.mark.parametrize("where", DIRECT + RUNTIMES)
def test_a_plugin_is_made_stored_copied_and_knows_its_shapes(where: str, tmp_path: Path) -> None:
    given = cases()
    for case, found in zip(given, tell(where, "cases", write_cases(tmp_path, given)), strict=True):
        assert (found["case"], found["said"]) == (case.name, [])
        assert found["name"] == case.op_type
        assert found["fields"] == rounded(case)
        outputs = OPS[case.op_type].compute(case.inputs, case.attributes)
        assert found["outputs"] == [[array.dtype.name, list(array.shape), -1] for array in outputs]


def rounded(case: Case) -> dict[str, Any]:
    """Attributes as they come back: floats went through float32 and nine digits."""
    return {
        name: float(f"{np.float32(value):.9g}") if isinstance(value, float) else value
        for name, value in case.attributes.items()
    }


@pytest.mark.parametrize("where", DIRECT)
def test_a_launch_asks_for_what_orin_has_and_fits_its_workspace(where: str, tmp_path: Path) -> None:
    """Eagerly, captured and with states apart; the stand-in refuses grids, blocks and shared memory beyond Orin's."""
    given = cases()
    for case, found in zip(given, tell(where, "run", write_cases(tmp_path, given)), strict=True):
        assert "failed" not in found, found
        states = [tensor.name for tensor in OPS[case.op_type].inputs if tensor.state]
        assert [line.split(": ")[1] for line in found["said"]] == states[:1]  # told once, of states that lie apart
    for case in given:
        for tensor, array in zip(OPS[case.op_type].inputs, kernel_inputs(case), strict=False):
            if tensor.state and array is not None:
                copied = (tmp_path / f"{case.name}.{tensor.name}_out.apart").read_bytes()
                assert copied == np.ascontiguousarray(array).tobytes()


def spoiled(tmp_path: Path, change: dict[str, str]) -> list[dict[str, Any]]:
    """What the library says of the first linear case when lines of its description are replaced."""
    (case,) = (case for case in cases() if case.name.startswith("3-"))
    path = write_cases(tmp_path, [case])
    text = path.read_text(encoding="utf-8")
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return tell(f"direct-{NATIVE}", "run", path)


@pytest.mark.parametrize(
    ("change", "where", "sentence"),
    [
        ({"int n 66\n": ""}, "createPlugin", "n: expected the attribute, found none; export the graph again"),
        ({"int n 66": "int m 66"}, "createPlugin", "m: expected no such attribute"),
        ({"int n 66": "float n 66"}, "createPlugin", "n: expected a field of type 5, found type 1"),
        (
            {"activation none": "activation a_much_longer_word"},
            "createPlugin",
            "expected a text of up to 15 bytes, found 18",
        ),
        ({"activation none": "activation gelu"}, "onShapeChange", "activation: expected none or swiglu, found gelu"),
        ({"int n 66": "int n 65"}, "onShapeChange", "weight: expected 65 along axis 0, found 66"),
        ({"int k 128": "int k 120"}, "onShapeChange", "x: expected 120 along axis 1, found 128"),
        ({"float16 2 5 128": "float16 1 640"}, "getOutputShapes", "x: expected rank 2, found 1"),
        (
            {"float16 2 5 128": "float32 2 5 128"},
            "supportsFormatCombination",
            "x: expected the type float16, found float32",
        ),
        ({"float16 2 66 128": "int32 2 66 128"}, "supportsFormatCombination", "the type float16, int8, found int32"),
    ],
)
def test_a_wrong_node_is_refused_with_a_sentence(
    change: dict[str, str], where: str, sentence: str, tmp_path: Path
) -> None:
    (found,) = spoiled(tmp_path, change)
    assert found["failed"] == where
    (line,) = found["said"]
    assert line.startswith("OrinLinear 3-")
    assert sentence in line


@pytest.mark.parametrize("release", sdk.PINS)
def test_the_layout_that_the_binary_relies_on_is_that_of_every_pinned_release(release: str) -> None:
    """The adapter's static assertions hold against its headers."""
    if not has_headers():
        pytest.skip("needs TensorRT's headers; run: orin-export sdk")
    words = ["g++", "-std=c++17", "-fsyntax-only", "-fno-exceptions", "-DORIN_ALIASED_STATE=0", f"-I{ROOT / 'plugins'}"]
    done = subprocess.run([*words, *tensorrt_headers(release), ROOT / "plugins/tensorrt/library.cpp"], check=False)
    assert done.returncode == 0


def test_states_are_declared_as_aliases_only_where_the_switch_says_so(tmp_path: Path) -> None:
    plugins = library(NATIVE, PLUGINS)
    switched = with_option(NATIVE, "ORIN_ALIASED_STATE")
    path = write_cases(tmp_path, [case for case in cases() if case.op_type in ("OrinAttention", "OrinGatedDelta")])
    for lines, expected in (
        (plugins, {(-1, -1), (-1, -1, -1)}),
        (replace(plugins, path=switched), {(-1, 1), (-1, 6, 7)}),
    ):
        found = lines.run(program("host.cpp", plugins.machine, "10.3"), lines.path, "cases", path)
        assert {tuple(alias for _, _, alias in line["outputs"]) for line in found} == expected


def test_without_a_driver_the_first_use_of_the_device_is_refused_with_a_sentence(tmp_path: Path) -> None:
    plugins = library(NATIVE, PLUGINS)
    path = write_cases(tmp_path, cases()[:1])
    (found,) = plugins.run(program("host.cpp", plugins.machine, "10.3"), plugins.path, "cases", path, stub=False)
    assert found["failed"] == "configurePlugin"
    assert "libcuda.so.1 was not found" in found["said"][0]
