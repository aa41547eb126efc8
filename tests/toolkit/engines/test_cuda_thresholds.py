# SPDX-License-Identifier: Apache-2.0
"""R5: a captured step decodes past every length at which something changes, and gives what an eager step gives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dense_models
from orinkit.engines.base import Pipeline, Profile
from orinkit.engines.ort import OrtEngine
from orinkit.errors import EngineError
from orinkit.memory.rings import ring_rows
from orinkit.recipe import Shapes
from orinkit.runtime.batch import Batch, Row
from orinkit.runtime.pipeline import HostPipeline, open_pipeline
from orinkit.runtime.steps import Stepper
from small_models import windows
from toolkit.engines.conversations import GREEDY, PLAIN, Conversation, Heard, check_clear, make_eager

pytestmark = pytest.mark.gpu
LIBRARY = Path(__file__).parents[3] / "build/kernels/liborin_kernels.so"
SHAPES = Shapes(capacity=8192, slots=2, chunk=256)
WINDOWS = (512, 4096)
IDS = np.random.default_rng(3).integers(2, 96, SHAPES.capacity + 1).tolist()
DECODED = 8
SPLITS = (1024, 1280, 2048)
"""Keys up to which one block reads them all, and where eager steps of head dim 64 take one more."""


def edges(window: int) -> list[int]:
    """Chunk, window, ring, splits and capacity."""
    ring = ring_rows(window, SHAPES.capacity, SHAPES.chunk)
    return sorted({SHAPES.chunk, window, ring, *SPLITS, SHAPES.capacity})


@dataclass(frozen=True)
class Three:
    """One model: captured, enqueued kernel by kernel as it was captured, and in steps of their own size."""

    captured: Pipeline
    eager: Pipeline
    exact: Pipeline
    on_cpu: OrtEngine


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Three]:
    """By window, each made once."""
    pytest.importorskip("cuda.bindings", reason="needs cuda-python", exc_type=ImportError)
    return functools.cache(lambda window: made(tmp_path_factory.mktemp("dense"), window))


def made(folder: Path, window: int) -> Three:
    from orinkit.engines.cuda import CudaEngine

    model = dense_models.export(folder, SHAPES.capacity, SHAPES.slots, SHAPES.chunk, window)
    try:
        engine = CudaEngine(model.graph, model.data, model.spec, LIBRARY)
    except EngineError as error:
        pytest.skip(f"needs an NVIDIA GPU and `make kernels`: {error}")
    eager = make_eager(open_pipeline(engine, SHAPES))
    exact = HostPipeline(Stepper(engine, SHAPES))
    return Three(open_pipeline(engine, SHAPES), eager, exact, OrtEngine(model.graph, windows(model.spec)))


def answers(pipeline: Pipeline, length: int, cut: int = 0) -> list[Heard]:
    """A prompt of `length` tokens, cut if asked for, and a short one, decoded side by side until one slot is full."""
    conversation = Conversation(pipeline, SHAPES, seat=PLAIN)
    conversation.join(0, GREEDY, tuple(IDS[:length]), cut)
    conversation.join(1, GREEDY, tuple(IDS[-37:]))
    steps = min(DECODED, SHAPES.capacity - length)
    for _ in range(steps):
        conversation.decode()
    found = conversation.answers()
    for slot in (0, 1):
        conversation.leave(slot)
    assert [len(heard) for heard in found] == [1 + steps, 1 + steps]
    return found


def lengths(edge: int) -> list[int]:
    """Prompts that end at an edge, one before and one behind it, and one that decode carries across."""
    return [length for length in (edge - 4, edge - 1, edge, edge + 1) if length <= SHAPES.capacity]


@pytest.mark.parametrize(("window", "edge"), [(window, edge) for window in WINDOWS for edge in edges(window)])
def test_captured_equals_eager_around_every_threshold(
    models: Callable[[int], Three], window: int, edge: int, record_property: Any
) -> None:
    three, compared = models(window), 0
    for length in lengths(edge):
        found = answers(three.captured, length)
        assert found == answers(three.eager, length), length
        compared += check_clear(found, answers(three.exact, length))
    assert compared > 8
    record_property("tokens compared with steps of their size", compared)


@pytest.mark.parametrize(("window", "edge"), [(window, edge) for window in WINDOWS for edge in edges(window)])
def test_a_captured_prefill_equals_an_eager_one_across_every_threshold(
    models: Callable[[int], Three], window: int, edge: int, record_property: Any
) -> None:
    """40 tokens behind a beginning that ends 20 before it; 20 where the slot ends."""
    three, length = models(window), min(edge + 20, SHAPES.capacity)
    found = answers(three.captured, length, edge - 20)
    assert found == answers(three.eager, length, edge - 20)
    compared = check_clear(found, answers(three.exact, length, edge - 20))
    record_property("tokens compared with steps of their size", compared)


@pytest.mark.parametrize("edge", [512, 768])
def test_the_tokens_are_those_of_the_cpu_around_a_window(models: Callable[[int], Three], edge: int) -> None:
    """The window of 512 and its ring; longer ones take long on a CPU, and the kernels' own tests compare them."""
    three = models(512)
    on_cpu = HostPipeline(Stepper(three.on_cpu, SHAPES))
    assert edge in edges(512)
    assert check_clear(answers(three.captured, edge - 4), answers(on_cpu, edge - 4)) > 2


def test_a_token_beyond_the_capacity_is_refused_by_rule(models: Callable[[int], Three]) -> None:
    three = models(512)
    pipeline = three.captured
    beyond = Batch.of([Row(1, SHAPES.capacity, (3,))], Profile("prefill", 1, 1)).inputs()
    with pytest.raises(EngineError, match=r"at most 2 rows of 8192 tokens, found 1 of 8193"):
        pipeline.decode([0], SHAPES.capacity + 1)
    with pytest.raises(EngineError, match="at most 2 rows of 8192 tokens, found 3 of 5"):
        pipeline.decode([2], 5)
    with pytest.raises(EngineError, match="expected at most 8192 tokens in a slot, found 8193"):
        pipeline.prefill(beyond)
    assert answers(pipeline, 5) == answers(three.eager, 5)
