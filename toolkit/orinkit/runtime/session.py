# SPDX-License-Identifier: Apache-2.0
"""`Session`: one conversation, and `stream`, which runs a single request to its end."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace

from orinkit.runtime.request import Event, Finished, Request
from orinkit.runtime.scheduler import Scheduler
from orinkit.runtime.template import Message


def _never() -> bool:
    return False


def stream(scheduler: Scheduler, request: Request, is_cancelled: Callable[[], bool] = _never) -> Generator[Event]:
    """Submit a request to a scheduler that nobody else uses and run it: its events, the last one `Finished`.

    `is_cancelled` is asked before every step; closing the iterator cancels too. Raises RequestError, and the error of
    a request that fails.
    """
    number = scheduler.submit(request)
    try:
        while True:
            if is_cancelled():
                scheduler.cancel(number)
            for event in scheduler.step():
                if event.request != number:
                    continue
                if isinstance(event, Finished) and event.error is not None:
                    raise event.error
                yield event
                if isinstance(event, Finished):
                    return
    finally:
        scheduler.cancel(number)


class Session:
    """A conversation that grows by a question and an answer at a time; `messages` is all that it remembers."""

    def __init__(self, scheduler: Scheduler, settings: Request, system: str | None = None) -> None:
        """`settings` is a request whose prompt is replaced at each turn."""
        self._scheduler = scheduler
        self._settings = settings
        self.messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]

    def say(self, text: str, is_cancelled: Callable[[], bool] = _never) -> Generator[Event]:
        """Ask and answer: the events of the answer.

        Question and answer are remembered together, a cancelled answer as far as it came; a question that fails, or
        whose iterator is closed, is forgotten. Raises RequestError, BundleError and EngineError.
        """
        question = {"role": "user", "content": text}
        prompt = self._scheduler.tokenizer.encode_chat([*self.messages, question], self._scheduler.capacity)
        answer = ""
        for event in stream(
            self._scheduler, replace(self._settings, prompt=prompt.tokens, cuts=prompt.cuts), is_cancelled
        ):
            answer += event.text
            yield event
        self.messages += [question, {"role": "assistant", "content": answer}]
