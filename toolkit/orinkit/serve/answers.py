# SPDX-License-Identifier: Apache-2.0
"""From what the scheduler tells to OpenAI's answers: whole ones, and streams of server-sent events.

A stream ends with data: [DONE] only if every choice has ended well; after a fault it ends with one event that holds
the error. A client that misses [DONE] has not got the whole answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orinkit.errors import NumericError, OrinError, RequestError, ServiceError
from orinkit.runtime.request import Finished, Timings, Token
from orinkit.runtime.tokenizer import Tokenizer
from orinkit.serve.ask import Ask, refused
from orinkit.serve.jobs import Mailbox, News
from orinkit.serve.tools import Call, Reader, Style

DONE = b"data: [DONE]\n\n"


@dataclass
class Choice:
    """One of the answers to a request, as far as it has come."""

    index: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    end: Finished | None = None
    reader: Reader | None = None
    """Of a request with tools: tells text from calls."""
    calls: list[Call] = field(default_factory=list)

    def read(self, news: list[Token | Finished]) -> str:
        """The text of this news that may be told; at the end the calls are known."""
        text = "".join(piece.text for piece in news)
        if self.reader is None:
            return text
        told = self.reader.feed(text)
        if self.end is None:
            return told
        rest, self.calls = self.reader.finish()
        return told + rest

    @property
    def reason(self) -> str | None:
        """Why it has ended, as OpenAI's API tells it."""
        if self.end is None:
            return None
        return "tool_calls" if self.calls else self.end.reason


def failure(end: Finished) -> ServiceError | None:
    """What a client is told of an answer that did not end well."""
    if end.reason == "deadline":
        return ServiceError("the deadline has passed", 504, "deadline")
    if end.reason == "error":
        return told(end.error)
    return None


def told(error: OrinError | None) -> ServiceError:
    """What a client may know of an error."""
    if isinstance(error, RequestError):
        return refused(error)
    if isinstance(error, NumericError):
        return ServiceError("the model's numbers are no numbers for this prompt", 503, "numeric_error")
    return ServiceError("the engine could not compute this answer", 503, "engine_error", retry_after=1)


def event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: %b\n\n" % json.dumps(data, separators=(",", ":")).encode()


class Answer:
    """The answer to one request: gathers news and gives it the form that the route asks for."""

    kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(self, ask: Ask, mailbox: Mailbox, tokenizer: Tokenizer, identity: str, style: Style | None) -> None:
        self.ask = ask
        self.choices = [Choice(index) for index in range(ask.n)]
        if ask.tools and style is not None:
            for choice in self.choices:
                choice.reader = Reader(style, ask.tools, ask.is_forced)
        self._mailbox = mailbox
        self._tokenizer = tokenizer
        self._head = {"id": identity, "created": int(time.time()), "model": ask.model}

    @property
    def is_over(self) -> bool:
        return all(choice.end is not None for choice in self.choices)

    @property
    def timings(self) -> list[Timings]:
        return [choice.end.timings for choice in self.choices if choice.end is not None]

    async def news(self) -> list[tuple[Choice, Token | Finished]]:
        """What has come since the last call. Raises ServiceError: an answer cannot be finished."""
        return [(self.choices[index], self._noted(self.choices[index], news)) for index, news in await self._receive()]

    async def _receive(self) -> list[tuple[int, News]]:
        return await self._mailbox.receive()

    def _noted(self, choice: Choice, news: News) -> Token | Finished:
        if isinstance(news, ServiceError):
            raise news
        if isinstance(news, Token):
            choice.tokens.append(news)
        else:
            if error := failure(news):
                raise error
            choice.end = news
        return news

    async def whole(self) -> dict[str, Any]:
        """The answer when it is complete. Raises ServiceError."""
        while not self.is_over:
            for choice, news in self._by_choice(await self.news()):
                choice.text += choice.read(news)
        choices = [self.whole_choice(choice) for choice in self.choices]
        return {**self._head, "object": self.kind, "choices": choices, "usage": self.usage()}

    async def stream(self, first: list[tuple[Choice, Token | Finished]]) -> AsyncGenerator[bytes, None]:
        """Events for `first`, which has come already, and all that follows. Raises ServiceError."""
        news = first
        yield b"".join(event(self._chunk(choices)) for choices in self.opening())
        while True:
            yield b"".join(event(self._chunk(piece)) for piece in self._pieces(news))
            if self.is_over:
                break
            news = await self.news()
        if self.ask.include_usage:
            yield event({**self._chunk(None), "usage": self.usage()})
        yield DONE

    def _chunk(self, choice: Mapping[str, Any] | None) -> dict[str, Any]:
        usage = {"usage": None} if self.ask.include_usage else {}
        return {**self._head, "object": self.chunk_kind, "choices": [] if choice is None else [choice], **usage}

    def _pieces(self, news: list[tuple[Choice, Token | Finished]]) -> list[dict[str, Any]]:
        """What is new of each choice, put together."""
        pieces = []
        for choice, own in self._by_choice(news):
            pieces += self.new(choice, [piece for piece in own if isinstance(piece, Token)], own)
        return pieces

    def _by_choice(self, news: list[tuple[Choice, Token | Finished]]) -> list[tuple[Choice, list[Token | Finished]]]:
        by_choice = ((choice, [piece for owner, piece in news if owner is choice]) for choice in self.choices)
        return [(choice, own) for choice, own in by_choice if own]

    def usage(self) -> dict[str, Any]:
        """Tokens of prompt and answers."""
        prompt = self.timings[0].prompt_tokens
        generated = sum(timings.generated_tokens for timings in self.timings)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": self.timings[0].reused_tokens},
        }

    def opening(self) -> list[dict[str, Any]]:
        """Choices of the first chunks, before any text."""
        return []

    def new(self, choice: Choice, tokens: list[Token], news: list[Token | Finished]) -> list[dict[str, Any]]:
        text = choice.read(news)
        logprobs = self._logprobs(tokens) if self.ask.has_logprobs else None
        return [{"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": choice.reason}]

    def whole_choice(self, choice: Choice) -> dict[str, Any]:
        logprobs = self._logprobs(choice.tokens) if self.ask.has_logprobs else None
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.reason,
        }

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any]:
        texts = [self.spelt(token.token) for token in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self.spelt(id_): value for id_, value in token.top} for token in tokens],
            "text_offset": [],
        }

    def spelt(self, token: int) -> str:
        """The text of one token by itself."""
        return self._tokenizer.decode((token,))


class ChatAnswer(Answer):
    """The answer of /v1/chat/completions."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [
            {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None} for choice in self.choices
        ]

    def new(self, choice: Choice, tokens: list[Token], news: list[Token | Finished]) -> list[dict[str, Any]]:
        text = choice.read(news)
        logprobs = self._logprobs(tokens) if self.ask.has_logprobs and tokens else None
        delta: dict[str, Any] = {"content": text} if text or logprobs else {}
        if choice.calls:
            delta["tool_calls"] = [{"index": index, **call.told()} for index, call in enumerate(choice.calls)]
        if not delta and choice.end is None:
            return []
        return [{"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": choice.reason}]

    def whole_choice(self, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.calls:
            message |= {"content": choice.text or None, "tool_calls": [call.told() for call in choice.calls]}
        logprobs = self._logprobs(choice.tokens) if self.ask.has_logprobs else None
        return {
            "index": choice.index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": choice.reason,
        }

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any]:
        content = [
            {
                **self._scored(token.token, token.logprob),
                "top_logprobs": [self._scored(id_, value) for id_, value in token.top],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _scored(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.spelt(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
