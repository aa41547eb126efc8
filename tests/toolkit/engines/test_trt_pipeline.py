# SPDX-License-Identifier: Apache-2.0
"""Captured decode with run-ahead over a plan, on the stand-ins for TensorRT, CUDA and the kernels, which are ours: the
tokens are those of the same plan with every token chosen on the host."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import standin
from orinkit.bundle import Bundle
from orinkit.engines.base import Pipeline, Profile, Seat
from orinkit.errors import EngineError
from orinkit.recipe import Shapes
from orinkit.runtime.batch import Batch, Row
from orinkit.runtime.pipeline import HostPipeline, open_pipeline
from orinkit.runtime.sampling import Sampling, settings_of
from orinkit.runtime.steps import Stepper

SHAPES = Shapes(capacity=1024, slots=4, chunk=16)
GREEDY = settings_of(Sampling())
DRAWN = settings_of(Sampling(temperature=0.9, top_k=40, top_p=0.95, presence_penalty=0.5, seed=7))


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with standin.installed():
        folder = tmp_path_factory.mktemp("pipeline")
        yield standin.built_bundle(demo_bundle, folder / "demo", SHAPES, has_kernels=True)


@pytest.fixture
def engine(bundle: Bundle) -> Any:
    return opened(bundle)


def opened(bundle: Bundle) -> Any:
    standin.put_kernels()
    return standin.opened(bundle)


def seat(prompt: tuple[int, ...], settings: dict[str, float], length: int = 999) -> Seat:
    return Seat(prompt, settings, {3: 1.5}, (5, 198), length, num_logprobs=2)


class Conversation:
    """Sequences that come and go on a pipeline by a fixed plan; `heard` is what each one was told."""

    def __init__(self, pipeline: Pipeline, seed: int) -> None:
        self.pipeline, self.rng = pipeline, random.Random(seed)
        self.heard: dict[int, list[tuple[int | None, list[int]]]] = {}
        self.lengths: dict[int, int] = {}
        self.owner: dict[int, int] = {}

    def join(self, slot: int, settings: dict[str, float]) -> None:
        """A new sequence in a slot, prefilled in chunks."""
        self.collect(0)
        number = len(self.heard)
        self.heard[number], self.owner[slot] = [], number
        ids = tuple(self.rng.randrange(1, 4000) for _ in range(self.rng.randrange(1, 40)))
        self.pipeline.seat(slot, seat(ids, settings))
        for start in range(0, len(ids), SHAPES.chunk):
            part = ids[start : start + SHAPES.chunk]
            row = Row(slot, start, part, wants_logits=start + len(part) == len(ids))
            self.pipeline.prefill(Batch.of([row], Profile("prefill", SHAPES.chunk, 4)).inputs())
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
                told = chosen.token, [token for token, _ in chosen.top]
                self.heard[self.owner[chosen.slot]].append(told)


def talk(pipeline: Pipeline, turns: int, seed: int = 1) -> dict[int, list[tuple[int | None, list[int]]]]:
    """What every sequence hears, up to the token that ends it."""
    conversation, rng = Conversation(pipeline, seed), random.Random(seed)
    for _ in range(turns):
        slot = rng.randrange(4)
        if slot in conversation.lengths and (rng.random() < 0.2 or conversation.lengths[slot] > 900):
            conversation.leave(slot)
        elif slot not in conversation.lengths:
            conversation.join(slot, DRAWN if rng.random() < 0.5 else GREEDY)
        if conversation.lengths:
            conversation.decode()
    conversation.collect(0)
    return {number: until_stop(heard) for number, heard in conversation.heard.items()}


def until_stop(heard: list[tuple[int | None, list[int]]]) -> list[tuple[int | None, list[int]]]:
    ends = [index for index, (token, _) in enumerate(heard) if token in (5, 198)]
    return heard[: ends[0] + 1] if ends else heard


def test_captured_with_run_ahead_as_chosen_on_the_host(engine: Any) -> None:
    """Case R1: prefill and captured decode of all sizes take turns, sequences come and go."""
    pipeline = open_pipeline(engine, SHAPES)
    assert (pipeline.run_ahead > 0, pipeline.degraded) == (True, None)
    before = standin.device().num_launches
    found = talk(pipeline, 70)
    assert standin.device().num_launches - before >= 60
    expected = talk(HostPipeline(Stepper(engine, SHAPES)), 70)
    assert found == expected
    assert len(found) > 8
    assert max(len(heard) for heard in found.values()) > 10


def test_nothing_is_allocated_after_the_start(engine: Any) -> None:
    pipeline = open_pipeline(engine, SHAPES)
    before = engine.gpu.num_allocations, len(standin.device().memory)
    talk(pipeline, 30)
    assert (engine.gpu.num_allocations, len(standin.device().memory)) == before


def test_captures_that_fail_are_told_and_the_tokens_stay(
    demo_bundle: Path, tmp_path: Path, bundle: Bundle, engine: Any
) -> None:
    expected = talk(open_pipeline(engine, SHAPES), 20)
    with standin.installed(capture="fails"):
        made = standin.built_bundle(demo_bundle, tmp_path / "demo", SHAPES, has_kernels=True)
        pipeline = open_pipeline(opened(made), SHAPES)
        assert "are not captured" in (pipeline.degraded or "")
        assert talk(pipeline, 20) == expected


def test_a_fault_ends_the_pipeline(engine: Any) -> None:
    pipeline = open_pipeline(engine, SHAPES)
    conversation = Conversation(pipeline, 1)
    conversation.join(0, GREEDY)
    standin.device().memory.pop(engine.arena.address)

    def decode_and_wait() -> None:
        conversation.decode()
        pipeline.collect(0)

    for call in (
        decode_and_wait,
        conversation.decode,
        lambda: pipeline.leave(0),
        lambda: conversation.join(1, GREEDY),
    ):
        with pytest.raises(EngineError, match="CUDA error 700"):
            call()


def test_without_kernels_tokens_are_chosen_on_the_host(demo_bundle: Path, tmp_path: Path, bundle: Bundle) -> None:
    made = standin.built_bundle(demo_bundle, tmp_path / "demo", SHAPES)
    assert isinstance(open_pipeline(opened(made), SHAPES), HostPipeline)
