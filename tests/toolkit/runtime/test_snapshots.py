# SPDX-License-Identifier: Apache-2.0
"""A beginning that is kept saves its computation and changes no token; the fake engine's logits are a hash of every
step that a slot has seen, so another cut, a stale copy or a foreign one would show."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orinkit.runtime.request import Event, Finished, Request
from orinkit.runtime.snapshots import Snapshots, cut_places
from toolkit.runtime.fake_engine import FakeEngine
from toolkit.runtime.serving import SPEC, alone, end_of, run, scheduler, tokens_of

SYSTEM = tuple(range(1, 25))


@dataclass
class Places:
    """A spare that notes what is asked of it."""

    asked: list[tuple[str, int, int, int]] = field(default_factory=list)
    left: list[bool] = field(default_factory=list)
    """Of each restoration, whether the slot had the rows."""

    def save(self, slot: int, place: int, length: int) -> None:
        self.asked.append(("save", slot, place, length))

    def restore(self, place: int, slot: int, length: int, has_rows: bool = False) -> None:
        self.asked.append(("restore", place, slot, length))
        self.left.append(has_rows)


def request(rest: tuple[int, ...], client: str | None = None, max_tokens: int = 3) -> Request:
    return Request(SYSTEM + rest, cuts=(len(SYSTEM),), client=client, max_tokens=max_tokens)


@pytest.mark.parametrize(
    ("length", "cuts", "places"),
    [
        (40, (), (16, 32, 40)),
        (32, (), (16, 32)),
        (40, (24,), (16, 24, 40)),
        (41, (24,), (16, 24, 40, 41)),
        (40, (3, 16, 20), (3, 16, 20, 36, 40)),
        (60, (3, 20, 36), (3, 19, 20, 36, 52, 60)),
    ],
)
def test_chunks_begin_anew_behind_a_cut(length: int, cuts: tuple[int, ...], places: tuple[int, ...]) -> None:
    """What follows a kept beginning is one step where it fits into a chunk."""
    assert cut_places(Request((1,) * length, cuts=cuts), 16) == places


@pytest.mark.parametrize("run_ahead", [None, 2])
def test_a_beginning_is_computed_once(run_ahead: int | None) -> None:
    engine = FakeEngine(SPEC.vocab)
    served = scheduler(engine=engine, run_ahead=run_ahead, eos=())
    first = served.submit(request((30, 31)))
    events = run(served)
    assert end_of(events, first).timings.reused_tokens == 0
    fed = sum(len(inputs.input_ids) for name, inputs in engine.seen if name == "prefill")
    second = served.submit(request((40,)))
    events = run(served)
    assert end_of(events, second).timings.reused_tokens == len(SYSTEM)
    assert tokens_of(events, second) == alone(request((40,)))
    assert served._pipeline.spare.num_left == 1  # type: ignore[attr-defined]
    assert sum(len(inputs.input_ids) for name, inputs in engine.seen if name == "prefill") == fed + 1


def test_clients_share_nothing() -> None:
    served = scheduler(eos=())
    for client, reused in (("a", 0), ("b", 0), ("a", len(SYSTEM)), (None, 0)):
        number = served.submit(request((30,), client))
        assert end_of(run(served), number).timings.reused_tokens == reused


def test_a_beginning_that_was_cut_elsewhere_is_not_used() -> None:
    """Its steps were others, so its numbers may be."""
    served = scheduler(eos=())
    served.submit(request((30,)))
    run(served)
    other = Request((*SYSTEM, 30), cuts=(5, len(SYSTEM)), max_tokens=3)
    number = served.submit(other)
    events = run(served)
    assert end_of(events, number).timings.reused_tokens == 0
    assert tokens_of(events, number) == alone(other)


def test_logits_that_are_no_numbers_make_it_forget() -> None:
    served = scheduler(engine=FakeEngine(SPEC.vocab, faults={3: "nan"}), eos=())
    served.submit(request((30,)))
    run(served)
    number = served.submit(request((40,)))
    assert end_of(run(served), number).timings.reused_tokens == 0


def test_the_least_recently_used_makes_room() -> None:
    places = Places()
    kept = Snapshots(places, count=2, chunk=16)
    a, b, c = (Request((n,) * 20, cuts=(10,)) for n in (1, 2, 3))
    kept.save(a, slot=0, length=10)
    kept.save(b, slot=1, length=10)
    kept.save(a, slot=0, length=10)
    assert kept.restore(a, slot=2) == 10
    kept.save(c, slot=3, length=10)
    assert [kept.restore(each, slot=0) for each in (a, b, c)] == [10, 0, 10]
    assert [what for what, *_ in places.asked] == ["save", "save", "restore", "save", "restore", "restore"]
    assert {length for *_, length in places.asked} == {10}


def test_the_longest_beginning_is_taken() -> None:
    kept = Snapshots(Places(), count=3, chunk=64)
    whole = Request(tuple(range(1, 50)), cuts=(10, 20, 30))
    kept.save(whole, 0, 10)
    kept.save(whole, 0, 20)
    kept.save(whole, 0, 30)
    assert kept.restore(Request((*range(1, 30), 99, 98), cuts=(10, 20, 30)), 1) == 10, "only the outer cuts are kept"
    assert kept.restore(Request((*range(1, 31), 99), cuts=(10, 20, 30)), 1) == 30


def test_a_slot_that_has_the_rows_keeps_them() -> None:
    """Only from the very copy that was made of it or brought to it, and until another sequence begins there."""
    places = Places()
    kept = Snapshots(places, count=2, chunk=64)
    short, long = (Request((*range(1, 40), last), cuts=(10, 30)) for last in (98, 99))
    other = Request((7,) * 20)
    assert kept.restore(short, 0) == 0
    kept.save(short, 0, 10)
    kept.save(short, 0, 30)
    assert [kept.restore(long, slot) for slot in (0, 1, 1, 0)] == [30] * 4
    assert places.left == [True, False, True, True]
    assert kept.restore(Request((*range(1, 11), 50), cuts=(10,)), 0) == 10
    assert kept.restore(long, 0) == 30, "which overwrote the rows behind"
    assert places.left[4:] == [True, False]
    assert kept.restore(other, 0) == 0
    assert kept.restore(long, 0) == 30
    assert places.left[6:] == [False]
    kept.forget()
    kept.save(long, 1, 30)
    assert kept.restore(short, 0) == 30
    assert kept.restore(short, 1) == 30
    assert places.left[7:] == [False, True]


def test_rows_of_a_copy_that_has_made_room_are_none_of_the_next() -> None:
    places = Places()
    kept = Snapshots(places, count=1, chunk=64)
    first, other = (Request((n,) * 20, cuts=(10,)) for n in (1, 2))
    kept.save(first, 0, 10)
    kept.save(other, 1, 10)
    kept.save(first, 2, 10)
    assert [kept.restore(first, slot) for slot in (0, 1, 2)] == [10, 10, 10]
    assert places.left == [False, False, True]


def test_without_places_nothing_is_kept() -> None:
    places = Places()
    kept = Snapshots(places, count=0, chunk=16)
    kept.save(request((1,)), 0, len(SYSTEM))
    assert kept.restore(request((1,)), 0) == 0
    assert places.asked == []


ASKED = st.builds(
    lambda head, rest, client, cuts, count: Request(
        (head,) * 20 + tuple(rest),
        cuts=tuple(cut for cut in sorted(cuts) if cut < 20 + len(rest)),
        client=client,
        max_tokens=count,
    ),
    st.integers(1, 2),
    st.lists(st.integers(1, 9), min_size=1, max_size=20),
    st.sampled_from([None, "a"]),
    st.sets(st.sampled_from([8, 12, 20]), max_size=3),
    st.integers(1, 4),
)


@given(
    asked=st.lists(st.tuples(ASKED, st.integers(0, 20), st.none() | st.integers(0, 30)), min_size=2, max_size=10),
    slots=st.integers(1, 3),
    run_ahead=st.sampled_from([None, 2]),
)
@settings(deadline=None, max_examples=80)
def test_tokens_are_those_of_a_request_alone(
    asked: list[tuple[Request, int, int | None]], slots: int, run_ahead: int | None
) -> None:
    """Requests that come at any time, share beginnings, and are cancelled anywhere."""
    served = scheduler(slots, run_ahead=run_ahead)
    numbers: dict[int, tuple[Request, int | None]] = {}
    events: list[Event] = []
    for at in range(300):
        for given_, arrival, leaves in asked:
            if arrival == at:
                numbers[served.submit(given_)] = (given_, leaves)
        for number, (_, leaves) in numbers.items():
            if leaves == at:
                served.cancel(number)
        events += served.step()
    assert served.is_idle
    for number, (given_, _) in numbers.items():
        found, expected = tokens_of(events, number), alone(given_)
        (end,) = (event for event in events if isinstance(event, Finished) and event.request == number)
        assert found == (expected[: len(found)] if end.reason == "cancelled" else expected)
