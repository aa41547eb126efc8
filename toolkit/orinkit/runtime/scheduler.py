# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: requests come and go between steps, each in its own slot.

    queue -> slot -> prefill in chunks -> decode, one token per step -> finished

Each call of `step` runs one engine step at most. While some sequences are in prefill and others decode, the two kinds
of step take turns, so a long prompt does not stop the running answers. Chunks of a prompt are cut at multiples of the
chunk length, whatever else runs; so what a request computes depends on that request alone.

A request whose step fails in the engine ends with reason `error`, and so do the others of that step; the fault is
reported in their events and not raised, for those of other steps are sound. Whether the process can go on after it is
for the owner of the process to decide. One thread owns a scheduler; nothing here is locked.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from orinkit.engines.base import Float32
from orinkit.errors import EngineError, OrinError
from orinkit.model import ModelSpec
from orinkit.runtime.batch import Row
from orinkit.runtime.request import Event, Finished, Reason, Request, Timings, Token
from orinkit.runtime.sampling import History, sample
from orinkit.runtime.state import Slots
from orinkit.runtime.steps import Stepper
from orinkit.runtime.stream import TextStream
from orinkit.runtime.tokenizer import Tokenizer


@dataclass
class _Sequence:
    """A request on its way: its tokens so far, prompt first, and when it got where."""

    id: int
    request: Request
    max_tokens: int
    stop_tokens: frozenset[int]
    tokens: list[int]
    history: History
    text: TextStream
    submitted: float
    admitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    def accept(self, token: int, now: float) -> tuple[str, Reason | None]:
        """Add a token: its text, and the reason if the answer has ended with it."""
        self.tokens.append(token)
        self.history.add(token)
        self.first_token = now if self.first_token is None else self.first_token
        self.last_token = now
        if token in self.stop_tokens:
            return "", "stop"
        text = self.text.feed(token)
        if self.text.stopped:
            return text, "stop"
        return text, "length" if self.num_generated == self.max_tokens else None

    def timings(self, now: float) -> Timings:
        admitted = now if self.admitted is None else self.admitted
        first = now if self.first_token is None else self.first_token
        last = first if self.last_token is None else self.last_token
        return Timings(
            prompt_tokens=len(self.request.prompt),
            generated_tokens=self.num_generated,
            queue_s=admitted - self.submitted,
            prefill_s=first - admitted,
            decode_s=last - first,
        )


