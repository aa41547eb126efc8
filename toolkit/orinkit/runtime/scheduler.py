# SPDX-License-Identifier: Apache-2.0
"""Continuous batching: requests come and go between steps, each in its own slot.

    queue -> slot -> prefill in chunks -> decode, one token per step -> finished

Each call of `step` launches one engine step at most, and reads those that are done. While some sequences are in prefill
and others decode, the two kinds of step take turns, so a long prompt does not stop the running answers. A prompt is cut
where its request says, and between these places after every chunk, whatever else runs; so what a request computes
depends on that request alone.

Steps may be launched ahead of what has been read (`Pipeline.run_ahead`). What they choose for an answer that has ended
meanwhile is dropped. A grammar needs the host between two steps, so while one is in use nothing runs ahead.

A request whose step fails in the engine ends with reason `error`, and so do the others of that step; the fault is
reported in their events and not raised, for those of other steps are sound. Whether the process can go on after it is
for the owner of the process to decide. One thread owns a scheduler; nothing here is locked.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable

from orinkit.engines.base import Chosen, Pipeline
from orinkit.errors import EngineError, NumericError, OrinError
from orinkit.model import ModelSpec
from orinkit.recipe import Shapes
from orinkit.runtime.batch import Batch, Row, prefill_profile
from orinkit.runtime.queue import Queue
from orinkit.runtime.request import Event, Finished, Reason, Request, Token
from orinkit.runtime.sequence import Sequence
from orinkit.runtime.snapshots import Snapshots, cut_places
from orinkit.runtime.state import Slots
from orinkit.runtime.tokenizer import Tokenizer


class Scheduler:
    """Serves requests over the slots of one pipeline. `clock` gives seconds that only rise."""

    def __init__(
        self,
        pipeline: Pipeline,
        shapes: Shapes,
        tokenizer: Tokenizer,
        spec: ModelSpec,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tokenizer = tokenizer
        self.capacity = shapes.capacity
        self._pipeline = pipeline
        self._shapes = shapes
        self._prefill_profile = prefill_profile(shapes)
        self._spec = spec
        self._clock = clock
        self._slots = Slots(shapes.slots, shapes.capacity)
        self._snapshots = Snapshots(pipeline.spare, shapes.snapshots, shapes.chunk)
        self._queue = Queue(tokenizer, spec)
        self._running: dict[int, Sequence] = {}
        self._flight: deque[dict[int, Sequence]] = deque()
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

    @property
    def degraded(self) -> str | None:
        """Why steps run slower than they should, None where they do not."""
        return self._pipeline.degraded

    def submit(self, request: Request) -> int:
        """Put a request in the queue: its id. Raises RequestError: ids beyond the vocabulary, more than fits."""
        request.check(self._spec.vocab, self.capacity)
        self._num_submitted += 1
        room = self.capacity - len(request.prompt)
        max_tokens = room if request.max_tokens is None else request.max_tokens
        sequence = Sequence.of(self._num_submitted, request, max_tokens, self.tokenizer, self._spec.eos, self._clock())
        self._queue.put(sequence)
        return sequence.id

    def cancel(self, request: int) -> None:
        """End a request, wherever it is; its slot is free at once. One that has ended already is left alone."""
        for sequence in (*self._queue, *self._running.values()):
            if sequence.id == request:
                self._finish(sequence, "cancelled")

    def step(self) -> list[Event]:
        """Launch one engine step, if there is anything to run, and tell what has happened since the last call."""
        self._expire()
        self._admit()
        has_launched = self._launch()
        if self._flight:
            self._collect(self._most_in_flight() if has_launched else len(self._flight) - 1)
        events, self._events = self._events, []
        return events

    def _expire(self) -> None:
        now = self._clock()
        for sequence in (*self._queue, *self._running.values()):
            if sequence.request.deadline is not None and sequence.request.deadline <= now:
                self._finish(sequence, "deadline")

    def _admit(self) -> None:
        """Give free slots to those whose turn it is."""
        while self._slots.num_free:
            sequence = self._queue.take()
            if sequence is None:
                return
            if sequence.failure is not None:
                self._finish(sequence, "error", error=sequence.failure)
                continue
            slot = self._slots.allocate(sequence.id)
            sequence.admitted = self._clock()
            self._running[sequence.id] = sequence
            try:
                sequence.num_reused = self._snapshots.restore(sequence.request, slot)
                self._slots.advance(sequence.id, sequence.num_reused)
                self._pipeline.seat(slot, sequence.seat())
                self._constrain(slot, sequence)
            except OrinError as error:
                self._finish(sequence, "error", error=error)

    def _constrain(self, slot: int, sequence: Sequence) -> None:
        if sequence.constraint is not None:
            self._pipeline.constrain(slot, sequence.constraint.mask())

    def _most_in_flight(self) -> int:
        is_constrained = any(sequence.constraint is not None for sequence in self._running.values())
        return 0 if is_constrained else self._pipeline.run_ahead

    def _launch(self) -> bool:
        """Launch the next step; whether there was one."""
        running = self._running.values()
        prefilling = [sequence for sequence in running if self._is_prefilling(sequence)]
        decoding = [s for s in running if not self._is_prefilling(s) and s.num_wanted < s.max_tokens]
        is_prefill = bool(prefilling) and not (decoding and self._was_prefill)
        self._was_prefill = is_prefill
        if is_prefill:
            self._prefill(prefilling)
        elif decoding:
            self._decode(decoding)
        return is_prefill or bool(decoding)

    def _is_prefilling(self, sequence: Sequence) -> bool:
        return self._slots.length(sequence.id) < len(sequence.request.prompt)

    def _prefill(self, prefilling: list[Sequence]) -> None:
        """The next chunks of as many sequences as fit into one step; the oldest is always among them."""
        room, chosen = self._shapes.chunk, []
        for sequence in prefilling:
            row = self._row(sequence)
            if len(row.tokens) <= room:
                chosen.append((sequence, row))
                room -= len(row.tokens)
        rows = [row for _, row in chosen]
        sequences = [sequence for sequence, _ in chosen]
        if not self._run(sequences, lambda: self._pipeline.prefill(Batch.of(rows, self._prefill_profile).inputs())):
            return
        for sequence, row in chosen:
            self._slots.advance(sequence.id, len(row.tokens))
            sequence.num_wanted += row.wants_logits
            self._snapshots.save(sequence.request, row.slot, row.past_len + len(row.tokens))

    def _decode(self, decoding: list[Sequence]) -> None:
        slots = [self._slots.slot(sequence.id) for sequence in decoding]
        longest = 1 + max(self._slots.length(sequence.id) for sequence in decoding)
        if not self._run(decoding, lambda: self._pipeline.decode(slots, longest)):
            return
        for sequence in decoding:
            self._slots.advance(sequence.id, 1)
            sequence.num_wanted += 1

    def _run(self, sequences: list[Sequence], launch: Callable[[], None]) -> bool:
        """Launch a step of these sequences; whether that was possible."""
        try:
            launch()
        except EngineError as error:
            self._fail(sequences, error)
            return False
        self._flight.append({self._slots.slot(sequence.id): sequence for sequence in sequences})
        return True

    def _row(self, sequence: Sequence) -> Row:
        """What the caches lack of a prompt, up to the next place where it is cut."""
        prompt, past_len = sequence.request.prompt, self._slots.length(sequence.id)
        end = next(place for place in cut_places(sequence.request, self._shapes.chunk) if place > past_len)
        return Row(self._slots.slot(sequence.id), past_len, prompt[past_len:end], wants_logits=end == len(prompt))

    def _collect(self, most: int) -> None:
        """Read the steps that are done, waiting until no more than `most` are in flight."""
        try:
            done = self._pipeline.collect(most)
        except EngineError as error:
            self._snapshots.forget()
            lost = [sequence for step in self._flight for sequence in step.values()]
            self._flight.clear()
            self._fail(lost, error)
            return
        for step in done:
            sequences = self._flight.popleft()
            for chosen in step:
                sequence = sequences.get(chosen.slot)
                if sequence is not None and sequence.id in self._running:
                    self._accept(sequence, chosen)

    def _fail(self, sequences: Iterable[Sequence], error: EngineError) -> None:
        for sequence in sequences:
            if sequence.id in self._running:
                self._finish(sequence, "error", error=error)

    def _accept(self, sequence: Sequence, chosen: Chosen) -> None:
        """Tell of the next token of a sequence."""
        try:
            if chosen.token is None:
                self._snapshots.forget()
                raise NumericError(
                    "logits: expected finite numbers and a token that may be chosen, found none; if it comes again, "
                    "run the self-test"
                )
            text, reason = sequence.accept(chosen.token, self._clock())
            if reason is None:
                self._constrain(chosen.slot, sequence)
            rest = sequence.text.finish() if reason else ""
        except OrinError as error:
            self._finish(sequence, "error", error=error)
            return
        self._events.append(Token(sequence.id, chosen.token, chosen.logprob, text, chosen.top))
        if reason:
            self._finish(sequence, reason, rest)

    def _finish(self, sequence: Sequence, reason: Reason, text: str = "", error: OrinError | None = None) -> None:
        if sequence.id in self._running:
            with contextlib.suppress(EngineError):  # a device that failed has told so already
                self._pipeline.leave(self._slots.slot(sequence.id))
            del self._running[sequence.id]
            self._slots.free(sequence.id)
        else:
            self._queue.discard(sequence)
        self._events.append(Finished(sequence.id, reason, text, sequence.timings(self._clock()), error))
