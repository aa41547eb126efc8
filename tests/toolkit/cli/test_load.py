# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from orinkit.cli import main
from toolkit.serve.servers import Server, fake_bundle, serving

RUNNER = CliRunner()
SMALL = ("--requests", "6", "--concurrency", "2", "--prompt", "4-9", "--answer", "3")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(fake_bundle(tmp_path_factory.mktemp("load") / "bundle")) as server:
        yield server


def test_load_writes_a_table_and_json(server: Server, tmp_path: Path) -> None:
    output = tmp_path / "load.json"
    result = RUNNER.invoke(main, ["load", f"http://127.0.0.1:{server.port}", *SMALL, "--json", str(output)])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("demo: 6 requests in ")
    assert "end to end" in result.output
    figures = json.loads(output.read_text())
    assert figures["requests"] == {"sent": 6, "whole": 6, "cancelled": 0, "failed": 0}
    assert figures["workload"]["prompt"] == {"ranges": [[4, 9]]}


def test_without_one_whole_answer_the_exit_code_is_1(server: Server) -> None:
    result = RUNNER.invoke(main, ["load", f"http://127.0.0.1:{server.port}", *SMALL, "--prompt", "100000"])
    assert result.exit_code == 1
    assert "6 x 400 " in result.output


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--prompt", "x"), "expected lengths"),
        (("--requests", "0"), "requests: expected"),
        (("--api-key-file", "/nowhere"), "--api-key-file: expected"),
    ],
)
def test_wrong_settings(flags: tuple[str, ...], words: str) -> None:
    result = RUNNER.invoke(main, ["load", "http://127.0.0.1:9", *flags])
    assert result.exit_code == 78
    assert words in result.output


def test_an_address_that_is_none() -> None:
    result = RUNNER.invoke(main, ["load", "localhost:8000"])
    assert result.exit_code == 78
    assert "url: expected" in result.output
