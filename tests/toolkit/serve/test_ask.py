# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from orinkit.errors import RequestError, ServiceError
from orinkit.runtime.tokenizer import ChatPrompt
from orinkit.serve import ask

BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}

TOOL = {"type": "function", "function": {"name": "f"}}


def called(arguments: str) -> dict[str, Any]:
    """A message that calls a tool."""
    return {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": arguments}}]}


def param_of(act: Any, body: dict[str, Any]) -> str | None:
    with pytest.raises(ServiceError) as refused:
        act(body)
    assert refused.value.status == 400
    return refused.value.param


def test_what_is_left_out_is_as_with_openai() -> None:
    asked = ask.chat(BODY)
    assert (asked.n, asked.stream, asked.settings.sampling.temperature, asked.settings.max_tokens) == (
        1,
        False,
        1,
        None,
    )
    assert asked.prompt == ({"role": "user", "content": "hi"},)
    assert ask.completion({"model": "m", "prompt": "x"}).settings.max_tokens == 16
    assert ask.chat(BODY).settings.sampling.seed != asked.settings.sampling.seed


def test_every_field_arrives() -> None:
    fields = {"temperature": 0.5, "top_k": 5.0, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1}
    more = {"presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"7": 3}, "seed": -1, "stop": ["a", "b"]}
    asked = ask.completion({"model": "m", "prompt": [1, 2.0], **fields, **more, "max_tokens": 3})
    sampling = asked.settings.sampling
    assert {name: getattr(sampling, name) for name in fields} == fields
    assert (sampling.logit_bias, sampling.seed, asked.settings.stop) == ({7: 3}, 2**64 - 1, ("a", "b"))
    assert (asked.prompt, asked.settings.max_tokens) == ((1, 2), 3)


def test_choices_have_seeds_of_their_own() -> None:
    asked = ask.completion({"model": "m", "prompt": "x", "n": 3, "seed": -1, "user": "me"})
    made = asked.requests(ChatPrompt((4, 5), (1,)), 9.0, "key 1")
    assert [request.sampling.seed for request in made] == [2**64 - 1, 0, 1]
    assert {(request.prompt, request.cuts) for request in made} == {((4, 5), (1,))}
    assert {(request.deadline, request.client) for request in made} == {(9.0, "key 1 me")}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"temperature": 0.005}, "temperature"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [called("x")]}, "messages[0].tool_calls[0].function.arguments"),
        ({"messages": [called("[1]")]}, "messages[0].tool_calls[0].function.arguments"),
        ({"logit_bias": {str(number): 1 for number in range(301)}}, "logit_bias"),
        ({"stop": ["x"] * 9}, "stop"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(change: dict[str, Any], param: str) -> None:
    assert param_of(ask.chat, {**BODY, **change}) == param


def test_messages_become_what_templates_read() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": parts},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "7", "tool_call_id": "c1"},
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert ask.chat({"model": "m", "messages": messages}).prompt == (
        {"role": "system", "content": "ab"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "7", "tool_call_id": "c1"},
    )


def test_tools_are_kept_unless_none_may_be_called() -> None:
    chosen = {"type": "function", "function": {"name": "f"}}
    assert ask.chat({**BODY, "tools": [TOOL]}).tools == (TOOL,)
    assert ask.chat({**BODY, "tools": [TOOL], "tool_choice": "none"}).tools == ()
    assert ask.chat({**BODY, "tools": [TOOL], "tool_choice": chosen}).tool_choice == "f"


def test_a_refusal_of_the_runtime_names_its_field() -> None:
    assert ask.refused(RequestError("prompt: too long")).param == "prompt"
    assert ask.refused(RequestError("the chat template refuses: x")).param is None
