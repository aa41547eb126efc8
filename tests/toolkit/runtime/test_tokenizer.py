# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, models, pre_tokenizers, processors

from orinkit.errors import BundleError, RequestError
from orinkit.runtime.tokenizer import Tokenizer, _translated
from toolkit.runtime.tiny_tokenizer import SPECIALS, TEMPLATE, byte_fallback, byte_level


def files(settings: Any = None, template: str | None = None) -> dict[str, bytes]:
    found = {"tokenizer.json": byte_level().to_str().encode()}
    if settings is not None:
        found["tokenizer_config.json"] = json.dumps(settings).encode()
    if template is not None:
        found["chat_template.jinja"] = template.encode()
    return found


@pytest.mark.parametrize("text", ["", "To be, or not", "日本語 👩‍👩‍👧‍👦", "a\x00b\ud7ff", "  spaces  "])
def test_text_comes_back(text: str) -> None:
    tokenizer = Tokenizer.parse(files())
    assert tokenizer.decode(tokenizer.encode(text, capacity=100)) == text


def test_special_tokens_in_a_text_become_special_tokens_as_with_hugging_face() -> None:
    """Case A24."""
    tokenizer = Tokenizer.parse(files())
    ids = tokenizer.encode("a<|im_end|>b", capacity=100)
    assert len(ids) == 3
    assert ids[1] == byte_level().token_to_id("<|im_end|>")
    assert tokenizer.decode(ids) == "ab"


def test_added_tokens_count_in_the_number_of_ids() -> None:
    tokenizer = Tokenizer.parse(files())
    assert tokenizer.num_ids == byte_level().get_vocab_size(with_added_tokens=False) + len(SPECIALS)


def test_nothing_is_cut_or_padded_whatever_the_file_says() -> None:
    inner = byte_level()
    inner.enable_truncation(max_length=2)
    inner.enable_padding(length=50)
    assert len(Tokenizer(inner).encode("xyzxyz", capacity=100)) == 6


def test_the_file_says_which_tokens_surround_a_text() -> None:
    inner = byte_level()
    inner.post_processor = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[(SPECIALS[0], 280)])
    tokenizer = Tokenizer(inner)
    assert tokenizer.encode("x", capacity=9)[0] == 280
    assert tokenizer.encode("x", capacity=9, add_special_tokens=False) == tokenizer.encode("x", capacity=9)[1:]


def test_a_text_far_beyond_the_capacity_is_refused_before_it_is_tokenised() -> None:
    tokenizer = Tokenizer.parse(files())
    tokenizer.encode("x" * 80, capacity=10)
    with pytest.raises(RequestError, match=r"at most 80 bytes .* found 81"):
        tokenizer.encode("x" * 81, capacity=10)


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(RequestError, match="half a surrogate pair at 2"):
        Tokenizer.parse(files()).encode("ab\ud800", capacity=9)


def test_a_panic_of_the_library_is_an_error_of_the_request(capfd: pytest.CaptureFixture[str]) -> None:
    """Case A27: the panic is a BaseException that `except Exception` misses."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), behavior="isolated")
    tokenizer = Tokenizer(inner)
    with pytest.raises(RequestError, match=r"tokenizer can split, found: .*retry-limit"):
        tokenizer.encode("a" * 40 + "b", capacity=100)
    assert "panicked" in capfd.readouterr().err
    assert tokenizer.encode("b", capacity=9) == ()


def test_what_is_no_failure_of_the_library_passes() -> None:
    with pytest.raises(KeyboardInterrupt), _translated(RequestError, "anything"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"version": "9"}'])
def test_a_file_that_is_no_tokenizer_is_refused(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json: expected a tokenizer"):
        Tokenizer.parse({"tokenizer.json": content})


def chat(settings: Any = None, template: str | None = None) -> str:
    tokenizer = Tokenizer.parse(files(settings, template))
    ids = tokenizer.encode_chat([{"role": "user", "content": "hi"}], capacity=100).tokens
    return tokenizer._inner.decode(ids, skip_special_tokens=False)


def test_a_chat_ends_where_the_answer_begins() -> None:
    assert chat(template=TEMPLATE) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("settings", "template"),
    [
        ({"eos_token": "!"}, "{{ eos_token }}"),
        ({"eos_token": {"content": "!", "lstrip": False}}, "{{ eos_token }}"),
        ({"bos_token": None, "chat_template": "x"}, "{{ bos_token }}!"),
        ({"chat_template": "!"}, None),
        ({"chat_template": [{"name": "tool_use", "template": "?"}, {"name": "default", "template": "!"}]}, None),
    ],
)
def test_where_template_and_special_tokens_come_from(settings: Any, template: str | None) -> None:
    assert chat(settings, template) == "!"


def test_without_a_template_there_is_no_chat() -> None:
    with pytest.raises(RequestError, match="expected a model with a chat template"):
        chat({"chat_template": [{"name": "tool_use", "template": "?"}]})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", b"{", "expected JSON"),
        ("tokenizer_config.json", b"[" * 100_000, "expected JSON"),
        ("tokenizer_config.json", b"\xff", "expected text in UTF-8"),
        ("tokenizer_config.json", b"[]", "expected a JSON object, found list"),
        ("tokenizer_config.json", b'{"eos_token": 5}', "expected the text of a special token, found 5"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "chat_template: expected text, found int"),
        ("chat_template.jinja", b"\xff", "expected text in UTF-8"),
        ("chat_template.jinja", b"{% if %}", "expected Jinja"),
    ],
)
def test_broken_files_are_refused(name: str, content: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Tokenizer.parse({**files(), name: content})


def test_byte_tokens_and_special_tokens_are_open_ended() -> None:
    assert len(Tokenizer(byte_fallback()).open_ended) == 256 + 2
    assert Tokenizer(byte_level()).open_ended == {byte_level().token_to_id(text) for text in SPECIALS}
