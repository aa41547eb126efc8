# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from orinkit.errors import EngineError, RequestError, ServiceError
from orinkit.runtime.request import Finished, Request, Timings, Token
from orinkit.serve import answers
from orinkit.serve.answers import Answer, ChatAnswer
from orinkit.serve.ask import Ask
from orinkit.serve.jobs import Mailbox, News
from toolkit.runtime.serving import TOKENIZER

TIMINGS = Timings(3, 2, 0.1, 0.2, 0.3, 1)
DETAILS = {"prompt_tokens_details": {"cached_tokens": 1}}
END = Finished(1, "stop", "!", TIMINGS)
A, B = Token(1, 70, -0.5, "x"), Token(1, 71, -1.5, "y")


def answer(form: type[Answer], *news: tuple[int, News], **fields: Any) -> Answer:
    mailbox = Mailbox()
    for index, piece in news:
        mailbox.put(index, piece)
    return form(Ask("m", "x", Request((1,)), **fields), mailbox, TOKENIZER, "id-1", "json")


def events(made: Answer) -> list[Any]:
    async def run() -> bytes:
        first = await made.news()
        return b"".join([piece async for piece in made.stream(first)])

    lines = asyncio.run(run()).decode().split("\n\n")
    return [line if line.endswith("[DONE]") else json.loads(line.removeprefix("data: ")) for line in lines if line]


def test_a_whole_chat_answer() -> None:
    whole = asyncio.run(answer(ChatAnswer, (0, A), (0, B), (0, END)).whole())
    assert whole["object"] == "chat.completion"
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "xy!", "refusal": None}
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, **DETAILS}


def test_a_stream_begins_with_the_role_and_ends_with_done() -> None:
    first, *middle, last, done = events(answer(ChatAnswer, (0, A), (0, END)))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (middle, last["choices"][0]["delta"]) == ([], {"content": "x!"})
    assert (last["choices"][0]["finish_reason"], done) == ("stop", "data: [DONE]")


def test_the_usage_comes_last_and_with_all_choices() -> None:
    made = answer(Answer, (0, A), (1, B), (1, END), (0, END), n=2, stream=True, include_usage=True)
    *_, usage, _ = events(made)
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, **DETAILS}


def test_no_stream_is_empty_or_ends_without_an_end() -> None:
    made = answer(Answer, (0, A), (0, ServiceError("words", 503, "cuda_700")))
    with pytest.raises(ServiceError, match="words"):
        events(made)


def test_logprobs_stand_by_their_tokens() -> None:
    whole = asyncio.run(answer(ChatAnswer, (0, A), (0, END), has_logprobs=True).whole())
    text = TOKENIZER.decode((70,))
    assert whole["choices"][0]["logprobs"]["content"] == [
        {"token": text, "logprob": -0.5, "bytes": list(text.encode()), "top_logprobs": []}
    ]


CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
TOOLS = ({"type": "function", "function": {"name": "f"}},)


def test_a_call_is_told_as_one_in_an_answer_and_in_a_stream() -> None:
    news = ((0, replace(A, text="I see. <tool")), (0, replace(B, text=CALL[5:])), (0, replace(END, text="")))
    choice = asyncio.run(answer(ChatAnswer, *news, tools=TOOLS).whole())["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "I see. ")
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}
    told = [event["choices"][0] for event in events(answer(ChatAnswer, *news, tools=TOOLS))[:-1]]
    assert "".join(choice["delta"].get("content", "") for choice in told) == "I see. "
    assert told[-1]["delta"]["tool_calls"][0]["index"] == 0
    assert told[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        (Finished(1, "deadline", "", TIMINGS), 504, "deadline"),
        (Finished(1, "error", "", TIMINGS, EngineError("secret /path")), 503, "engine_error"),
        (Finished(1, "error", "", TIMINGS, RequestError("prompt: words")), 400, "invalid_request"),
    ],
)
def test_an_answer_that_fails_tells_what_a_client_may_know(end: Finished, status: int, code: str) -> None:
    error = answers.failure(end)
    assert error is not None
    assert (error.status, error.code) == (status, code)
    assert "secret" not in str(error)
    assert answers.failure(END) is None
