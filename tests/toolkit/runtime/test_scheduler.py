# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orinkit.errors import EngineError, RequestError
from orinkit.runtime.request import Event, Finished, Request
from orinkit.runtime.sampling import Sampling
from toolkit.runtime.fake_engine import FakeEngine
from toolkit.runtime.serving import SPEC, TOKENIZER, Clock, alone, end_of, run, scheduler, text_of, tokens_of

FOREVER = Request((1, 2, 3))


@dataclass(frozen=True)
class Visit:
    """A request, the call of `step` before which it comes, and the one before which it is cancelled, if any."""

    request: Request
    arrival: int
    leaves: int | None


REQUESTS = st.builds(
    Request,
    prompt=st.lists(st.integers(0, SPEC.vocab - 1), min_size=1, max_size=50).map(tuple),
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 1.0]),
        top_k=st.sampled_from([0, 5]),
        frequency_penalty=st.sampled_from([0.0, 1.0]),
        seed=st.integers(0, 9),
    ),
    max_tokens=st.integers(1, 14),
    stop_tokens=st.just((7, 8, 9)),
)
VISITS = st.builds(Visit, REQUESTS, st.integers(0, 30), st.none() | st.integers(0, 40))


@given(
    visits=st.lists(VISITS, min_size=1, max_size=8),
    slots=st.integers(1, 4),
    run_ahead=st.sampled_from([None, 0, 1, 2, 5]),
)
@settings(deadline=None, max_examples=150)
def test_each_request_gets_the_tokens_that_it_gets_alone(
    visits: list[Visit], slots: int, run_ahead: int | None
) -> None:
    served = scheduler(slots, run_ahead=run_ahead)
    numbers: dict[int, Visit] = {}
    events: list[Event] = []
    for at in range(400):
        for visit in visits:
            if visit.arrival == at:
                numbers[served.submit(visit.request)] = visit
        for number, visit in numbers.items():
            if visit.leaves == at:
                served.cancel(number)
        events += served.step()
    assert served.is_idle
    assert served.num_free_slots == slots
    for number, visit in numbers.items():
        expected, found = alone(visit.request), tokens_of(events, number)
        if end_of(events, number).reason == "cancelled":
            assert found == expected[: len(found)]
        else:
            assert found == expected


def test_a_long_prompt_does_not_stop_a_running_answer() -> None:
    served = scheduler()
    first = served.submit(FOREVER)
    served.step()
    second = served.submit(Request((5,) * 40))
    told = [{event.request for event in served.step()} for _ in range(6)]
    assert told == [{first}, set(), {first}, set(), {first}, {second}]
    assert {event.request for event in served.step()} == {first, second}


def test_chunks_are_cut_at_multiples_of_the_chunk_length() -> None:
    engine = FakeEngine(SPEC.vocab)
    served = scheduler(engine=engine)
    served.submit(Request((5,) * 40, max_tokens=1))
    run(served)
    assert [inputs.past_lens.tolist() for _, inputs in engine.seen] == [[0], [16], [32]]
    assert [inputs.logit_rows.tolist() for _, inputs in engine.seen] == [[-1], [-1], [7]]


def test_short_prompts_share_a_prefill_step() -> None:
    engine = FakeEngine(SPEC.vocab)
    served = scheduler(slots=4, engine=engine)
    for length in (6, 16, 6, 4):
        served.submit(Request((5,) * length, max_tokens=1))
    run(served)
    assert [inputs.cu_seqlens.tolist() for _, inputs in engine.seen] == [[0, 6, 12, 16], [0, 16]]


def test_first_come_first_served() -> None:
    served = scheduler(slots=1)
    numbers = [served.submit(replace(FOREVER, max_tokens=2)) for _ in range(3)]
    ends = [event.request for event in run(served) if isinstance(event, Finished)]
    assert ends == numbers


def test_max_tokens_and_capacity_end_an_answer_by_length() -> None:
    served = scheduler(eos=())
    short, full = served.submit(replace(FOREVER, max_tokens=5)), served.submit(FOREVER)
    events = run(served)
    assert (len(tokens_of(events, short)), end_of(events, short).reason) == (5, "length")
    assert (len(tokens_of(events, full)), end_of(events, full).reason) == (64 - 3, "length")


