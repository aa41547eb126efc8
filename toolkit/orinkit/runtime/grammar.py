# SPDX-License-Identifier: Apache-2.0
"""Answers of a given form: a JSON schema or a regular expression as the set of tokens that each step may choose.

The work is llguidance's; it is imported when the first grammar comes. Compiling can take long for a hostile grammar,
so a server tries it in a process of its own first.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from orinkit.errors import EngineError, RequestError

if TYPE_CHECKING:
    from orinkit.runtime.tokenizer import Tokenizer

Kind = Literal["json_schema", "json_object", "regex"]

MAX_CHARACTERS = 64 * 1024
"""Longest schema or regular expression."""
MAX_DEPTH = 32
"""Deepest nesting of a schema."""
ANY_OBJECT = '{"type": "object"}'
COMPACT = {"whitespace_flexible": False}
"""No space where JSON allows any: a small model would go on with spaces until its last token."""


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like. Raises RequestError: too long, too deep, no JSON."""

    kind: Kind
    text: str = ""
    """The JSON schema or the regular expression; nothing for any JSON object."""

    def __post_init__(self) -> None:
        if self.kind not in ("json_schema", "json_object", "regex"):
            raise RequestError(f"grammar: expected json_schema, json_object or regex, found {self.kind!r}")
        if len(self.text) > MAX_CHARACTERS:
            raise RequestError(f"grammar: expected at most {MAX_CHARACTERS} characters, found {len(self.text)}")
        if self.kind == "json_schema":
            _check_schema(self.text)


class Constraint:
    """The state of one answer within its grammar."""

    def __init__(self, guidance: Any, matcher: Any, words: int) -> None:
        self._guidance, self._matcher = guidance, matcher
        self._mask = np.zeros((1, words), np.int32)

    def mask(self) -> NDArray[np.uint32]:
        """Tokens that may come next: bit id % 32 of word id / 32, uint32 [ceil(V/32)]. Raises EngineError."""
        self._guidance.numpy.fill_next_token_bitmask(self._matcher, self._mask)
        self._check()
        mask: NDArray[np.uint32] = self._mask[0].view(np.uint32).copy()
        return mask

    def accept(self, token: int) -> None:
        """Go on behind a token. Raises EngineError: it was none that may come."""
        if not self._matcher.consume_token(token):
            raise EngineError(f"grammar: expected one of the tokens that it allows, found token id {token}")
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether nothing more may come."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineError(f"grammar: {self._matcher.get_error()}")


class Grammars:
    """Compiles grammars for the tokens of one model."""

    def __init__(self, tokenizer: Tokenizer, vocab: int, eos: tuple[int, ...]) -> None:
        """`vocab` is the width of the logits, `eos` the ids that end an answer. Raises EngineError: no llguidance."""
        try:
            self._guidance = importlib.import_module("llguidance")
            importlib.import_module("llguidance.numpy")
        except ImportError as error:
            raise EngineError(f"grammars need one more package ({error}); run: pip install llguidance") from None
        self._vocab = vocab
        self._tokens = self._guidance.LLTokenizer(tokenizer.serialised, n_vocab=vocab, eos_token=list(eos) or None)

    def compile(self, grammar: Grammar) -> Constraint:
        """Raises RequestError: a grammar that is wrong or too large."""
        kinds = self._guidance.LLMatcher
        source = (
            kinds.grammar_from_regex(grammar.text)
            if grammar.kind == "regex"
            else kinds.grammar_from_json_schema(grammar.text or ANY_OBJECT, defaults=COMPACT)
        )
        matcher = kinds(self._tokens, source)
        if matcher.is_error():
            raise RequestError(f"grammar: expected one that can be compiled, found: {matcher.get_error()[:300]}")
        return Constraint(self._guidance, matcher, -(-self._vocab // 32))


def _check_schema(text: str) -> None:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"grammar: expected a JSON schema, found: {error}") from None
    if not isinstance(schema, (dict, bool)):
        raise RequestError(f"grammar: expected a JSON schema, found a JSON {type(schema).__name__}")
    if _depth(schema) > MAX_DEPTH:
        raise RequestError(f"grammar: expected a schema of at most {MAX_DEPTH} levels, found more")


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)
