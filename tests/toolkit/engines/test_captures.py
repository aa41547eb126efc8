# SPDX-License-Identifier: Apache-2.0
"""Short prefill steps are captured and padded: whatever the real count, they choose the tokens of a step of their own
size and touch no other slot. On the stand-ins for TensorRT, CUDA and the kernels, which are ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import standin
from orinkit.bundle import Bundle
from orinkit.engines.base import Pipeline, Profile
from orinkit.engines.launches import StepShape
from orinkit.memory.needs import SHORT_PREFILLS, prefill_sizes
from orinkit.recipe import Shapes
from orinkit.runtime.batch import Batch, Row
from orinkit.runtime.pipeline import HostPipeline, open_pipeline
from orinkit.runtime.steps import Stepper
from toolkit.engines.conversations import GREEDY, PLAIN, Conversation, Heard, tokens_of

SHAPES = Shapes(capacity=1024, slots=4, chunk=40)
SIZES = prefill_sizes(SHAPES.chunk)
IDS = tuple(np.random.default_rng(3).integers(1, 4000, 100).tolist())


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with standin.installed():
        folder = tmp_path_factory.mktemp("captures")
        yield standin.built_bundle(demo_bundle, folder / "demo", SHAPES, kernels=standin.HOST_KERNELS)


@pytest.fixture
def engine(bundle: Bundle) -> Any:
    standin.put_kernels()
    return standin.opened(bundle)


def answer(pipeline: Pipeline, length: int, slot: int = 1) -> list[Heard]:
    """A prompt of `length` tokens and two more."""
    conversation = Conversation(pipeline, SHAPES, seat=PLAIN)
    conversation.join(slot, GREEDY, IDS[:length])
    conversation.decode()
    conversation.decode()
    found = conversation.answers()
    conversation.leave(slot)
    return found


def poison(pipeline: Any) -> None:
    """NaN wherever a step has no business to look."""
    device = standin.device()
    contexts = pipeline._captures.contexts
    nbytes = {
        address: device.memory[address][0] for address in (contexts.logits.address, contexts.engine.arena.address)
    }
    for address, size in (nbytes | states(contexts.caches)).items():
        contexts.engine.gpu.fill(address, 0xFF, size)


def states(caches: Any) -> dict[int, int]:
    return {address: caches.sizes[name] for name, address in caches.addresses.items()}


def held(pipeline: Any, slot: int) -> bytes:
    """All that the caches have of a slot."""
    contexts, found = pipeline._captures.contexts, b""
    for address, size in states(contexts.caches).items():
        host = contexts.engine.gpu.pinned((SHAPES.slots, size // SHAPES.slots), np.uint8)
        contexts.engine.gpu.receive(host, address, size)
        found += host.array[slot].tobytes()
    return found


def test_sizes_are_those_of_chunks() -> None:
    assert [prefill_sizes(chunk) for chunk in (4, 8, 31, 32, 512)] == [(), (8,), (8, 16), (8, 16, 32), SHORT_PREFILLS]


def test_a_step_takes_the_smallest_size_that_holds_it(engine: Any) -> None:
    captures: Any = open_pipeline(engine, SHAPES)._captures  # type: ignore[attr-defined]
    assert captures.degraded is None

    def size(tokens: int, sequences: int = 1) -> int | None:
        step = captures.short(StepShape(tokens, sequences, sequences, tokens, tokens))
        return step.size if step else None

    for below, edge in zip((0, *SIZES), SIZES, strict=False):
        assert [size(below + 1), size(edge - 1), size(edge)] == [edge] * 3
    assert size(SIZES[-1] + 1) is None
    assert size(4, sequences=2) is None


@pytest.mark.parametrize("length", [1, 2, *(size + more for size in SIZES for more in (-1, 0, 1)), 39, 40, 41, 72, 73])
def test_every_count_has_the_tokens_of_a_step_of_its_own(engine: Any, length: int) -> None:
    """Around every size, and with a rest behind a chunk."""
    pipeline: Any = open_pipeline(engine, SHAPES)
    poison(pipeline)
    others = [held(pipeline, slot) for slot in (0, 2, 3)]
    before = standin.device().num_launches
    found = answer(pipeline, length)
    rest = length % SHAPES.chunk or SHAPES.chunk
    assert standin.device().num_launches - before == (rest <= SIZES[-1]) + 2
    assert tokens_of(found) == tokens_of(answer(HostPipeline(Stepper(engine, SHAPES)), length))
    assert len(found[0]) == 3
    assert [held(pipeline, slot) for slot in (0, 2, 3)] == others


def test_a_step_that_wants_no_logits_chooses_nothing(engine: Any) -> None:
    """A prompt that is cut within a captured size, and then goes on behind the cut."""
    pipeline, exact = open_pipeline(engine, SHAPES), HostPipeline(Stepper(engine, SHAPES))
    pipeline.seat(0, PLAIN)
    pipeline.prefill(step(Row(0, 0, IDS[:5], wants_logits=False)))
    assert pipeline.collect(0) == [()]
    pipeline.prefill(step(Row(0, 5, IDS[5:20])))
    exact.seat(0, PLAIN)
    exact.prefill(step(Row(0, 0, IDS[:20])))
    assert pipeline.collect(0)[0][0].token == exact.collect(0)[0][0].token


def test_who_leaves_before_the_prompt_ends_leaves_nothing_behind(engine: Any) -> None:
    pipeline = open_pipeline(engine, SHAPES)
    expected = answer(pipeline, 11)
    pipeline.seat(1, PLAIN)
    pipeline.prefill(step(Row(1, 0, IDS[50:57], wants_logits=False)))
    pipeline.leave(1)
    assert answer(pipeline, 11)[0] == expected[0]


def test_every_sequence_of_a_chunk_is_told(engine: Any) -> None:
    rows = [Row(slot, 0, IDS[slot : 9 + 2 * slot]) for slot in (0, 2, 3)]
    found = []
    for pipeline in (open_pipeline(engine, SHAPES), HostPipeline(Stepper(engine, SHAPES))):
        for row in rows:
            pipeline.seat(row.slot, PLAIN)
        pipeline.prefill(step(*rows))
        found.append([[(chosen.slot, chosen.token) for chosen in told] for told in pipeline.collect(0)])
    captured, exact = found
    assert captured == exact
    assert [slot for slot, _ in captured[0]] == [0, 2, 3]


def step(*rows: Row) -> Any:
    return Batch.of(list(rows), Profile("prefill", SHAPES.chunk, SHAPES.slots)).inputs()
