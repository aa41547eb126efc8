# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from orinkit.errors import ConfigError
from orinkit.runtime.tokenizer import TOKENIZER, Tokenizer
from orinkit_export import calibrate, plan
from orinkit_export.texts import sequences
from programs import CHECKPOINT

TEXT = "ROMEO:\nBut, soft! what light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.parse({TOKENIZER: (CHECKPOINT / TOKENIZER).read_bytes()})


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, 1 << 20))


def test_blocks_are_spread_evenly_over_the_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 20)
    whole = ids(tokenizer, TEXT * 20)
    found = sequences("calibration", tmp_path / "text.txt", 3, 16, tokenizer)
    blocks = len(whole) // 16
    assert found.dtype == np.int32
    assert found.tolist() == [whole[16 * at : 16 * at + 16] for at in (0, (blocks - 1) // 2, blocks - 1)]


def test_a_short_text_gives_what_it_has(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    whole = ids(tokenizer, TEXT)
    assert sequences("calibration", tmp_path / "text.txt", 50, 16, tokenizer).shape == (len(whole) // 16, 16)


def test_a_folder_is_its_files_in_order_and_json_lines_are_their_texts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text(TEXT)
    lines = [{"question": "Tom has 3 apples.", "number": 3, "answer": "He eats one."}, "plain", ["not", "looked", "at"]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = ("Tom has 3 apples.\nHe eats one.\n", "plain\n", "\n", TEXT)
    expected = [token for text in texts for token in ids(tokenizer, text)]
    found = sequences("calibration", tmp_path, 1 << 12, 16, tokenizer)
    assert found.ravel().tolist() == expected[: found.size]
    assert found.size > len(expected) - 16


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("short.txt", b"ROMEO:", r"evaluation: text: expected at least 16 tokens in .*short\.txt, found \d+"),
        ("none.txt", None, r"evaluation: text: expected UTF-8 text at .*none\.txt, found: .*No such file"),
        ("latin.txt", b"caf\xe9", r"evaluation: text: expected UTF-8 text at .*latin\.txt, found: .*utf-8"),
        ("broken.jsonl", b'{"a": "b"}\n{"a": ', r"broken\.jsonl: line 2: expected JSON, found '\{\"a\": '"),
    ],
)
def test_what_is_no_text_is_refused(
    name: str, content: bytes | None, says: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        sequences("evaluation", tmp_path / name, 4, 16, tokenizer)


def test_the_two_texts_that_are_brought_have_nothing_in_common() -> None:
    calibration, evaluation = (
        path.read_text(encoding="utf-8") for path in (calibrate.DEFAULT_TEXT, plan.EVALUATION_TEXT)
    )
    seen = {calibration[at : at + 60] for at in range(len(calibration) - 59)}
    assert len(calibration) > 200_000
    assert len(evaluation) > 100_000
    assert not any(evaluation[at : at + 60] in seen for at in range(len(evaluation) - 59))
