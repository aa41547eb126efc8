# SPDX-License-Identifier: Apache-2.0
"""Sequences that come and go on a pipeline by a fixed plan, whatever it answers, so that two pipelines can be compared:
joining, chunked prefill, decode of everybody, leaving; now and then all leave, so that every size has its turn."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, TypeAlias

import pytest

from orinkit.engines.base import Chosen, Pipeline, Profile, Seat
from orinkit.recipe import Shapes
from orinkit.runtime.batch import Batch, Row
from orinkit.runtime.sampling import Sampling, settings_of

GREEDY = settings_of(Sampling())
DRAWN = settings_of(Sampling(temperature=0.9, top_k=40, top_p=0.95, presence_penalty=0.5, seed=7))
SEAT = Seat((), GREEDY, {3: 1.5}, (5, 198), 0, num_logprobs=2)
"""How sequences sit, but for what is their own."""
PLAIN = replace(SEAT, biases={}, stops=())
"""Tokens are those of the largest logit, as many as fit."""
MARGIN = 0.02
"""Two logits that are closer may change places between kernels."""

Heard: TypeAlias = list[Chosen]


class Conversation:
    """What runs now; `heard` is what each sequence was told so far, in the order in which they joined."""

    def __init__(self, pipeline: Pipeline, shapes: Shapes, seed: int = 1, seat: Seat = SEAT) -> None:
        self.pipeline, self.shapes, self.rng, self.seat = pipeline, shapes, random.Random(seed), seat
        self.heard: list[Heard] = []
        self.lengths: dict[int, int] = {}
        self.owner: dict[int, int] = {}

    def join(self, slot: int, settings: dict[str, float], ids: tuple[int, ...] = (), cut: int = 0) -> None:
        """A new sequence in a slot, prefilled in chunks up to `cut` and from there on; without `ids` of any length."""
        self.collect(0)
        self.owner[slot] = len(self.heard)
        self.heard.append([])
        ids = ids or tuple(self.rng.randrange(1, 4000) for _ in range(self.rng.randrange(1, 40)))
        longest = self.shapes.capacity + 1  # the token behind a full slot is told too
        self.pipeline.seat(slot, replace(self.seat, prompt=ids, settings=settings, max_length=longest))
        chunk = self.shapes.chunk
        for start in (*range(0, cut, chunk), *range(cut, len(ids), chunk)):
            part = ids[start : min(start + chunk, cut if start < cut else len(ids))]
            row = Row(slot, start, part, wants_logits=start + len(part) == len(ids))
            self.pipeline.prefill(Batch.of([row], Profile("prefill", chunk, self.shapes.slots)).inputs())
            self.collect(self.pipeline.run_ahead)
        self.lengths[slot] = len(ids)

    def decode(self) -> None:
        """A token more for everybody."""
        slots = sorted(self.lengths)
        for slot in slots:
            self.lengths[slot] += 1
        self.pipeline.decode(slots, max(self.lengths.values()))
        self.collect(self.pipeline.run_ahead)

    def leave(self, slot: int) -> None:
        self.collect(0)
        self.pipeline.leave(slot)
        del self.lengths[slot]

    def collect(self, most: int) -> None:
        for step in self.pipeline.collect(most):
            for chosen in step:
                self.heard[self.owner[chosen.slot]].append(chosen)

    def answers(self) -> list[Heard]:
        """What every sequence hears, up to the token that ends it."""
        self.collect(0)
        return [_until_stop(heard, self.seat.stops) for heard in self.heard]


def talk(pipeline: Pipeline, shapes: Shapes, turns: int, seed: int = 1) -> list[Heard]:
    """The answers of a conversation of about `turns` decode steps."""
    conversation, rng = Conversation(pipeline, shapes, seed), random.Random(seed)
    for _ in range(turns):
        if rng.random() < 0.03:
            for slot in list(conversation.lengths):
                conversation.leave(slot)
        slot = rng.randrange(1 + rng.randrange(shapes.slots))
        if slot not in conversation.lengths:
            conversation.join(slot, DRAWN if rng.random() < 0.5 else GREEDY)
        elif rng.random() < 0.2:
            conversation.leave(slot)
        if conversation.lengths:
            conversation.decode()
    return conversation.answers()


def make_eager(pipeline: Any) -> Any:
    """The same pipeline, whose captured steps are enqueued kernel by kernel."""
    captures = pipeline._captures
    kinds = ((captures.prefills, captures.contexts.short_step), (captures.steps, captures.contexts.decode_step))
    for steps, make in kinds:
        for size, step in steps.items():
            steps[size] = replace(step, launch=make(size))
    return pipeline


def _until_stop(heard: Heard, stops: tuple[int, ...]) -> Heard:
    ends = [index for index, chosen in enumerate(heard) if chosen.token in stops]
    return heard[: ends[0] + 1] if ends else heard


def tokens_of(answers: list[Heard]) -> list[list[tuple[int | None, list[int]]]]:
    """Answers as ids alone: host and device have the same ones, but not the same last digits."""
    return [[(chosen.token, [token for token, _ in chosen.top]) for chosen in heard] for heard in answers]


def check_clear(found: list[Heard], wanted: list[Heard]) -> int:
    """How many tokens were compared, all of them the same: those up to a choice that other kernels may make otherwise.

    For `PLAIN` seats, whose choice shows in their log-probabilities.
    """
    count = 0
    for heard, told in zip(found, wanted, strict=True):
        assert len(heard) == len(told)
        for one, other in zip(heard, told, strict=True):
            if other.top[0][1] - other.top[1][1] < MARGIN:
                break
            assert one.token == other.token
            assert one.logprob == pytest.approx(other.logprob, abs=0.05)
            count += 1
    return count
