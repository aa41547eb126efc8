# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from orinkit import recipe as recipes
from orinkit import target as targets
from orinkit_export import predict, predict_text
from orinkit_export.cli import main

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "recipes/demo.yaml"
BOARD = ROOT / "targets/agx-orin-64gb-jetpack-6.2.yaml"


def test_plain_lines_of_the_verb() -> None:
    told = CliRunner().invoke(main, ["plan", str(DEMO), "--target", str(BOARD)])
    assert told.exit_code == 0
    lines = told.output.splitlines()
    assert lines[0].startswith("memory: weights: ")
    assert any(line.startswith("decode: 1 x depth 0: ") and " tokens/s, " in line for line in lines)
    assert any(line.startswith("prefill: 128 tokens: ") for line in lines)
    assert any(line.startswith("fits, ") for line in lines)
    assert sum(line.startswith("assumed, not measured on a board: ") for line in lines) == 5


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_tables_of_any_recipe_name_every_item(path: Path) -> None:
    subject = replace(predict.read(DEMO), recipe=recipes.read(path), parts=None)
    found = predict.predict(subject, targets.read(BOARD))
    memory, decode, prefill = predict_text.sections(found)
    assert [row[0] for row in memory.rows] == [*(item.name for item in found.memory.items), "total"]
    assert len(decode.rows) == len(found.decode)
    assert len(prefill.rows) == len(found.prefill)
    assert all(len(row) == len(section.columns) for section in (memory, decode, prefill) for row in section.rows)


def test_tables_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    predict_text.show(predict.predict(predict.read(DEMO), targets.read(BOARD)))
    told = capsys.readouterr().out
    assert told.splitlines()[0] == "demo on agx-orin-64gb-jetpack-6.2"
    assert "key/value caches" in told
    assert "tokens/s" in told
