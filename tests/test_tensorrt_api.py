# SPDX-License-Identifier: Apache-2.0
"""Every name of TensorRT that our code uses exists in every release that it is for, with the signature that it assumes.

What the bindings have is kept in tests/data/tensorrt, and compared with the real bindings of two releases.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import standin
import tensorrt_api
from tensorrt_api import DATA, ENUM_PROPERTIES, Release, Uses, our_modules, parameters

RELEASES = [Release.read(path) for path in sorted(DATA.glob("*.json"))]
NEWEST = max(RELEASES, key=lambda release: tuple(map(int, release.version.split("."))))
MODULES = our_modules()
LATER = {"IStreamReaderV2": "10.3", "SeekPosition": "10.3"}
"""Names that the newest release without them has to be served without."""
OURS = {
    *(
        "__init__",
        "append",
        "clear",
        "code",
        "dtype",
        "engine",
        "error_recorder",
        "log",
        "name",
        "nbytes",
        "parse",
        "read",
        "shape",
    ),
    *("weights", "write"),
}
"""Attributes of our own objects and of Python's that happen to have the name of a member of TensorRT."""

each_release = pytest.mark.parametrize("release", RELEASES, ids=lambda release: release.version)
each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)


def uses(path: Path) -> Uses:
    return Uses(path, NEWEST)


def test_modules_and_releases_are_found() -> None:
    assert [path.stem for path in MODULES] == ["builder", "trt", "trt_library", "trt_plan", "trt_step"]
    assert [release.version for release in RELEASES] == ["10.13", "10.16", "10.3", "11.0", "11.4"]
    assert sum(len(uses(path).found) for path in MODULES) > 60


@each_release
@each_module
def test_every_class_is_there(path: Path, release: Release) -> None:
    found = uses(path)
    missing = {name for name in found.classes - {"__version__"} if name not in release.classes}
    assert missing == set()


@each_release
@each_module
def test_every_member_is_there_and_takes_what_it_is_given(path: Path, release: Release) -> None:
    wrong = []
    for use in uses(path).found:
        if use.owner not in release.classes and LATER.get(use.owner) == release.version:
            continue
        is_there = release.has(use.owner, use.member)
        if not is_there or (use.arguments and not release.takes(use.owner, use.member, *use.arguments)):
            wrong.append(f"{use.line}: {use.owner}.{use.member} {use.arguments or ''}")
    assert wrong == []


@each_release
@each_module
def test_every_override_has_the_parameters_of_its_interface(path: Path, release: Release) -> None:
    for item in uses(path).overrides():
        if item.method != "__init__":
            (signature,) = release.signatures(item.base, item.method)
            assert [name for name, _ in parameters(signature)] == list(item.names), item


@each_module
def test_nothing_escapes_the_inference(path: Path) -> None:
    assert uses(path).unresolved <= OURS


@each_release
def test_what_came_later_is_asked_for_before_it_is_used(release: Release) -> None:
    optional = set().union(*(uses(path).optional for path in MODULES))
    assert optional == {"IStreamReaderV2"}
    for name, last in LATER.items():
        assert (name in release.classes) == (release.version != last)


@each_release
def test_names_that_our_code_holds_as_texts(release: Release) -> None:
    with standin.installed():
        from orinkit.engines import trt, trt_library

        texts = {
            "DataType": set(trt._DTYPES),
            "ErrorCodeTRT": set(trt_library._FATAL),
            **({"SeekPosition": {"SET", "CUR", "END"}} if "SeekPosition" in release.classes else {}),
        }
    for name, expected in texts.items():
        assert expected <= set(release.classes[name]["enum"])


def test_a_plan_brings_no_code_of_its_own() -> None:
    """Case B22: what would let one is never switched on."""
    used = {use.member for path in MODULES for use in uses(path).found}
    assert used & {"engine_host_code_allowed", "plugins_to_serialize", "VERSION_COMPATIBLE"} == set()


def test_the_stand_in_has_what_our_code_uses() -> None:
    with standin.installed():
        import tensorrt

        for path in MODULES:
            for use in uses(path).found:
                owner = getattr(tensorrt, use.owner)
                known = {*dir(owner), *vars(owner).get("__annotations__", {}), *vars_set_in(owner), *ENUM_PROPERTIES}
                assert use.member in known, f"{use.line}: the stand-in has no {use.owner}.{use.member}"


