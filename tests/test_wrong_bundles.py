# SPDX-License-Identifier: Apache-2.0
"""Wrong inputs of orin-run: one line that says what is wrong and what to do, an exit code, and nothing changed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mistakes import Act, file, nothing, patched, removed, truncated
from orinkit.bundle import generate, pack, sign
from programs import content, listing, refused, run, succeed


@dataclass(frozen=True)
class Wrong:
    """What is done to a folder with `demo` (a signed bundle), its archive demo.tar, and folders of keys."""

    verb: str
    arguments: tuple[str, ...]
    says: tuple[str, ...]
    code: int = 78
    act: Act = nothing
    undo: str = ""
    """The file that the act changes."""


def generated(*options: str, prompt: str = "ROMEO:") -> tuple[str, ...]:
    return ("demo", prompt, *options)


DATA, GRAPH = "demo/model.data", "demo/model.onnx"
LONG = "no " * 1100
BUNDLES = {
    "missing": Wrong("selftest", ("absent",), ("absent: No such file or directory", "check the path")),
    "a file": Wrong("inspect", (GRAPH,), ("model.onnx", "Not a directory", "check the path")),
    "no bundle": Wrong("selftest", ("trusted",), ("opening the bundle trusted", "manifest.json")),
    "altered byte": Wrong(
        "selftest",
        ("demo",),
        ("model.data: expected SHA-256", "get the bundle again"),
        act=patched(DATA, 99, b"\x55"),
        undo=DATA,
    ),
    "truncated": Wrong(
        "inspect", ("demo",), ("model.onnx: expected ", "found 99;"), act=truncated(GRAPH, 99), undo=GRAPH
    ),
    "missing file": Wrong("selftest", ("demo",), ("'model.onnx': expected the file",), act=removed(GRAPH), undo=GRAPH),
    "extra file": Wrong(
        "selftest",
        ("demo",),
        ("'notes.txt': expected only what manifest.json lists",),
        act=file("demo/notes.txt", "x"),
        undo="demo/notes.txt",
    ),
    "edited manifest": Wrong(
        "inspect",
        ("demo",),
        ("manifest.json: expected canonical JSON", "never edited"),
        act=patched("demo/manifest.json", 0, b" {"),
        undo="demo/manifest.json",
    ),
}
KEYS = {
    "no such folder": Wrong("selftest", ("demo", "--keys", "absent"), ("absent: No such file", "check the path")),
    "a file": Wrong("inspect", ("demo", "--keys", GRAPH), ("trusted keys in demo/model.onnx: Not a directory",)),
    "an empty folder": Wrong("inspect", ("demo", "--keys", "nobody"), ("expected one of the trusted keys (none)",)),
    "another key": Wrong("selftest", ("demo", "--keys", "others"), ("expected one of the trusted keys", "found key")),
    "a private key": Wrong("inspect", ("demo", "--keys", "private"), ("key.pub: expected one line 'orin-ed25519",)),
    "not signed": Wrong(
        "inspect",
        ("demo", "--keys", "trusted"),
        ("manifest.sig: expected a signature, found none",),
        act=removed("demo/manifest.sig"),
        undo="demo/manifest.sig",
    ),
}
REQUESTS = {
    "engine": Wrong("selftest", ("demo", "--engine", "mxnet"), ("unknown engine 'mxnet'", "onnxruntime"), 1),
    "tokens": Wrong("generate", generated(prompt=LONG), ("at most 1024 tokens for prompt and answer", "shorten"), 1),
    "bytes": Wrong("generate", generated(prompt=LONG * 3), ("at most 8192 bytes", "found 9900; shorten it"), 1),
    "answer": Wrong("generate", generated("--max-tokens", "1024"), ("at most 1024 tokens", "+ 1024; shorten"), 1),
    "no prompt": Wrong("generate", generated(prompt=""), ("prompt: expected at least one token, found none",), 1),
    "temperature": Wrong("generate", generated("--temperature", "3"), ("temperature: expected", "0 to 2", "3.0"), 1),
    "top-p": Wrong("generate", generated("--top-p", "nan"), ("top_p: expected a number from 0 to 1, found nan",), 1),
    "no tokens": Wrong("generate", generated("--max-tokens", "0"), ("max_tokens: expected", "from 1", "found 0"), 1),
    "empty stop": Wrong("generate", generated("--stop", ""), ("stop: expected 1 to 64 characters each, found ''",), 1),
}
ARCHIVES = {
    "missing": Wrong("unpack", ("absent.tar", "new"), ("absent.tar", "No such file", "check the path")),
    "a folder": Wrong("unpack", ("demo", "new"), ("demo", "Is a directory")),
    "no archive": Wrong("unpack", (DATA, "new"), ("expected manifest.json", "found ")),
    "truncated": Wrong(
        "unpack",
        ("demo.tar", "new"),
        ("demo.tar: expected", "get it again"),
        act=truncated("demo.tar", 3 << 20),
        undo="demo.tar",
    ),
    "altered byte": Wrong(
        "unpack",
        ("demo.tar", "new"),
        ("model.data: expected SHA-256", "get the bundle again"),
        act=patched("demo.tar", 3 << 20, b"\x55"),
        undo="demo.tar",
    ),
    "a name in use": Wrong(
        "unpack", ("demo.tar", "trusted"), ("trusted: expected a name that is free", "take another")
    ),
    "below a file": Wrong("unpack", ("demo.tar", "demo.tar/new"), ("demo.tar/", "Not a directory")),
    "another key": Wrong("unpack", ("demo.tar", "new", "--keys", "others"), ("one of the trusted keys", "found key")),
}
WRONG = {
    f"{group}: {name}": case
    for group, cases in {"bundle": BUNDLES, "keys": KEYS, "request": REQUESTS, "archive": ARCHIVES}.items()
    for name, case in cases.items()
}


@pytest.fixture(scope="module")
def folder(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signed")
    shutil.copytree(demo_bundle, folder / "demo")
    for name in ("trusted", "others", "nobody", "private"):
        (folder / name).mkdir(mode=0o755)
    generate(folder / "key")
    shutil.copy(folder / "key.pub", folder / "trusted")
    shutil.copy(folder / "key", folder / "private/key.pub")
    generate(folder / "others/other")
    sign(folder / "demo", folder / "key")
    pack(folder / "demo", folder / "demo.tar")
    return folder


@pytest.fixture
def restored(folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The folder, with the file that a case changes put right again after it."""
    case: Wrong = request.node.callspec.params["case"]
    path = folder / case.undo
    before = path.read_bytes() if path.is_file() else None
    yield folder
    if before is not None:
        path.write_bytes(before)
    elif case.undo:
        path.unlink()


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_a_wrong_input_is_one_line_and_changes_nothing(case: Wrong, restored: Path) -> None:
    case.act(restored)
    before = listing(restored)
    refused(run("orin-run", case.verb, *case.arguments, cwd=restored), case.says, case.code)
    assert listing(restored) == before


def test_what_is_not_wrong_is_accepted(folder: Path) -> None:
    """The folder that all the mistakes are made in."""
    assert "good, by a trusted key" in succeed("orin-run", "inspect", "demo", "--keys", "trusted", cwd=folder)
    succeed("orin-run", "unpack", "demo.tar", "new", "--keys", "trusted", cwd=folder)
    assert content(folder / "new") == content(folder / "demo")


def test_usage_is_told_apart(folder: Path) -> None:
    done = run("orin-run", "generate", "demo", "ROMEO:", "--temperature", "warm", cwd=folder)
    assert done.returncode == 2
    assert "'warm' is not a valid float" in done.stderr
