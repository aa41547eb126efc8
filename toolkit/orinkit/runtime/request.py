# SPDX-License-Identifier: Apache-2.0
"""What is asked of the scheduler and what it tells in return; plain values, so that they can cross a process border."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from orinkit.errors import OrinError, RequestError
from orinkit.runtime.grammar import Grammar
from orinkit.runtime.sampling import MAX_LOGPROBS, Sampling, check_number

MAX_STOPS = 8
"""Most stop strings, and most stop tokens, of a request."""
MAX_STOP_CHARACTERS = 64
"""Longest stop string."""
MAX_CUTS = 1024
"""Most cuts of a prompt."""


@dataclass(frozen=True)
class Request:
    """One prompt to be continued. Raises RequestError for a value out of bounds."""

    prompt: tuple[int, ...]
    """Token ids."""
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    """Most tokens of the answer; None = as many as the slot has room for."""
    stop_tokens: tuple[int, ...] = ()
    """Token ids that end the answer, beside those of the model."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are no part of it."""
    deadline: float | None = None
    """Seconds of the monotonic clock at which the answer must have ended, queueing included."""
    top_logprobs: int = 0
    """Most likely tokens that are told with each token, 0 to 20."""
    grammar: Grammar | None = None
    """What the answer must look like."""
    cuts: tuple[int, ...] = ()
    """Places in the prompt, ascending, where its prefill is cut beside the chunks' ends, so that what comes before
    can be kept and used again. What a request computes depends on them, and never on what was kept."""
    client: str | None = None
    """Whose request it is: those of one client wait for each other before those of others do, and share nothing that
    was kept with them."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise RequestError("prompt: expected at least one token, found none; write something")
        if self.max_tokens is not None:
            check_number("max_tokens", self.max_tokens, 1, 2**31 - 1, whole=True)
        if self.deadline is not None:
            check_number("deadline", self.deadline, 0, math.inf)
        check_number("top_logprobs", self.top_logprobs, 0, MAX_LOGPROBS, whole=True)
        if len(self.cuts) > MAX_CUTS or list(self.cuts) != sorted({*self.cuts} & {*range(1, len(self.prompt))}):
            raise RequestError(f"cuts: expected at most {MAX_CUTS} ascending places within the prompt")
        for name, given in (("stop_tokens", self.stop_tokens), ("stop", self.stop)):
            if len(given) > MAX_STOPS:
                raise RequestError(f"{name}: expected at most {MAX_STOPS}, found {len(given)}")
        for text in self.stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARACTERS:
                raise RequestError(f"stop: expected 1 to {MAX_STOP_CHARACTERS} characters each, found {text!r}")

    def check(self, vocab: int, capacity: int) -> None:
        """Raise RequestError unless all ids are below `vocab` and prompt and answer fit into `capacity` tokens."""
        for name, ids in (
            ("prompt", self.prompt),
            ("stop_tokens", self.stop_tokens),
            ("logit_bias", self.sampling.logit_bias),
        ):
            _check_ids(name, ids, vocab)
        answer = 1 if self.max_tokens is None else self.max_tokens
        if len(self.prompt) + answer > capacity:
            raise RequestError(
                f"prompt: expected at most {capacity} tokens for prompt and answer together, found "
                f"{len(self.prompt)} + {answer}; shorten the prompt or ask for fewer tokens"
            )


def _check_ids(name: str, ids: Iterable[object], vocab: int) -> None:
    for token in ids:
        check_number(f"{name}: token id", token, 0, vocab - 1, whole=True)


Reason = Literal["stop", "length", "cancelled", "deadline", "error"]
"""Why an answer ended: a stop token or string, max_tokens or capacity, its client, its time, a fault."""


@dataclass(frozen=True)
class Timings:
    """How long one request took, in seconds, and for how many tokens."""

    prompt_tokens: int
    generated_tokens: int
    queue_s: float
    """From submission to a slot."""
    prefill_s: float
    """From the slot to the first token."""
    decode_s: float
    """From the first token to the last."""
    reused_tokens: int = 0
    """Prompt tokens that were not computed again."""

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens per second; 0 if no token came."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first; 0 if fewer than two came."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True)
class Token:
    """A request has got a token; stop tokens are told too, with no text."""

    request: int
    token: int
    logprob: float
    text: str
    """Text that is now certain; tokens that may belong to a stop string or to half a character hold theirs back."""
    top: tuple[tuple[int, float], ...] = ()
    """As many of the most likely tokens with their log-probabilities as the request asked for."""


@dataclass(frozen=True)
class Finished:
    """A request has ended and its slot is free; nothing more comes of it."""

    request: int
    reason: Reason
    text: str
    """What was still held back; empty unless the reason is `stop` or `length`."""
    timings: Timings
    error: OrinError | None = None
    """What went wrong, for the reason `error`."""


Event = Token | Finished
