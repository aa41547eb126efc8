# SPDX-License-Identifier: Apache-2.0
"""The routes that make the model speak: /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from orinkit.errors import BundleError, RequestError, ServiceError
from orinkit.runtime.request import Finished, Token
from orinkit.runtime.tokenizer import ChatPrompt, Tokenizer
from orinkit.serve import ask, strictjson, tools
from orinkit.serve.answers import Answer, ChatAnswer, Choice, event
from orinkit.serve.api import Call, describe
from orinkit.serve.ask import Ask
from orinkit.serve.http import Response
from orinkit.serve.jobs import Job
from orinkit.serve.supervisor import Log, Supervisor
from orinkit.serve.trial import Trial

TOKENISE_SECONDS = 2.0
_EVENTS = "text/event-stream; charset=utf-8"


class Generation:
    """Takes requests, hands them to the supervisor, and gives its news the form of the route."""

    def __init__(self, supervisor: Supervisor, tokenizer: Tokenizer, trial: Trial, model: str, log: Log) -> None:
        self._supervisor = supervisor
        self._trial = trial
        self._tokenizer = tokenizer
        self._model = model
        self._log = log
        template = tokenizer.template
        self._style = None if template is None else tools.style_of(template.source)
        self._threads = ThreadPoolExecutor(2, "tokenise")
        self.num_active = 0
        """Answers that are being written."""

    async def chat(self, call: Call) -> Response:
        return await self._generate(call, ask.chat, ChatAnswer, "chatcmpl-")

    async def completion(self, call: Call) -> Response:
        return await self._generate(call, ask.completion, Answer, "cmpl-")

    async def _generate(self, call: Call, parse: Callable[[Any], Ask], form: type[Answer], prefix: str) -> Response:
        begin = time.monotonic()
        asked = parse(strictjson.read(await call.exchange.body()))
        if asked.model != self._model:
            raise ServiceError(f"no such model; this server has {self._model}", 404, "model_not_found", param="model")
        self._supervisor.check_state()
        asked = self._with_tools(asked)
        if asked.settings.grammar is not None:
            await self._trial.check(asked.settings.grammar)
        deadline = begin + min(self._supervisor.settings.deadline, asked.timeout or float("inf"))
        prompt = await self._tokenise(asked)
        try:
            requests = asked.requests(prompt, deadline, call.client)
            mailbox, jobs = self._supervisor.submit(requests, call.client)
        except RequestError as error:
            raise ask.refused(error) from None
        answer = form(asked, mailbox, self._tokenizer, prefix + call.id, self._style)
        record = _Record(self._log, call, answer, begin)
        is_handed_on = False
        self.num_active += 1
        try:
            if asked.stream:
                first = await answer.news()
                is_handed_on = True
                return Response(200, self._stream(answer, first, jobs, record), _EVENTS, {"X-Request-Id": call.id})
            whole = await answer.whole()
            record.outcome = "done"
            return Response.json(whole, headers={"X-Request-Id": call.id})
        except ServiceError as error:
            record.outcome = error.code
            raise
        finally:
            if not is_handed_on:
                self._end(jobs, record)

    def _with_tools(self, asked: Ask) -> Ask:
        """A call that is forced becomes a grammar. Raises ServiceError 400: the model has no tools."""
        if not asked.tools:
            return asked
        if self._style is None:
            raise strictjson.refusal("tools", "expected none: the chat template of this model has no place for them")
        if not asked.is_forced:
            return asked
        try:
            grammar = tools.forced(asked.tools, asked.tool_choice, self._style)
        except RequestError as error:
            raise strictjson.refusal("tools", str(error)) from None
        return replace(asked, settings=replace(asked.settings, grammar=grammar))

    async def _stream(
        self, answer: Answer, first: list[tuple[Choice, Token | Finished]], jobs: list[Job], record: _Record
    ) -> AsyncGenerator[bytes, None]:
        try:
            async for piece in answer.stream(first):
                yield piece
            record.outcome = "done"
        except ServiceError as error:
            record.outcome = error.code
            yield event({"error": describe(error, record.id)})
        finally:
            self._end(jobs, record)

    def _end(self, jobs: list[Job], record: _Record) -> None:
        self.num_active -= 1
        self._supervisor.cancel(jobs)
        record.write()

    async def _tokenise(self, asked: Ask) -> ChatPrompt:
        """Token ids of the prompt, found by a thread. Raises ServiceError 400."""
        if isinstance(asked.prompt, tuple) and (not asked.prompt or isinstance(asked.prompt[0], int)):
            return ChatPrompt(asked.prompt, ())  # type: ignore[arg-type]
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._tokens, asked)
        try:
            return await asyncio.wait_for(work, TOKENISE_SECONDS)
        except asyncio.TimeoutError:
            raise ServiceError(
                f"the prompt took longer than {TOKENISE_SECONDS:g} s to tokenise", 400, "tokenise_timeout"
            ) from None
        except RequestError as error:
            raise ServiceError(str(error), 400, "invalid_request", param=_field(asked)) from None
        except BundleError:
            raise ServiceError("the model's chat template fails on these messages", 400, "chat_template") from None

    def _tokens(self, asked: Ask) -> ChatPrompt:
        capacity = self._supervisor.capacity
        if isinstance(asked.prompt, str):
            return ChatPrompt(self._tokenizer.encode(asked.prompt, capacity), ())
        prompt = self._tokenizer.encode_chat(asked.prompt, capacity, asked.tools or None)  # type: ignore[arg-type]
        if asked.is_forced and self._style is not None:
            opening = self._tokenizer.encode(tools.opening(self._style), capacity, add_special_tokens=False)
            return ChatPrompt(prompt.tokens + opening, prompt.cuts)
        return prompt


def _field(asked: Ask) -> str:
    return "prompt" if isinstance(asked.prompt, str) else "messages"


class _Record:
    """What the log is told of one request, in one line."""

    def __init__(self, log: Log, call: Call, answer: Answer, begin: float) -> None:
        self.id = call.id
        self.outcome = "gone"
        """How it ended; unless told otherwise, its client has left."""
        self._log, self._call, self._answer, self._begin = log, call, answer, begin

    def write(self) -> None:
        timings = self._answer.timings
        generated = sum(len(choice.tokens) for choice in self._answer.choices)
        self._log(
            "request",
            id=self.id,
            path=self._call.exchange.head.path,
            client=self._call.client,
            outcome=self.outcome,
            stream=self._answer.ask.stream,
            prompt_tokens=timings[0].prompt_tokens if timings else None,
            generated_tokens=generated,
            queue_s=timings[0].queue_s if timings else None,
            prefill_s=timings[0].prefill_s if timings else None,
            decode_s=max(timing.decode_s for timing in timings) if timings else None,
            seconds=time.monotonic() - self._begin,
        )
