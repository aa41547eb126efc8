# SPDX-License-Identifier: Apache-2.0
"""Chat templates: Jinja from the bundle, rendered in a sandbox, with what Hugging Face templates expect.

A template sees messages, tools, documents (always none), add_generation_prompt, the special tokens by name (bos_token,
eos_token, ...), raise_exception, strftime_now, a tojson that does not escape HTML, break and continue, and the
{% generation %} block, whose body is rendered as it stands.

What a hostile template cannot do:
  attributes   a name that the sandbox holds to be unsafe (__class__ and the like) is an error, even when only printed
  time         every turn of a loop and every call of a macro looks at a deadline; range() ends at 100,000
  output       ends at MAX_OUTPUT
  operators    ** is an error, and so is * on anything but numbers of moderate size: it would repeat text and lists
What is left to the check at export: a single filter or method that makes one huge value in one call, and a text that
doubles itself by concatenation.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orinkit.errors import BundleError, RequestError

Message = Mapping[str, Any]
"""role and content, both texts; what a tool was asked and has answered as templates read it."""
Tool = Mapping[str, Any]
"""A function that the model may call, as OpenAI's API describes one."""

MAX_OUTPUT = 4 << 20
"""Most characters that a template may write; a prompt of 2^20 tokens fits."""
MAX_SECONDS = 0.4
"""Time of one rendering; the sandbox must have refused within 500 ms."""
_MAX_FACTOR = 1 << 20
"""Largest operand of *."""
_TICK = "_orin_tick"
"""Name of the call that is put into every loop and macro."""


class _RefusalError(Exception):
    """The template itself refused the messages, by raise_exception."""


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks the model's own words for training; here only its body counts."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as a plain set)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The immutable sandbox, stricter: an unsafe attribute raises at once, and operators have bounds."""

    intercepted_binops = frozenset({"*", "**"})

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        raise SecurityError(f"attribute {attribute!r} of {type(obj).__name__} is not allowed")

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("operator ** is not allowed")
        if not all(isinstance(value, (int, float)) and abs(value) <= _MAX_FACTOR for value in (left, right)):
            raise SecurityError(f"operator * is for numbers up to {_MAX_FACTOR}")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """One compiled template and the variables that it always sees."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        """Compile `source`. Raises BundleError: not a template."""
        sandbox = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        sandbox.filters["tojson"] = _to_json
        sandbox.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        del sandbox.globals["lipsum"]
        try:
            tree = sandbox.parse(source)
            _insert_ticks(tree)
            self._template = sandbox.from_string(tree)
        except (jinja2.TemplateError, RecursionError, MemoryError) as error:
            raise BundleError(f"chat template: expected Jinja, found: {error}; correct it and export again") from None
        self.source = source
        self._variables = dict(variables)

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool = True, tools: Sequence[Tool] | None = None
    ) -> str:
        """The conversation as the model was trained to read it.

        Raises RequestError: the template refuses these messages. Raises BundleError: the template fails, does what
        the sandbox forbids, or passes a bound.
        """
        deadline = time.monotonic() + MAX_SECONDS

        def tick() -> str:
            if time.monotonic() > deadline:
                raise SecurityError(f"it ran longer than {MAX_SECONDS} s")
            return ""

        variables: dict[str, Any] = {"messages": messages, "tools": tools, "documents": None, _TICK: tick}
        variables |= {"add_generation_prompt": add_generation_prompt, **self._variables}
        try:
            return _bounded(self._template.generate(variables), tick)
        except _RefusalError as error:
            raise RequestError(f"the chat template refuses these messages: {error}") from None
        except Exception as error:
            # Whatever a template's own code can raise: type and name errors, recursion, memory, the sandbox.
            raise BundleError(f"chat template: it fails on these messages: {error}; correct it") from error


def _bounded(pieces: Iterable[str], tick: Callable[[], str]) -> str:
    """The pieces as one text, with a look at the deadline at each. Raises SecurityError: too much."""
    written, size = [], 0
    for piece in pieces:
        tick()
        size += len(piece)
        if size > MAX_OUTPUT:
            raise SecurityError(f"it wrote more than {MAX_OUTPUT} characters")
        written.append(piece)
    return "".join(written)


def _insert_ticks(tree: nodes.Template) -> None:
    """Begin the body of every loop and macro with a look at the deadline. Raises BundleError: the name is taken."""
    if any(name.name == _TICK for name in tree.find_all(nodes.Name)):
        raise BundleError(f"chat template: expected no use of the reserved name {_TICK!r}; rename it")
    blocks: list[nodes.For | nodes.Macro] = [*tree.find_all(nodes.For), *tree.find_all(nodes.Macro)]
    for block in blocks:
        call = nodes.Call(nodes.Name(_TICK, "load"), [], [], None, None)
        block.body.insert(0, nodes.ExprStmt(call).set_lineno(block.lineno))


def _raise_exception(message: str) -> None:
    raise _RefusalError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in transformers, where it stands in for Jinja's own filter, which escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
