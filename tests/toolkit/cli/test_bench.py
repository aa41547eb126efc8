# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

SHORT = ("--tokens", "4", "--repeat", "1")


def test_the_verb_writes_a_table_and_json(orin: Callable[..., Result], bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    sizes = ("--prompt", "8,500", "--batch", "1,4", "--depth", "20", "--json", output)
    told = orin("bench", bundle, *SHORT, *sizes)
    assert told.exit_code == 0
    rows = [line.split() for line in told.output.splitlines()]
    assert rows[0][:3] == ["batch", "tokens", "tokens/s"]
    kinds = (("prefill", "8"), ("prefill", "500"), ("decode", "20"))
    assert [row[:3] for row in rows[1:7]] == [[kind, batch, tokens] for batch in "14" for kind, tokens in kinds]
    assert "skipped: 4 sequences need as many slots, the bundle has 2" in told.output
    data = json.loads(output.read_text())
    assert len(data["cases"]) == 6
    assert data["cases"][0]["tokens_per_second"] > 0
    assert data["engine"] == "fake"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--prompt", "8,x", "expected whole numbers with commas between them, found '8,x'"),
        ("--batch", "0", "batch: expected 1"),
        ("--json", "/no/such/folder/file.json", "cannot be written"),
    ],
)
def test_wrong_options(option: str, value: str, message: str, orin: Callable[..., Result], bundle: Path) -> None:
    told = orin("bench", bundle, *SHORT, "--prompt", "8", "--batch", "1", "--depth", "0", option, value)
    assert told.exit_code != 0
    assert message in told.output
