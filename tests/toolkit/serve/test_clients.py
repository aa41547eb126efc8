# SPDX-License-Identifier: Apache-2.0
"""OpenAI's own client and httpx, unmodified, with the demo model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from toolkit.serve.servers import MODEL, Server

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Tom has 3 apples."}]


@pytest.fixture(scope="module")
def demo(demo_bundle: Path) -> Iterator[Server]:
    server = Server(demo_bundle, engine="onnxruntime", name=MODEL)
    server.wait_ready()
    yield server
    assert server.stop() == 0


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


def test_errors_are_those_of_the_client(client: openai.OpenAI, demo: Server) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as refused:
        client.completions.create(model=MODEL, prompt="x", temperature=3)
    assert (refused.value.param, refused.value.code) == ("temperature", "invalid_request")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError, match="colour: unknown field"):
        client.completions.create(model=MODEL, prompt="x", extra_body={"colour": "red"})


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