class Scheduler:
    """Serves requests over the slots of one stepper. `clock` gives seconds that only rise."""

    def __init__(
        self, stepper: Stepper, tokenizer: Tokenizer, spec: ModelSpec, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tokenizer = tokenizer
        self.capacity = stepper.shapes.capacity
        self._stepper = stepper
        self._spec = spec
        self._clock = clock
        self._slots = Slots(stepper.shapes.slots, stepper.shapes.capacity)
        self._queue: deque[_Sequence] = deque()
        self._running: dict[int, _Sequence] = {}
        self._events: list[Event] = []
        self._num_submitted = 0
        self._was_prefill = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to run or to tell."""
        return not (self._queue or self._running or self._events)

    @property
    def num_free_slots(self) -> int:
        return self._slots.num_free

    @property
    def num_queued(self) -> int:
        return len(self._queue)

    def submit(self, request: Request) -> int:
        """Put a request in the queue: its id. Raises RequestError: ids beyond the vocabulary, more than fits."""
        request.check(self._spec.vocab, self.capacity)
        self._num_submitted += 1
        room = self.capacity - len(request.prompt)
        sequence = _Sequence(
            id=self._num_submitted,
            request=request,
            max_tokens=room if request.max_tokens is None else request.max_tokens,
            stop_tokens=frozenset(self._spec.eos + request.stop_tokens),
            tokens=list(request.prompt),
            history=History.of(request.prompt),
            text=TextStream(self.tokenizer, request.stop),
            submitted=self._clock(),
        )
        self._queue.append(sequence)
        return sequence.id

    def cancel(self, request: int) -> None:
        """End a request, wherever it is; its slot is free at once. One that has ended already is left alone."""
        for sequence in (*self._queue, *self._running.values()):
            if sequence.id == request:
                self._finish(sequence, "cancelled")

    def step(self) -> list[Event]:
        """Run one engine step, if there is anything to run, and tell what has happened since the last call."""
        self._expire()
        self._admit()
        prefilling = [sequence for sequence in self._running.values() if self._is_prefilling(sequence)]
        decoding = [sequence for sequence in self._running.values() if not self._is_prefilling(sequence)]
        is_prefill = bool(prefilling) and not (decoding and self._was_prefill)
        if is_prefill:
            self._run(self._stepper.prefill, self._fitting(prefilling))
        elif decoding:
            self._run(self._stepper.decode, decoding)
        self._was_prefill = is_prefill
        events, self._events = self._events, []
        return events

    def _expire(self) -> None:
        now = self._clock()
        for sequence in (*self._queue, *self._running.values()):
            if sequence.request.deadline is not None and sequence.request.deadline <= now:
                self._finish(sequence, "deadline")

    def _admit(self) -> None:
        """First come, first served."""
        while self._queue and self._slots.num_free:
            sequence = self._queue.popleft()
            self._slots.allocate(sequence.id)
            sequence.admitted = self._clock()
            self._running[sequence.id] = sequence

    def _is_prefilling(self, sequence: _Sequence) -> bool:
        return self._slots.length(sequence.id) < len(sequence.request.prompt)

    def _fitting(self, prefilling: list[_Sequence]) -> list[_Sequence]:
        """The sequences whose next chunks fit into one step together; the oldest is always among them."""
        room, fitting = self._stepper.shapes.chunk, []
        for sequence in prefilling:
            size = len(self._row(sequence).tokens)
            if size <= room:
                fitting.append(sequence)
                room -= size
        return fitting

    def _row(self, sequence: _Sequence) -> Row:
        """What the caches lack of a sequence, at most a chunk of it."""
        past_len = self._slots.length(sequence.id)
        tokens = tuple(sequence.tokens[past_len : past_len + self._stepper.shapes.chunk])
        wants_logits = past_len + len(tokens) == len(sequence.tokens)
        return Row(self._slots.slot(sequence.id), past_len, tokens, wants_logits)

    def _run(self, step: Callable[[list[Row]], Float32], sequences: list[_Sequence]) -> None:
        rows = [self._row(sequence) for sequence in sequences]
        try:
            logits = step(rows)
        except EngineError as error:
            for sequence in sequences:
                self._finish(sequence, "error", error=error)
            return
        for index, (sequence, row) in enumerate(zip(sequences, rows, strict=True)):
            self._slots.advance(sequence.id, len(row.tokens))
            if row.wants_logits:
                self._accept(sequence, logits[index])

    def _accept(self, sequence: _Sequence, logits: Float32) -> None:
        """Choose the next token of a sequence and tell of it."""
        try:
            choice = sample(logits, sequence.history, sequence.request.sampling, position=len(sequence.tokens))
            text, reason = sequence.accept(choice.token, self._clock())
            rest = sequence.text.finish() if reason else ""
        except OrinError as error:
            self._finish(sequence, "error", error=error)
            return
        self._events.append(Token(sequence.id, choice.token, choice.logprob, text))
        if reason:
            self._finish(sequence, reason, rest)

    def _finish(self, sequence: _Sequence, reason: Reason, text: str = "", error: OrinError | None = None) -> None:
        if sequence.id in self._running:
            del self._running[sequence.id]
            self._slots.free(sequence.id)
        else:
            self._queue.remove(sequence)
        self._events.append(Finished(sequence.id, reason, text, sequence.timings(self._clock()), error))
