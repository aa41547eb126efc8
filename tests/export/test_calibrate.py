# SPDX-License-Identifier: Apache-2.0
"""Calibration texts, streamed statistics, and the files between layers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from orinkit.errors import ConfigError
from orinkit.recipe import Calibration
from orinkit.runtime.tokenizer import Tokenizer
from orinkit_export.calibrate import Hidden, Statistics, sequences

DEMO = Path(__file__).parents[1] / "data/demo-model"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json")))


def test_streamed_statistics_are_those_of_all_rows_together() -> None:
    x = np.random.default_rng(0).standard_normal((500, 12)).astype(np.float32)
    found = Statistics(12)
    for part in np.split(x, [3, 200, 201]):
        found.add(part)
    assert found.tokens == 500
    assert np.allclose(found.gram, x.T @ x / 500, atol=1e-5)
    assert np.allclose(found.mean_abs, np.abs(x).mean(axis=0), atol=1e-6)
    assert np.array_equal(found.max_abs, np.abs(x).max(axis=0))


def test_a_file_a_folder_and_json_lines_give_the_same_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = "To be, or not to be, that is the question. " * 30
    (tmp_path / "a.txt").write_text(text + "\n", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/1.txt").write_text(text + "\n", encoding="utf-8")
    (tmp_path / "lines.jsonl").write_text(json.dumps({"text": text, "number": 3}) + "\n", encoding="utf-8")
    found = [
        sequences(Calibration(name, 4, 32), tmp_path, tokenizer).tolist() for name in ("a.txt", "folder", "lines.jsonl")
    ]
    assert found[0] == found[1] == found[2]
    assert np.array(found[0]).shape == (4, 32)


def test_the_text_that_orinkit_brings_is_enough(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ids = sequences(Calibration(), tmp_path, tokenizer)
    assert ids.shape == (128, 512)
    assert len({tuple(row) for row in ids.tolist()}) == 128


@pytest.mark.parametrize(("content", "says"), [("short", "at least 32 tokens"), (None, "UTF-8 text")])
def test_too_little_text_is_refused(content: str | None, says: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        sequences(Calibration("a.txt", 4, 32), tmp_path, tokenizer)


def test_rows_count_from_their_commit_on_and_replace_those_before(tmp_path: Path) -> None:
    hidden = Hidden(tmp_path / "calibration")
    assert hidden.next_layer is None
    rows = [np.full((5, 3), index, np.float32) for index in range(2)]
    hidden.write((2, 5, 3), iter(rows))
    assert hidden.next_layer is None
    hidden.commit(0)
    assert Hidden(tmp_path / "calibration").next_layer == 0
    assert np.array_equal(hidden.read(0), np.stack(rows))
    hidden.write((2, 5, 3), iter(rows[::-1]))
    hidden.commit(1)
    assert hidden.next_layer == 1
    assert np.array_equal(hidden.read(1)[0], rows[1])
    assert [path.name for path in (tmp_path / "calibration").iterdir()] == ["hidden-1.npy"]
