# SPDX-License-Identifier: Apache-2.0
"""The texts that a recipe names, as token sequences of one length."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orinkit.errors import ConfigError
from orinkit.runtime.tokenizer import Tokenizer


def sequences(section: str, source: Path, count: int, tokens: int, tokenizer: Tokenizer) -> NDArray[np.int32]:
    """Token ids [S, tokens] of at most `count` blocks spread evenly over the text at `source`.

    `section` of the recipe starts every message. Raises ConfigError: no such text, or less than one block of it.
    """
    ids: list[int] = []
    for text in _texts(section, source):
        ids.extend(tokenizer.encode(text, len(text.encode()) + 16))
    blocks = len(ids) // tokens
    if blocks == 0:
        raise ConfigError(f"{section}: text: expected at least {tokens} tokens in {source}, found {len(ids)}")
    chosen = np.unique(np.linspace(0, blocks - 1, min(blocks, count)).astype(np.intp))
    return np.array(ids[: blocks * tokens], np.int32).reshape(blocks, tokens)[chosen]


def _texts(section: str, source: Path) -> Iterator[str]:
    """Texts of a file, of a folder's files in order of name, or of JSON lines: their values that are texts."""
    if source.is_dir():
        for path in sorted(source.iterdir()):
            yield from _texts(section, path)
        return
    try:
        content = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{section}: text: expected UTF-8 text at {source}, found: {error}") from None
    if source.suffix != ".jsonl":
        yield content
        return
    for number, line in enumerate(content.splitlines(), 1):
        try:
            data = json.loads(line)
        except ValueError:
            raise ConfigError(f"{source}: line {number}: expected JSON, found {line[:60]!r}") from None
        values = data.values() if isinstance(data, dict) else [data]
        yield "\n".join(value for value in values if isinstance(value, str)) + "\n"
