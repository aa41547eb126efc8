# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
from datetime import datetime

from orinkit.serve.logs import Log


def test_a_line_is_json_with_its_time() -> None:
    stream = io.StringIO()
    Log(stream)("request", id="x", seconds=0.12345678, count=3, none=None)
    line = json.loads(stream.getvalue())
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {"event": "request", "id": "x", "seconds": 0.123457, "count": 3}


def test_a42_control_characters_are_escaped_and_texts_cut() -> None:
    stream = io.StringIO()
    Log(stream)("refused", param="\r\n\x1b[31m\x9b ü" + "y" * 1_000_000)
    text = stream.getvalue()
    assert text.isascii()
    assert text.count("\n") == 1
    assert len(text) < 500
    assert [character for character in text[:-1] if ord(character) < 32] == []
