# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orinkit.runtime.stream import TextStream
from orinkit.runtime.tokenizer import Tokenizer
from toolkit.runtime.tiny_tokenizer import byte_fallback, byte_level

BYTE_LEVEL, BYTE_FALLBACK = Tokenizer(byte_level()), Tokenizer(byte_fallback())
TOKENIZERS = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte level", "byte fallback"])


def pieces(tokenizer: Tokenizer, tokens: list[int] | tuple[int, ...], stops: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(tokenizer, stops)
    return [*(stream.feed(token) for token in tokens), stream.finish()]


@TOKENIZERS
@given(data=st.data())
@settings(deadline=None, max_examples=400)
def test_pieces_of_any_tokens_are_the_text_of_all(tokenizer: Tokenizer, data: st.DataObject) -> None:
    last = tokenizer.num_ids - 1  # special tokens are among the first of one tokenizer and the last of the other
    ids = st.integers(0, 2) | st.integers(last - 2, last) | st.integers(0, last)
    tokens = data.draw(st.lists(ids, max_size=24))
    assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens)


@TOKENIZERS
@given(text=st.text(max_size=24))
@settings(deadline=None)
def test_no_piece_of_a_text_holds_a_broken_character(tokenizer: Tokenizer, text: str) -> None:
    text = text.replace("�", "?")
    found = pieces(tokenizer, tokenizer.encode(text, capacity=1000))
    assert not any("�" in piece for piece in found)
    assert "".join(found) == text


def test_text_comes_as_soon_as_it_is_certain() -> None:
    tokens = BYTE_LEVEL.encode("a é b", capacity=100)
    found = pieces(BYTE_LEVEL, tokens)
    assert found[0] == "a"
    assert found[-1] == ""


def test_a_special_token_does_not_end_a_run_of_byte_tokens() -> None:
    vocabulary = byte_fallback().get_vocab()
    tokens = [vocabulary[text] for text in ("<0x61>", "</s>", "<0xE2>", "c")]
    assert BYTE_FALLBACK.decode(tokens) == "��c", "the whole run is broken, its first byte included"
    assert pieces(BYTE_FALLBACK, tokens) == ["", "", "", "��c", ""]


def test_bytes_that_never_become_a_character_come_at_the_end() -> None:
    first_byte = BYTE_LEVEL.encode("日", capacity=100)[:1]
    assert pieces(BYTE_LEVEL, first_byte) == ["", "�"]


def test_a_special_token_leaves_the_space_of_the_next_one() -> None:
    vocabulary = byte_fallback().get_vocab()
    a, end, space_b = (vocabulary[text] for text in ("a", "</s>", "▁b"))
    assert pieces(BYTE_FALLBACK, [a, end, end, space_b, space_b]) == ["a", "", "", " b", " b", ""]


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("four",), "one two three"),
        ("aab", ("ab",), "a"),
        ("xxy", ("xxz", "xy"), "x"),
        ("ends with th", ("the",), "ends with th"),
        ("abc", ("abc", "b"), "a"),
        ("日本語です", ("語",), "日本"),
    ],
)
def test_stop_strings(text: str, stops: tuple[str, ...], expected: str) -> None:
    assert "".join(pieces(BYTE_LEVEL, BYTE_LEVEL.encode(text, capacity=100), stops)) == expected


@given(
    text=st.text("ab ", max_size=30),
    stops=st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3).map(tuple),
    cuts=st.sets(st.integers(0, 30)),
)
@settings(deadline=None)
def test_a_stop_string_counts_wherever_the_text_is_cut(text: str, stops: tuple[str, ...], cuts: set[int]) -> None:
    """The reference looks at every prefix of the text, one character at a time."""
    ends = [(end, stop) for end in range(len(text) + 1) for stop in stops if text[:end].endswith(stop)]
    expected = text
    if ends:
        end = min(end for end, _ in ends)
        expected = text[: end - max(len(stop) for at, stop in ends if at == end)]
    bounds = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    parts = [text[low:high] for low, high in pairwise(bounds)]

    stream = TextStream(BYTE_LEVEL, stops)
    written = ""
    for part in parts:
        for token in BYTE_LEVEL.encode(part, capacity=100):
            written += stream.feed(token)
            assert expected.startswith(written)
    assert written + stream.finish() == expected
    assert stream.stopped == bool(ends)


def test_nothing_comes_after_a_stop_string() -> None:
    stream = TextStream(BYTE_LEVEL, ("b",))
    tokens = BYTE_LEVEL.encode("a", 9) + BYTE_LEVEL.encode("b", 9) + BYTE_LEVEL.encode("c", 9)
    assert [stream.feed(token) for token in tokens] == ["a", "", ""]
    assert stream.stopped
    assert stream.finish() == ""
