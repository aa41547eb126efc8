# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a bundle: text to ids, ids to text, and its chat template.

    tokenizer.json           read by the tokenizers library
    tokenizer_config.json    special tokens by name, and the template of older checkpoints; may be absent
    chat_template.jinja      the template; may be absent

As with Hugging Face, the text of a special token inside a prompt or a message becomes that special token. Nothing is
cut or padded, whatever tokenizer.json says. Decoding leaves special tokens out and tidies no spaces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tokenizers

from orinkit.errors import BundleError, OrinError, RequestError
from orinkit.runtime.request import MAX_CUTS
from orinkit.runtime.template import ChatTemplate, Message, Tool

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
FILES = (TOKENIZER, SETTINGS, TEMPLATE)

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
"""One byte of a character that the vocabulary lacks (decoder ByteFallback)."""
_BYTES_PER_TOKEN = 8
"""A longer prompt is refused before it costs time; real text has 3 to 5 bytes per token."""


MIN_CUT = 64
"""Fewest tokens between two cuts: shorter pieces are sooner computed again than kept."""


class Tokenizer:
    """A loaded tokenizer. `template` is None for a model without chat template."""

    def __init__(self, inner: tokenizers.Tokenizer, template: ChatTemplate | None = None) -> None:
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self.template = template
        vocabulary = inner.get_vocab(with_added_tokens=True)
        self.num_ids = max(vocabulary.values(), default=-1) + 1
        """Largest id that encoding can give, plus one: added tokens count, which `vocab_size` often omits."""
        special = (token for token, added in inner.get_added_tokens_decoder().items() if added.special)
        byte = (token for text, token in vocabulary.items() if _BYTE_TOKEN.fullmatch(text))
        self.open_ended = frozenset((*special, *byte))
        """Ids after which a run of byte tokens may go on: byte tokens, and special tokens, as decoding skips them."""

    @classmethod
    def parse(cls, files: Mapping[str, bytes]) -> Tokenizer:
        """The tokenizer of the files drawn above, each under its name. Raises BundleError."""
        with _translated(BundleError, f"{TOKENIZER}: expected a tokenizer"):
            inner = tokenizers.Tokenizer.from_buffer(files[TOKENIZER])
        settings = _settings(files.get(SETTINGS, b"{}"))
        source = _template_source(files.get(TEMPLATE), settings)
        named = {name: _content(settings[name]) for name in _NAMED_TOKENS if settings.get(name) is not None}
        return cls(inner, None if source is None else ChatTemplate(source, named))

    @property
    def serialised(self) -> str:
        """The tokenizer as the text of a tokenizer.json."""
        return self._inner.to_str()

    def encode(self, text: str, capacity: int, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of `text`, all of them; `add_special_tokens` puts those around it that tokenizer.json asks for.

        Raises RequestError: not valid Unicode, more than 8 bytes for each token of `capacity`, or a text on which the
        tokenizer fails.
        """
        return tuple(self._encode(text, capacity, add_special_tokens).ids)

    def _encode(self, text: str, capacity: int, add_special_tokens: bool) -> tokenizers.Encoding:
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise RequestError(f"text: expected Unicode, found half a surrogate pair at {error.start}") from None
        if size > capacity * _BYTES_PER_TOKEN:
            raise RequestError(
                f"text: expected at most {capacity * _BYTES_PER_TOKEN} bytes ({_BYTES_PER_TOKEN} for each token of "
                f"the capacity), found {size}; shorten it"
            )
        with _translated(RequestError, "text: expected one that the tokenizer can split"):
            return self._inner.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens; bytes that are no UTF-8 become U+FFFD. Raises BundleError."""
        with _translated(BundleError, "tokenizer: expected one that can decode its own ids"):
            return self._inner.decode(ids, skip_special_tokens=True)

    def encode_chat(
        self, messages: Sequence[Message], capacity: int, tools: Sequence[Tool] | None = None
    ) -> ChatPrompt:
        """A conversation, up to where the model's answer begins. Raises RequestError and BundleError."""
        if self.template is None:
            raise RequestError("chat: expected a model with a chat template, found none; use plain prompts")
        text = self.template.render(messages, tools=tools)
        encoding = self._encode(text, capacity, add_special_tokens=False)
        turns, cuts = set(_turns(self.template, messages, tools, text)), [0]
        for index, (start, _) in enumerate(encoding.offsets):
            if start in turns and index >= cuts[-1] + MIN_CUT:
                cuts.append(index)
        return ChatPrompt(tuple(encoding.ids), tuple(cuts[1 : 1 + MAX_CUTS]))


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation as the model reads it."""

    tokens: tuple[int, ...]
    cuts: tuple[int, ...]
    """Places between tokens where a question begins: what comes before is the same in the requests that follow."""


def _turns(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool] | None, text: str
) -> Iterator[int]:
    """Characters of `text` before each question, as far as the template writes what comes before in the same way
    without it."""
    for index, message in enumerate(messages):
        if index == 0 or message.get("role") != "user":
            continue
        try:
            before = template.render(messages[:index], add_generation_prompt=False, tools=tools)
        except (RequestError, BundleError):  # some templates want a question
            continue
        if text.startswith(before):
            yield len(before)


@contextmanager
def _translated(kind: type[OrinError], expected: str) -> Iterator[None]:
    """Failures of the tokenizers library as `kind`, panics of its Rust code included.

    A panic (say, of a regular expression that backtracks without end) is a BaseException of a class that cannot be
    imported, so it is known by its name; everything else that is no Exception passes.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise kind(f"{expected}, found: {error}") from None
        raise


def _settings(raw: bytes) -> dict[str, Any]:
    """The settings of a tokenizer. Raises BundleError: not a JSON object."""
    try:
        settings = json.loads(_text(raw, SETTINGS))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{SETTINGS}: expected JSON, found: {error}; export again") from None
    if not isinstance(settings, dict):
        raise BundleError(f"{SETTINGS}: expected a JSON object, found {type(settings).__name__}; export again")
    return settings


def _template_source(raw: bytes | None, settings: dict[str, Any]) -> str | None:
    """The chat template: that of its own file, else that of the settings, where several may stand with names."""
    if raw is not None:
        return _text(raw, TEMPLATE)
    source = settings.get("chat_template")
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    if source is not None and not isinstance(source, str):
        raise BundleError(f"{SETTINGS}: chat_template: expected text, found {type(source).__name__}; export again")
    return source


def _content(token: Any) -> str:
    """The text of a special token, which the settings give plainly or as an object."""
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise BundleError(f"{SETTINGS}: expected the text of a special token, found {token!r}; export again")
    return content


def _text(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{name}: expected text in UTF-8, found: {error}; export again") from None
