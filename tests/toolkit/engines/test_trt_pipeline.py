# SPDX-License-Identifier: Apache-2.0
"""Captured decode with run-ahead over a plan, on the stand-ins for TensorRT, CUDA and the kernels, which are ours: the
tokens are those of the same plan with every token chosen on the host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import standin
from orinkit.bundle import Bundle
from orinkit.engines.base import Pipeline
from orinkit.engines.waiting import RUN
from orinkit.errors import EngineError
from orinkit.recipe import Shapes
from orinkit.runtime.pipeline import RUN_AHEAD, HostPipeline, open_pipeline
from orinkit.runtime.steps import Stepper
from toolkit.engines.conversations import GREEDY, PLAIN, Conversation, Heard, talk, tokens_of

SHAPES = Shapes(capacity=1024, slots=4, chunk=16)


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with standin.installed():
        folder = tmp_path_factory.mktemp("pipeline")
        yield standin.built_bundle(demo_bundle, folder / "demo", SHAPES, kernels=standin.HOST_KERNELS)


@pytest.fixture
def engine(bundle: Bundle) -> Any:
    return opened(bundle)


def opened(bundle: Bundle) -> Any:
    standin.put_kernels()
    return standin.opened(bundle)


def test_captured_with_run_ahead_as_chosen_on_the_host(engine: Any) -> None:
    """Case R1: prefill and captured decode of all sizes take turns, sequences come and go."""
    pipeline = open_pipeline(engine, SHAPES)
    assert (pipeline.run_ahead > 0, pipeline.degraded) == (True, None)
    before = standin.device().num_launches
    found = talk(pipeline, SHAPES, 70)
    assert standin.device().num_launches - before >= 60
    assert tokens_of(found) == tokens_of(talk(HostPipeline(Stepper(engine, SHAPES)), SHAPES, 70))
    assert len(found) > 8
    assert max(map(len, found)) > 10


def test_steps_in_a_row_are_told_several_at_a_time(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a step takes here; a prompt ends it, and nothing is lost or told twice."""
    monkeypatch.setattr("orinkit.engines.waiting.TOGETHER_S", 100.0)  # of the module that the stand-in has made anew

    def spoken(pipeline: Pipeline) -> tuple[list[Heard], list[int]]:
        conversation, ahead = Conversation(pipeline, SHAPES, seat=PLAIN), []
        for slot in (0, 1):
            conversation.join(slot, GREEDY)
            for _ in range(3 * RUN):
                conversation.decode()
            ahead += [pipeline.run_ahead, pipeline.in_flight]
        return conversation.answers(), ahead

    found, ahead = spoken(noticed_late(open_pipeline(engine, SHAPES)))
    wanted, _ = spoken(HostPipeline(Stepper(engine, SHAPES)))
    assert tokens_of(found) == tokens_of(wanted)
    assert [len(heard) for heard in found] == [1 + 6 * RUN, 1 + 3 * RUN]
    assert ahead == [RUN_AHEAD + 3] * 4


def noticed_late(pipeline: Any) -> Any:
    """The same pipeline, to which a step that is asked for the first time is not done, as on a device."""
    choosing, asked = pipeline._choosing, set()
    has_told = choosing.has_told

    def has_told_late(step: int) -> bool:
        is_new = step not in asked
        asked.add(step)
        return not is_new and has_told(step)

    choosing.has_told = has_told_late
    return pipeline


def test_nothing_is_allocated_after_the_start(engine: Any) -> None:
    pipeline = open_pipeline(engine, SHAPES)
    before = engine.gpu.num_allocations, len(standin.device().memory)
    talk(pipeline, SHAPES, 30)
    assert (engine.gpu.num_allocations, len(standin.device().memory)) == before


def test_captures_that_fail_are_told_and_the_tokens_stay(
    demo_bundle: Path, tmp_path: Path, bundle: Bundle, engine: Any
) -> None:
    expected = talk(open_pipeline(engine, SHAPES), SHAPES, 20)
    with standin.installed(capture="fails"):
        made = standin.built_bundle(demo_bundle, tmp_path / "demo", SHAPES, kernels=standin.HOST_KERNELS)
        pipeline = open_pipeline(opened(made), SHAPES)
        assert "are not captured" in (pipeline.degraded or "")
        assert talk(pipeline, SHAPES, 20) == expected


def test_a_fault_ends_the_pipeline(engine: Any) -> None:
    pipeline = open_pipeline(engine, SHAPES)
    conversation = Conversation(pipeline, SHAPES)
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