def vars_set_in(owner: type) -> set[str]:
    """Attributes that the initialiser sets."""
    code = getattr(vars(owner).get("__init__"), "__code__", None)
    return set(code.co_names) if code else set()


# The real bindings


BINDINGS = tensorrt_api.ROOT / "build/bindings"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
FUNCTIONS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry"),
    *("getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins"),
)
"""Everything that the bindings import from the three libraries."""


@pytest.fixture(scope="module", params=["10.16.1.11", "11.4.0.106"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Release, dict[str, Any]]:
    """What the bindings of a release say of themselves, and our extract of it."""
    version, folder = request.param, tmp_path_factory.mktemp("libraries")
    if not (BINDINGS / version).is_dir():
        pytest.skip("needs `make bindings`")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source = "".join(f"void {name}(void) {{ __builtin_trap(); }}\n" for name in FUNCTIONS)
    for library in LIBRARIES:
        name = f"lib{library}.so.{version.split('.')[0]}"
        command = [compiler, "-shared", "-nostdlib", "-x", "c", "-", f"-Wl,-soname,{name}", "-o", str(folder / name)]
        subprocess.run(command, input=source if library == "nvinfer" else "", text=True, check=True)
    script = Path(__file__).with_name("real_bindings.py")
    environment = {**standin.environment(), "LD_LIBRARY_PATH": str(folder)}
    environment["PYTHONPATH"] = f"{BINDINGS / version}:{environment['PYTHONPATH']}"
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    if "tensorrt_bindings.tensorrt" in done.stderr:
        pytest.skip(f"the bindings were made for another Python: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    release = next(item for item in RELEASES if version.startswith(f"{item.version}."))
    return release, json.loads(done.stdout.splitlines()[-1])


def test_the_extracts_are_true(real: tuple[Release, dict[str, Any]]) -> None:
    release, found = real
    for name, kind in release.classes.items():
        stated = found["classes"][name]
        assert set(kind.get("enum", ())) <= set(stated["enum"])
        for member, signatures in kind["members"].items():
            assert member in stated["members"], f"{name}.{member}"
            for line in signatures if signatures != "attribute" else ():
                arguments = line.split("(", 1)[1].count(",")
                said = [text for text in stated["members"][member].splitlines() if f"{member}(" in text]
                assert arguments in {text.split("(", 1)[1].count(",") for text in said}, f"{name}.{member}"


def test_tensorrt_reaches_our_overrides(real: tuple[Release, dict[str, Any]]) -> None:
    """Calls from C++ through the bindings: `num_errors` is looked up under another name than it is documented by."""
    assert real[1]["calls"] == {
        "count": 1,
        "code": "FAILED_EXECUTION",
        "text": "no memory",
        "overflowed": False,
        "fatal": True,
        "reason": "a reason",
        "go_on": True,
        "told": [{"phase": "Building", "done": 0.0}, {"phase": "Building", "done": 0.5}],
    }


# The analysis itself


WRONG = """
import tensorrt as trt
def f(engine: trt.ICudaEngine) -> None:
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_OWNED)
    engine.device_memory_size
    builder = trt.Builder()
    engine.get_tensor_shape("a", 1)
    thing().set_input_shape("a", (1,))
"""


def test_the_analysis_finds_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    path.write_text(WRONG, encoding="utf-8")
    found = uses(path)
    bad = {
        f"{use.owner}.{use.member}"
        for use in found.found
        if not NEWEST.has(use.owner, use.member)
        or (use.arguments and not NEWEST.takes(use.owner, use.member, *use.arguments))
    }
    assert bad == {
        "ExecutionContextAllocationStrategy.USER_OWNED",
        "ICudaEngine.device_memory_size",
        "Builder.__init__",
        "ICudaEngine.get_tensor_shape",
    }
    assert found.unresolved == {"set_input_shape"}


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("f(self: X) -> None", []),
        ("f(self: X, input: str, min: Dims, opt: Dims = None) -> None", ["input", "min", "opt="]),
        ("f(self: X, name: Tuple[bool, List[int]], at: Severity = <Severity.WARNING: 2>) -> int", ["name", "at="]),
    ],
)
def test_parameters_of_a_signature(signature: str, expected: list[str]) -> None:
    assert [name + "=" * has_default for name, has_default in parameters(signature)] == expected
