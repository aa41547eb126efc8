# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orinkit.serve import tools
from orinkit.serve.tools import Call, Reader, Style

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "clock"}},
]
ARGUMENTS = {"city": "12", "days": 3}
SAID: dict[Style, str] = {
    "json": '<tool_call>\n{"name": "weather", "arguments": {"city": "12", "days": 3}}\n</tool_call>',
    "xml": "<tool_call>\n<function=weather>\n<parameter=city>\n12\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    "</function>\n</tool_call>",
    "plain": '{"name": "weather", "parameters": {"city": "12", "days": 3}}',
}


def read(style: Style, text: str, cuts: tuple[int, ...] = ()) -> tuple[str, list[Call]]:
    reader = Reader(style, TOOLS)
    edges = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    told = "".join(reader.feed(text[begin:end]) for begin, end in itertools.pairwise(edges))
    rest, calls = reader.finish()
    return told + rest, calls


@pytest.mark.parametrize("style", SAID)
@given(cuts=st.lists(st.integers(1, 150)).map(tuple))
def test_a_call_is_read_however_it_is_cut(style: Style, cuts: tuple[int, ...]) -> None:
    text, (call,) = read(style, SAID[style], cuts)
    assert (text, call.name, json.loads(call.arguments)) == ("", "weather", ARGUMENTS)


@pytest.mark.parametrize("style", ["json", "xml"])
def test_text_before_a_call_is_told_and_several_calls_are_read(style: Style) -> None:
    text, calls = read(style, f"Let me see. {SAID[style]}\n{SAID[style]}", (5, 20))
    assert (text, [call.name for call in calls]) == ("Let me see. ", ["weather", "weather"])


@pytest.mark.parametrize(
    ("style", "said"),
    [
        ("json", "a < b, <tool, <tool_cal"),
        ("json", "<tool_call>\nno JSON\n</tool_call>"),
        ("json", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'),
        ("json", '<tool_call>{"name": "clock", "arguments": [1]}</tool_call>'),
        ("json", '<tool_call>{"name": "clock"'),
        ("json", "<tool_call>" + "[" * 10_000 + "</tool_call>"),
        ("xml", "<tool_call>\n<function=rm>\n</function>\n</tool_call>"),
        ("plain", '{"name": "weather"'),
        ("plain", "plain words"),
        ("plain", "  "),
    ],
)
@given(cuts=st.lists(st.integers(1, 60)).map(tuple))
def test_what_is_no_call_stays_text(style: Style, said: str, cuts: tuple[int, ...]) -> None:
    assert read(style, said, cuts) == (said, [])


@pytest.mark.parametrize(("style", "key"), [("json", "arguments"), ("xml", "arguments"), ("plain", "parameters")])
def test_a_forced_call_is_all_that_is_said(style: Style, key: str) -> None:
    reader = Reader(style, TOOLS, is_forced=True)
    assert reader.feed(json.dumps({"name": "weather", key: ARGUMENTS})) == ""
    text, (call,) = reader.finish()
    assert (text, call.name, json.loads(call.arguments)) == ("", "weather", ARGUMENTS)


def test_the_grammar_of_a_forced_call_knows_its_tools() -> None:
    one = json.loads(tools.forced(TOOLS, "weather", "json").text)
    assert one["properties"] == {"name": {"const": "weather"}, "arguments": SCHEMA}
    either = json.loads(tools.forced(TOOLS, "required", "plain").text)
    assert [choice["properties"]["name"]["const"] for choice in either["anyOf"]] == ["weather", "clock"]
    assert (tools.opening("json"), tools.opening("plain")) == ("<tool_call>\n", "")


def test_the_style_is_that_of_the_template() -> None:
    assert tools.style_of("{{ messages }}") is None
    assert tools.style_of("{{ tools }} <tool_call> {{ messages }}") == "json"
    assert tools.style_of("{{ tools }} <tool_call> <function=") == "xml"
    assert tools.style_of('{{ tools }} {"name": function name, "parameters": dictionary}') == "plain"


def test_a_call_is_told_as_openai_does() -> None:
    told = Call("clock", "{}").told()
    assert (told["type"], told["function"]) == ("function", {"name": "clock", "arguments": "{}"})
    assert told["id"].startswith("call_")
