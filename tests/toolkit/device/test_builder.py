# SPDX-License-Identifier: Apache-2.0
"""The child of the build, driven in this process; as a process of its own it is tested in test_build.py."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import standin
from orinkit import config
from orinkit.bundle import Bundle
from orinkit.bundle.manifest import DEPLOY, GRAPH, PLUGINS
from orinkit.device.build import ranges
from orinkit.engines import plan_key
from orinkit.errors import EngineError, GraphError, OrinError


@pytest.fixture
def builder() -> Iterator[Any]:
    with standin.installed():
        from orinkit.device import builder

        yield builder


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> Bundle:
    return standin.board_bundle(demo_bundle, tmp_path / "demo")


def job(builder: Any, bundle: Bundle, graph: str = DEPLOY, **changes: Any) -> Any:
    output = bundle.folder.with_name("plan")
    output.touch()
    data: dict[str, Any] = {
        "graph": base64.b64encode(bundle.read(graph)).decode(),
        "plugins": str(bundle.folder / PLUGINS),
        "output": str(output),
        "timing_cache": str(output.with_name("timing.cache")),
        "key": bytes(32).hex(),
        "options": {},
        "profiles": ranges(bundle.manifest.recipe.shapes),
        "workspace_bytes": 1 << 20,
        "tactic_bytes": 1 << 20,
    }
    return config.parse(data | changes, builder.Job, "job")


def built(builder: Any, wanted: Any) -> list[Mapping[str, Any]]:
    told: list[Mapping[str, Any]] = []
    builder.build(wanted, told.append)
    return told


def refused(builder: Any, wanted: Any, kind: type[OrinError], message: str) -> None:
    with pytest.raises(kind, match=message):
        built(builder, wanted)
    assert Path(wanted.output).read_bytes() == b""


def test_progress_rises_to_the_end(builder: Any, bundle: Bundle) -> None:
    told = built(builder, job(builder, bundle))
    shares = [message["done"] for message in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert Path(job(builder, bundle).output).read_bytes().startswith(b"standin plan")


def test_phases_inside_are_named_and_do_not_count(builder: Any) -> None:
    told: list[Mapping[str, Any]] = []
    monitor = builder.Monitor(told.append)
    monitor.phase_start("Building Engine", None, 2)
    monitor.phase_start("Tactic Selection", "Building Engine", 50)
    assert monitor.step_complete("Tactic Selection", 49)
    monitor.phase_finish("Tactic Selection")
    assert monitor.step_complete("Building Engine", 0)
    assert told == [
        {"phase": "Building Engine", "done": 0.0},
        {"phase": "Tactic Selection", "done": 0.0},
        {"phase": "Building Engine", "done": 0.5},
    ]


def test_the_graph_of_other_engines_is_refused_by_the_parser(builder: Any, bundle: Bundle) -> None:
    message = r"TensorRT's parser refuses the deploy graph: the graph \(-\): local functions.*export the bundle again"
    refused(builder, job(builder, bundle, GRAPH), GraphError, message)


def test_what_is_no_graph_is_refused_by_the_parser(builder: Any, bundle: Bundle) -> None:
    refused(builder, job(builder, bundle, graph="model.data"), GraphError, "Failed to parse ONNX model")


def test_an_operator_without_importer_is_named(builder: Any, bundle: Bundle) -> None:
    content = bundle.read(DEPLOY).replace(b"OrinLinear", b"OtherThing")
    wanted = replace(job(builder, bundle), graph=base64.b64encode(content).decode())
    refused(builder, wanted, GraphError, r"layers\.\d+\.ba \(OtherThing\): no importer registered for op: OtherThing")


def test_an_input_that_varies_without_a_range_is_refused(builder: Any, bundle: Bundle) -> None:
    profiles = [
        [item for item in profile if item["name"] != "slots"] for profile in ranges(bundle.manifest.recipe.shapes)
    ]
    refused(builder, job(builder, bundle, profiles=profiles), GraphError, r"slots: expected fixed sizes, found \(-1,\)")


def test_sizes_that_tensorrt_refuses_are_told(builder: Any, bundle: Bundle) -> None:
    """There the bindings raise and give no answer."""
    profiles = ranges(bundle.manifest.recipe.shapes)
    profiles[0][0]["least"] = 0
    refused(builder, job(builder, bundle, profiles=profiles), EngineError, r"setting the sizes .*least=0.*inconsistent")


def test_a_plan_of_one_profile_is_refused(builder: Any, bundle: Bundle) -> None:
    profiles = ranges(bundle.manifest.recipe.shapes)[:1]
    refused(builder, job(builder, bundle, profiles=profiles), EngineError, "expected a profile of prefill and one of")


def test_only_a_timing_cache_of_this_board_reaches_tensorrt(builder: Any, tmp_path: Path) -> None:
    """Case B20: TensorRT would take all of them."""
    import tensorrt

    path, content, key = tmp_path / "timing.cache", f"standin cache of {standin.VERSION}".encode(), bytes(32)
    for code, expected in ((plan_key.code(key, content), content), (plan_key.code(b"other", content), b""), (b"", b"")):
        path.write_bytes(code + content)
        assert builder._timing_cache(tensorrt.IBuilderConfig(), path, key).content == expected
