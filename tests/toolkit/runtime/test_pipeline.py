# SPDX-License-Identifier: Apache-2.0
"""Steps that run ahead of what has been read: answers are the same, and what runs in vain is bounded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from orinkit.engines.base import Limits, Pipeline, Seat, StepInputs
from orinkit.errors import DeviceError, NumericError
from orinkit.recipe import Shapes
from orinkit.runtime.pipeline import HostPipeline, open_pipeline
from orinkit.runtime.request import Request, Token
from orinkit.runtime.sampling import Sampling, settings_of
from orinkit.runtime.steps import Stepper
from toolkit.runtime.fake_engine import FakeEngine
from toolkit.runtime.fake_pipeline import FakePipeline
from toolkit.runtime.serving import CHUNK, SPEC, TOKENIZER, Clock, alone, end_of, run, scheduler, text_of, tokens_of

SHAPES = Shapes(capacity=64, slots=4, chunk=CHUNK)
FOREVER = Request((1, 2, 3))


class Capable(FakeEngine):
    """A fake engine that has a pipeline of its own."""

    def pipeline(self, slots: int, capacity: int, chunk: int, limits: Limits) -> Pipeline:
        return FakePipeline(self, Shapes(capacity=capacity, slots=slots, chunk=chunk), limits.run_ahead)


def test_an_engine_that_captures_brings_its_own_pipeline() -> None:
    assert isinstance(open_pipeline(Capable(SPEC.vocab), SHAPES), FakePipeline)
    assert isinstance(open_pipeline(FakeEngine(SPEC.vocab), SHAPES), HostPipeline)


@pytest.mark.parametrize("run_ahead", [0, 1, 2, 4])
def test_what_runs_in_vain_is_bounded(run_ahead: int) -> None:
    """A stop string is known to the host alone, so the device goes on until it is told."""
    whole = TOKENIZER.decode(alone(Request((4, 5), max_tokens=40)))
    engine = FakeEngine(SPEC.vocab)
    served = scheduler(engine=engine, run_ahead=run_ahead)
    number = served.submit(Request((4, 5), stop=(whole[10:13],)))
    events = run(served)
    assert text_of(events) == whole[: whole.index(whole[10:13])]
    assert engine.num_steps <= len(tokens_of(events, number)) + run_ahead


def test_nothing_runs_in_vain_where_the_device_knows_the_end() -> None:
    engine = FakeEngine(SPEC.vocab)
    served = scheduler(engine=engine, run_ahead=2, eos=())
    served.submit(replace(FOREVER, max_tokens=5))
    run(served)
    assert engine.num_steps == 5


def test_a_cancelled_answer_frees_its_slot_at_once_and_the_next_starts_anew() -> None:
    served = scheduler(slots=1, run_ahead=2, eos=())
    first = served.submit(FOREVER)
    for _ in range(6):
        served.step()
    served.cancel(first)
    assert served.num_free_slots == 1
    second = served.submit(Request((9, 8), max_tokens=7))
    assert tokens_of(run(served), second) == alone(Request((9, 8), max_tokens=7))


def test_a_fault_is_final() -> None:
    """R5: whatever was in flight fails, and so does all that comes: no answer after a fault."""
    served = scheduler(engine=FakeEngine(SPEC.vocab, faults={4: "raise"}), run_ahead=2, eos=())
    first, second = served.submit(FOREVER), served.submit(Request((5,) * 20))
    events = run(served)
    assert {end_of(events, number).reason for number in (first, second)} == {"error"}
    late = served.submit(replace(FOREVER, max_tokens=2))
    end = end_of(run(served), late)
    assert isinstance(end.error, DeviceError)
    assert end.error.code == 700
    assert served.num_free_slots == 2


@pytest.mark.parametrize("run_ahead", [None, 2])
def test_logits_that_are_no_numbers_end_one_answer(run_ahead: int | None) -> None:
    """Case F13: nothing is drawn from them, and the process goes on."""
    served = scheduler(engine=FakeEngine(SPEC.vocab, faults={3: "nan"}), run_ahead=run_ahead, eos=())
    number = served.submit(FOREVER)
    events = run(served)
    assert len(tokens_of(events, number)) == 2
    assert isinstance(end_of(events, number).error, NumericError)
    late = served.submit(replace(FOREVER, max_tokens=3))
    assert tokens_of(run(served), late) == alone(replace(FOREVER, max_tokens=3))


@pytest.mark.parametrize("run_ahead", [None, 2])
def test_cuts_are_places_where_prefill_is_cut(run_ahead: int | None) -> None:
    engine = FakeEngine(SPEC.vocab)
    served = scheduler(engine=engine, run_ahead=run_ahead)
    served.submit(Request((5,) * 40, max_tokens=1, cuts=(3, 16, 20)))
    run(served)
    assert [inputs.past_lens.tolist() for _, inputs in engine.seen] == [[0], [3], [16], [20], [36]]


def test_a_deadline_ends_an_answer_whose_steps_are_in_flight() -> None:
    clock = Clock()
    served = scheduler(slots=1, clock=clock, run_ahead=2, eos=())
    number = served.submit(replace(FOREVER, deadline=105.0))
    for _ in range(4):
        served.step()
    clock.now = 105.0
    assert end_of(served.step(), number).reason == "deadline"
    assert served.is_idle


def test_the_most_likely_tokens_are_told() -> None:
    for run_ahead in (None, 2):
        served = scheduler(engine=FakeEngine(SPEC.vocab), run_ahead=run_ahead, eos=())
        served.submit(replace(FOREVER, max_tokens=3, top_logprobs=4))
        for event in (event for event in run(served) if isinstance(event, Token)):
            assert len(event.top) == 4
            assert event.top[0][0] == event.token
            assert event.top[0][1] == pytest.approx(event.logprob)
            assert [value for _, value in event.top] == sorted((value for _, value in event.top), reverse=True)


def test_a_seat_holds_all_of_the_sampling() -> None:
    given = Sampling(temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.2, seed=9)
    assert Sampling(**settings_of(given)) == given  # type: ignore[arg-type]
    assert "logit_bias" not in settings_of(given)


def test_a_mask_is_obeyed_on_the_host() -> None:
    pipeline = HostPipeline(Stepper(FakeEngine(SPEC.vocab), SHAPES))
    seat = Seat((1, 2), settings_of(Sampling()), {}, (), 64, is_constrained=True)
    pipeline.seat(0, seat)
    words = np.zeros(-(-SPEC.vocab // 32), np.uint32)
    words[1] = 1 << 5
    pipeline.constrain(0, words)
    ids, one = np.array([1, 2], np.int32), np.array([0], np.int32)
    pipeline.prefill(StepInputs(ids, np.array([0, 2], np.int32), one, one, np.array([1], np.int32)))
    ((chosen,),) = pipeline.collect(0)
    assert chosen.token == 37
