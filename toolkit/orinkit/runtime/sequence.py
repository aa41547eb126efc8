# SPDX-License-Identifier: Apache-2.0
"""`Sequence`: a request on its way from the queue to its last token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orinkit.engines.base import Seat
from orinkit.errors import OrinError
from orinkit.runtime.grammar import Constraint
from orinkit.runtime.request import Reason, Request, Timings
from orinkit.runtime.sampling import settings_of
from orinkit.runtime.stream import TextStream
from orinkit.runtime.tokenizer import Tokenizer


@dataclass
class Sequence:
    """A request, what has come of it so far, and when."""

    id: int
    request: Request
    max_tokens: int
    stop_tokens: frozenset[int]
    text: TextStream
    submitted: float
    constraint: Constraint | None = None
    failure: OrinError | None = None
    """Why it cannot be served."""
    num_wanted: int = 0
    """Tokens that launched steps choose, or have chosen."""
    num_generated: int = 0
    num_reused: int = 0
    """Tokens of the prompt whose state was kept from an earlier request."""
    admitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    @classmethod
    def of(
        cls, number: int, request: Request, max_tokens: int, tokenizer: Tokenizer, eos: Iterable[int], now: float
    ) -> Sequence:
        """A request that has just come."""
        stops = frozenset((*eos, *request.stop_tokens))
        return cls(number, request, max_tokens, stops, TextStream(tokenizer, request.stop), now)

    def seat(self) -> Seat:
        """What a pipeline has to know of it."""
        request = self.request
        return Seat(
            prompt=request.prompt,
            settings=settings_of(request.sampling),
            biases=request.sampling.logit_bias,
            stops=tuple(sorted(self.stop_tokens)),
            max_length=len(request.prompt) + self.max_tokens,
            num_logprobs=request.top_logprobs,
            is_constrained=self.constraint is not None,
        )

    def accept(self, token: int, now: float) -> tuple[str, Reason | None]:
        """Add a token: its text, and the reason if the answer has ended with it. Raises EngineError, BundleError."""
        self.num_generated += 1
        self.first_token = now if self.first_token is None else self.first_token
        self.last_token = now
        if token in self.stop_tokens:
            return "", "stop"
        if self.constraint is not None:
            self.constraint.accept(token)
        text = self.text.feed(token)
        if self.text.stopped or (self.constraint is not None and self.constraint.is_complete):
            return text, "stop"
        return text, "length" if self.num_generated == self.max_tokens else None

    def timings(self, now: float) -> Timings:
        """How long it has taken so far."""
        admitted = now if self.admitted is None else self.admitted
        first = now if self.first_token is None else self.first_token
        last = first if self.last_token is None else self.last_token
        return Timings(
            prompt_tokens=len(self.request.prompt),
            generated_tokens=self.num_generated,
            queue_s=admitted - self.submitted,
            prefill_s=first - admitted,
            decode_s=last - first,
            reused_tokens=self.num_reused,
        )
