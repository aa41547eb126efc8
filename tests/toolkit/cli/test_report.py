# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from orinkit.cli import main


def test_a_report_is_written(demo_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    arguments = [
        "board-report",
        str(demo_bundle),
        "-o",
        str(output),
        "--selftest",
        "onnxruntime",
        "--selftest",
        "vulkan",
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.stderr
    assert "self-test with onnxruntime: passed\nself-test with vulkan: unknown engine 'vulkan'; " in done.stdout
    assert done.stdout.endswith(f"{output}: written; read it before you send it\n")
    assert json.loads(output.read_text(encoding="utf-8"))["report"] == 1


def test_a_bench_that_is_none_is_refused(demo_bundle: Path, tmp_path: Path) -> None:
    arguments = ["board-report", str(demo_bundle), "-o", str(tmp_path / "x.json"), "--bench", str(tmp_path / "none")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 78
    assert "expected what orin-run bench --json wrote" in done.stderr
    assert list(tmp_path.iterdir()) == []
