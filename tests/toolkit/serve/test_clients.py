# SPDX-License-Identifier: Apache-2.0
"""OpenAI's own client, that of Hugging Face, and httpx, unmodified, with the demo model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import BadRequestError

from orinkit.bundle import write
from orinkit.bundle.manifest import MANIFEST, decode
from toolkit.serve.servers import MODEL, Server, serving

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Tom has 3 apples."}]


@pytest.fixture(scope="module")
def demo(demo_bundle: Path) -> Iterator[Server]:
    with serving(demo_bundle, engine="onnxruntime", name=MODEL) as server:
        yield server


@pytest.fixture(scope="module")
def client(demo: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{demo.port}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_chat_and_its_stream_say_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=24, temperature=0)
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 24
    assert whole.choices[0].message.content
    pieces = list(
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    assert pieces[-1].usage == whole.usage
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1] == whole.choices[0].finish_reason


def test_logprobs_penalties_seed_and_stop_are_understood(client: openai.OpenAI) -> None:
    first, again = (
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=12,
            logprobs=True,
            stop=["Tom"],
            logit_bias={"9": -100},
            temperature=1,
            seed=5,
            presence_penalty=0.5,
            frequency_penalty=0.5,
            n=2,
        )
        for _ in range(2)
    )
    assert [choice.message.content for choice in first.choices] == [choice.message.content for choice in again.choices]
    assert first.choices[0].logprobs is not None
    assert first.choices[0].logprobs.content


def test_a_completion_and_the_list_of_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    done = client.completions.create(model=MODEL, prompt="ROMEO:", max_tokens=8, temperature=0)
    assert done.choices[0].text


SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Tom", "Ann"]}, "apples": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "apples"],
    "additionalProperties": False,
}


def test_an_answer_keeps_to_a_json_schema(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=64,
        response_format={"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA, "strict": True}},
    )
    jsonschema.validate(json.loads(done.choices[0].message.content or ""), SCHEMA)
    assert done.choices[0].finish_reason == "stop"


def test_an_answer_keeps_to_a_regular_expression(client: openai.OpenAI) -> None:
    done = client.completions.create(
        model=MODEL, prompt="x", extra_body={"response_format": {"type": "regex", "regex": "[a-c]{3}-[0-9]"}}
    )
    assert re.fullmatch("[a-c]{3}-[0-9]", done.choices[0].text)


@pytest.mark.parametrize("regex", ["(", "[", "a{2,1}"])
def test_a30_a_wrong_grammar_is_refused(client: openai.OpenAI, regex: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(
            model=MODEL, prompt="x", extra_body={"response_format": {"type": "regex", "regex": regex}}
        )
    assert refused.value.param == "response_format"


def test_a_model_without_tools_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=TOOLS)
    assert refused.value.param == "tools"


@pytest.fixture(scope="module")
def tools(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model with a chat template that has a place for tools."""
    folder = tmp_path_factory.mktemp("tooled") / "bundle"
    shutil.copytree(demo_bundle, folder)
    template = folder / "tokenizer/chat_template.jinja"
    template.write_text(TOOL_LINES + template.read_text())
    manifest = decode((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).unlink()
    write(folder, replace(manifest, files=()))
    with serving(folder, engine="onnxruntime", name=MODEL) as server:
        yield server


@pytest.fixture(scope="module")
def tooled(tools: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{tools.port}/v1", api_key="none", max_retries=0) as made:
        yield made


TOOL_LINES = """{%- if tools %}{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call one by <tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>
{% endif %}"""
TOOLS: list[openai.types.chat.ChatCompletionToolParam] = [
    {"type": "function", "function": {"name": "count", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "additionalProperties": False}}},
]


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_tool_that_must_be_called_is(tooled: openai.OpenAI, is_stream: bool) -> None:
    settings: Any = {"model": MODEL, "messages": MESSAGES, "tools": TOOLS, "max_tokens": 96}
    settings["tool_choice"] = {"type": "function", "function": {"name": "count"}}
    if is_stream:
        pieces = [piece.choices[0] for piece in tooled.chat.completions.create(**settings, stream=True)]
        call, reason = pieces[-1].delta.tool_calls[0], pieces[-1].finish_reason
    else:
        choice = tooled.chat.completions.create(**settings).choices[0]
        call, reason = choice.message.tool_calls[0], choice.finish_reason
    assert (call.function.name, reason) == ("count", "tool_calls")
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)


