# SPDX-License-Identifier: Apache-2.0
"""Tool calls: how models of each family write them, found out from the chat template, and read back from their answers.

    json    <tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>           Qwen 2.5 and 3, Hermes
    xml     <tool_call>\\n<function=f>\\n<parameter=a>\\n1\\n</parameter>\\n</function>\\n</tool_call>      Qwen 3.5
    plain   {"name": "f", "parameters": {...}} as the whole answer                Llama 3

What looks like a call and is none stays text: nothing that a model says is lost or run.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orinkit.runtime.grammar import Grammar

Style = Literal["json", "xml", "plain"]
OPENING = "<tool_call>"
_BLOCK = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """One call; `arguments` is JSON, as the model or its style gave it."""

    name: str
    arguments: str

    def told(self) -> dict[str, Any]:
        """As OpenAI's API tells it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def style_of(template: str) -> Style | None:
    """How a model with this chat template writes calls; None: it has no tools."""
    if "tools" not in template:
        return None
    if "<function=" in template:
        return "xml"
    if OPENING in template:
        return "json"
    return "plain" if "parameters" in template else None


def forced(tools: Sequence[Mapping[str, Any]], choice: str, style: Style) -> Grammar:
    """A call of one of the tools, or of the one that is chosen, and nothing else. Raises RequestError: too large."""
    key = "parameters" if style == "plain" else "arguments"
    chosen = (tool["function"] for tool in tools if choice in ("required", tool["function"]["name"]))
    calls = [_call_schema(tool["name"], key, tool.get("parameters", {"type": "object"})) for tool in chosen]
    return Grammar("json_schema", json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls}))


def _call_schema(name: str, key: str, parameters: Any) -> dict[str, Any]:
    properties = {"name": {"const": name}, key: parameters}
    return {"type": "object", "properties": properties, "required": ["name", key], "additionalProperties": False}


def opening(style: Style) -> str:
    """What stands before the JSON of a call that is forced, as the end of the prompt."""
    return "" if style == "plain" else f"{OPENING}\n"


class Reader:
    """Reads the answer of one choice as it comes: text that is certainly no call, and at the end the calls."""

    def __init__(self, style: Style, tools: Sequence[Mapping[str, Any]], is_forced: bool = False) -> None:
        """`is_forced`: the answer is the JSON of a call; what stands around it is not said by the model."""
        self._style: Style = "plain" if is_forced else style
        self._schemas = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in tools}
        self._held = ""
        self._is_call = False

    def feed(self, text: str) -> str:
        """The text that may be told now."""
        self._held += text
        if self._is_call:
            return ""
        at = self._beginning()
        released, self._held = self._held[:at], self._held[at:]
        return released

    def finish(self) -> tuple[str, list[Call]]:
        """Text that was held for nothing, and the calls; one of both is empty."""
        calls = self._calls()
        return ("", calls) if calls else (self._held, [])

    def _beginning(self) -> int:
        """Where a call begins, or may: everything from there on is held."""
        if self._style == "plain":
            self._is_call = self._held.lstrip()[:1] == "{"
            return 0 if self._is_call or not self._held.strip() else len(self._held)
        at = self._held.find(OPENING)
        self._is_call = at >= 0
        if self._is_call:
            return at
        ends = range(min(len(OPENING) - 1, len(self._held)), 0, -1)
        return len(self._held) - next((n for n in ends if OPENING.startswith(self._held[-n:])), 0)

    def _calls(self) -> list[Call]:
        blocks = [self._held.strip()] if self._style == "plain" else _BLOCK.findall(self._held)
        read = self._xml if self._style == "xml" else self._json
        calls = [read(block) for block in blocks]
        return [call for call in calls if call is not None] if None not in calls else []

    def _json(self, block: str) -> Call | None:
        try:
            data = json.loads(block)
            name, arguments = data["name"], data.get("arguments", data.get("parameters", {}))
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return None
        if name not in self._schemas or not isinstance(arguments, dict):
            return None
        return Call(name, json.dumps(arguments, ensure_ascii=False))

    def _xml(self, block: str) -> Call | None:
        match = _FUNCTION.fullmatch(block)
        if match is None:
            return self._json(block)
        if match[1] not in self._schemas:
            return None
        kinds = self._schemas[match[1]].get("properties", {})
        arguments = {name: _value(text, kinds.get(name, {})) for name, text in _PARAMETER.findall(match[2])}
        return Call(match[1], json.dumps(arguments, ensure_ascii=False))


def _value(text: str, schema: Any) -> Any:
    """A parameter: a text if that is what the tool takes, else JSON where it is any."""
    if isinstance(schema, dict) and schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
