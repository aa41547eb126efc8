# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import standin
from orinkit.bundle import Bundle
from orinkit.device import build, report
from orinkit.errors import ConfigError
from orinkit.ops import VERSIONS


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle.open(demo_bundle, keys=None, supported=VERSIONS)


def test_a_first_run_is_told_whole(demo_bundle: Path, tmp_path: Path) -> None:
    made = standin.board_bundle(demo_bundle, tmp_path / "demo")
    bench = tmp_path / "bench.json"
    bench.write_text('{"cases": [{"tokens_per_second": 31.5}], "log": "/home/somebody/x.so"}', encoding="utf-8")
    with standin.installed():
        record = build.build(made).record
        found = report.collect(made, ("tensorrt", "onnxruntime"), [bench])
    report.write(found, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == json.loads(json.dumps(found))
    assert [(test["engine"], test["passed"]) for test in found["selftests"]] == [
        ("tensorrt", True),
        ("onnxruntime", True),
    ]
    assert found["plans"][0]["sha256"] == record.sha256
    assert found["benches"] == [{"cases": [{"tokens_per_second": 31.5}], "log": "x.so"}]
    assert found["bundle"]["digest"] == made.digest
    assert found["versions"]["orinkit"] != "none"
    assert {finding["name"] for finding in found["findings"]} >= {"machine", "memory"}


def test_nothing_private_is_in_it(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORIN_API_KEY", "secret-4711")
    text = json.dumps(report.collect(bundle, ("onnxruntime", "no such engine")))
    private = [case.prompt for case in bundle.manifest.golden] + [
        str(bundle.folder),
        "secret-4711",
        socket.gethostname(),
    ]
    private += [os.environ["HOME"]] if os.environ.get("HOME", "/") != "/" else []
    assert [words for words in private if json.dumps(words)[1:-1] in text] == []
    assert "golden" not in text
    assert "checkpoint" not in text


def test_a_failed_self_test_is_told_without_its_prompt(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    case = bundle.manifest.golden[0]
    wrong = replace(case, tokens=tuple((token + 1) % 100 for token in case.tokens))
    changed = replace(bundle, manifest=replace(bundle.manifest, golden=(wrong,)))
    (found,) = report.collect(changed, ("onnxruntime",))["selftests"]
    assert (found["passed"], found["error"]) == (False, "VerificationError")
    assert "golden prompt 0: expected token" in found["text"]
    assert case.prompt not in found["text"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/models/demo.plans/a.plan: expected 3", "a.plan: expected 3"),
        ("dlopen '/usr/lib/x/libnvinfer.so.10', /opt/y", "dlopen 'libnvinfer.so.10', y"),
        ("3/4 of it", "3/4 of it"),
    ],
)
def test_folders_are_left_out(text: str, expected: str) -> None:
    assert report.without_folders(text) == expected


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, None])
def test_what_is_no_bench_is_refused(content: bytes | None, bundle: Bundle, tmp_path: Path) -> None:
    path: Any = tmp_path / "bench.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="expected what orin-run bench --json wrote"):
        report.collect(bundle, (), [path])


def test_a_log_is_cut_to_its_end(demo_bundle: Path, tmp_path: Path) -> None:
    made = standin.board_bundle(demo_bundle, tmp_path / "demo")
    folder = tmp_path / "demo.plans"
    folder.mkdir()
    lines = "\n".join(f"/home/me/x line {index}" for index in range(500))
    (folder / "build.log").write_text(lines, encoding="utf-8")
    log = report.collect(made)["build_log"]
    assert (len(log), log[-1]) == (report.LOG_LINES, "x line 499")