def test_the_answer_of_a_tool_goes_back_to_the_model(tooled: openai.OpenAI) -> None:
    call: Any = {"id": "c1", "type": "function", "function": {"name": "count", "arguments": "{}"}}
    messages: Any = [*MESSAGES, {"role": "assistant", "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "c1", "content": "3"})
    done = tooled.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, max_tokens=8)
    assert done.choices[0].finish_reason in ("stop", "length")


def test_a_shared_beginning_is_read_once_and_only_by_its_own_user(client: openai.OpenAI) -> None:
    system = "You are a helpful assistant. Solve the question step by step. " * 16
    messages: Any = [{"role": "system", "content": system}, *MESSAGES]

    def ask(user: str) -> tuple[str | None, int | None]:
        done = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=12, temperature=0, user=user)
        assert done.usage is not None
        assert done.usage.prompt_tokens_details is not None
        return done.choices[0].message.content, done.usage.prompt_tokens_details.cached_tokens

    (first, fresh), (again, cached), (other, foreign) = ask("a"), ask("a"), ask("b")
    assert first == again == other
    assert (fresh, foreign) == (0, 0)
    assert cached is not None
    assert cached > 100


def test_errors_are_those_of_the_client(client: openai.OpenAI, demo: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as refused:
        client.completions.create(model=MODEL, prompt="x", temperature=3)
    assert (refused.value.param, refused.value.code) == ("temperature", "invalid_request")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError, match="colour: unknown field"):
        client.completions.create(model=MODEL, prompt="x", extra_body={"colour": "red"})


def other(server: Server) -> InferenceClient:
    return InferenceClient(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none")


def test_another_client_chats_and_streams(demo: Server) -> None:
    client = other(demo)
    asked: Any = {"messages": MESSAGES, "model": MODEL, "max_tokens": 24, "temperature": 0.0}
    whole = client.chat_completion(**asked).choices[0]
    pieces = [piece.choices[0] for piece in client.chat_completion(**asked, stream=True)]
    assert whole.message.content
    assert "".join(piece.delta.content or "" for piece in pieces) == whole.message.content
    assert pieces[-1].finish_reason == whole.finish_reason


def test_another_client_calls_a_tool(tools: Server) -> None:
    choice: Any = {"type": "function", "function": {"name": "count"}}
    asked: Any = {"messages": MESSAGES, "model": MODEL, "tools": TOOLS, "tool_choice": choice, "max_tokens": 96}
    calls = other(tools).chat_completion(**asked).choices[0].message.tool_calls
    assert calls is not None
    assert [call.function.name for call in calls] == ["count"]
    jsonschema.validate(json.loads(calls[0].function.arguments), SCHEMA)


def test_another_client_raises_its_own_errors(demo: Server) -> None:
    asked: Any = {"messages": MESSAGES, "model": MODEL}
    with pytest.raises(BadRequestError, match="temperature: expected 0 to 2, found 3"):
        other(demo).chat_completion(**asked, temperature=3)
    asked["tools"] = TOOLS
    with pytest.raises(BadRequestError, match="has no place for them"):
        other(demo).chat_completion(**asked)


def test_httpx_gets_json_of_its_schema(demo: Server) -> None:
    """Hugging Face's client sends schemas in a form of its own, which is not OpenAI's."""
    wanted = {"type": "json_schema", "json_schema": {"name": "count", "schema": SCHEMA, "strict": True}}
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 64, "response_format": wanted}
    done = httpx.post(f"http://127.0.0.1:{demo.port}/v1/chat/completions", json=body, timeout=20, trust_env=False)
    jsonschema.validate(json.loads(done.json()["choices"][0]["message"]["content"]), SCHEMA)


def test_httpx_reads_a_stream(demo: Server) -> None:
    body = {"model": MODEL, "prompt": "ROMEO:", "max_tokens": 8, "stream": True}
    with httpx.Client(base_url=f"http://127.0.0.1:{demo.port}") as http:
        for _ in range(3):
            with http.stream("POST", "/v1/completions", json=body) as answer:
                lines = [line for line in answer.iter_lines() if line]
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert lines[-1] == "data: [DONE]"
        assert http.get("/readyz").json()["status"] == "ready"


def test_httpx_over_the_unix_socket(demo: Server) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=f"{demo.sockets}/api.sock")) as http:
        assert http.get("http://localhost/v1/models").json()["data"][0]["id"] == MODEL