@pytest.mark.parametrize("by_model", [True, False])
def test_a_stop_token_ends_the_answer_and_gives_no_text(by_model: bool) -> None:
    tokens = alone(Request((4, 5), max_tokens=20))
    stop = tokens[3]
    served = scheduler(eos=(stop,) if by_model else ())
    number = served.submit(Request((4, 5), stop_tokens=() if by_model else (stop,)))
    events = run(served)
    end = tokens.index(stop) + 1
    assert tokens_of(events, number) == tokens[:end]
    assert end_of(events, number).reason == "stop"
    assert text_of(events) == TOKENIZER.decode(tokens[: end - 1])


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it() -> None:
    request = Request((4, 5), max_tokens=40)
    whole = TOKENIZER.decode(alone(request))
    stop = whole[10:13]
    served = scheduler()
    number = served.submit(replace(request, stop=(stop,)))
    events = run(served)
    assert text_of(events) == whole[: whole.index(stop)]
    assert end_of(events, number).reason == "stop"


def test_text_is_held_back_only_until_the_end() -> None:
    request = Request((4, 5), max_tokens=20)
    whole = TOKENIZER.decode(alone(request))
    served = scheduler()
    number = served.submit(replace(request, stop=(whole[-1] + "~",)))
    events = run(served)
    assert end_of(events, number).text.endswith(whole[-1])
    assert text_of(events) == whole


def test_a_cancelled_request_frees_its_slot_at_once() -> None:
    """Case A31: queued, in prefill, in decode, and after its end."""
    served = scheduler(slots=1)
    running, queued = served.submit(Request((5,) * 40)), served.submit(FOREVER)
    served.step()
    served.cancel(queued)
    served.cancel(running)
    assert (served.num_free_slots, served.num_queued) == (1, 0)
    assert [(event.request, end_of([event], event.request).reason) for event in served.step()] == [
        (queued, "cancelled"),
        (running, "cancelled"),
    ]
    served.cancel(running)
    served.cancel(999)
    assert served.is_idle


def test_a_deadline_ends_a_request_in_the_queue_and_in_a_slot() -> None:
    """Case A37: the queued one never reaches the engine."""
    engine = FakeEngine(SPEC.vocab)
    clock = Clock()
    served = scheduler(slots=1, engine=engine, clock=clock)
    running, queued = served.submit(replace(FOREVER, deadline=105.0)), served.submit(replace(FOREVER, deadline=103.0))
    served.step()
    clock.now = 104.0
    assert end_of(served.step(), queued).reason == "deadline"
    clock.now = 105.0
    assert end_of(served.step(), running).reason == "deadline"
    assert served.is_idle
    assert engine.num_steps == 2


def test_a_fault_ends_the_requests_of_that_step_and_no_others() -> None:
    engine = FakeEngine(SPEC.vocab, faults={4: "raise"})
    served = scheduler(slots=2, engine=engine)
    first = served.submit(replace(FOREVER, max_tokens=6))
    served.step()
    second = served.submit(Request((5,) * 40, max_tokens=3))
    events = [event for _ in range(3) for event in served.step()]
    assert end_of(events, first).reason == "error"
    assert isinstance(end_of(events, first).error, EngineError)
    third = served.submit(replace(FOREVER, max_tokens=6))
    events = run(served)
    assert tokens_of(events, second) == alone(Request((5,) * 40, max_tokens=3))
    assert tokens_of(events, third) == alone(replace(FOREVER, max_tokens=6)), "the torn slot starts anew"
    assert served.num_free_slots == 2


def test_logits_that_are_not_finite_end_their_request() -> None:
    served = scheduler(engine=FakeEngine(SPEC.vocab, faults={2: "nan"}))
    number = served.submit(FOREVER)
    events = run(served)
    assert len(tokens_of(events, number)) == 1
    assert end_of(events, number).reason == "error"
    assert served.num_free_slots == 2


def test_a_request_that_cannot_fit_is_refused_at_once() -> None:
    served = scheduler()
    with pytest.raises(RequestError, match=r"at most 64 tokens .* found 64 \+ 1;"):
        served.submit(Request((5,) * 64))
    with pytest.raises(RequestError, match=f"token id: expected .* found {SPEC.vocab}"):
        served.submit(Request((SPEC.vocab,)))
    assert served.is_idle


def test_timings_run_from_submission_over_slot_and_first_token_to_the_last() -> None:
    clock = Clock()
    served = scheduler(slots=1, clock=clock)
    served.submit(replace(FOREVER, max_tokens=1))
    waiting = served.submit(Request((5,) * 20, max_tokens=3))
    events: list[Event] = []
    while not served.is_idle:
        events += served.step()
        clock.now += 1
    timings = end_of(events, waiting).timings
    assert (timings.prompt_tokens, timings.generated_tokens) == (20, 3)
    assert (timings.queue_s, timings.prefill_s, timings.decode_s) == (1.0, 1.0, 2.0)
