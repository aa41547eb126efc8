# SPDX-License-Identifier: Apache-2.0
"""How often a step is looked at, and how late its end is noticed, on a device and a clock that are made up."""

from __future__ import annotations

import random
from functools import partial

import pytest

from orinkit.engines.waiting import AFTER_S, BEFORE_S, CHECK_S, RUN, TOGETHER, TOGETHER_S, URGENT_S, rounded
from toolkit.engines.made_up_device import SLACK_S, YIELD_S, Host, Seen

LONG = RUN * TOGETHER
"""Steps of a kind in a row behind which as many as may be are waited for at once."""


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def sleeps(seen: list[Seen]) -> float:
    """Of each wait."""
    return mean([each.sleeps for each in seen])


def sleeps_a_step(seen: list[Seen]) -> float:
    return sum(each.sleeps for each in seen) / sum(each.steps for each in seen)


# Steps with others behind them


@pytest.mark.parametrize("seconds", [2e-4, 1e-3, 4e-3])
@pytest.mark.parametrize("spread", [0, 0.03])
def test_steady_steps_take_little_more_than_a_sleep_each(seconds: float, spread: float) -> None:
    host, rng = Host(), random.Random(1)
    found = host.ahead(*(seconds * rng.gauss(1, spread) for _ in range(LONG + 400)))[50:]
    assert sleeps(found) < 1.4
    assert not any(each.yields or each.checks for each in found)
    assert mean([each.late for each in found]) < 2e-4
    assert max(each.late for each in found) < max(seconds, 3e-4)


@pytest.mark.parametrize(
    ("seconds", "together"), [(4e-4, TOGETHER), (TOGETHER_S / 5.5, 5), (TOGETHER_S / 2.5, 2), (TOGETHER_S / 1.5, 1)]
)
def test_short_steps_are_waited_for_together(seconds: float, together: int) -> None:
    host = Host()
    host.ahead(*[seconds] * LONG)
    found = host.ahead(*[seconds] * 400)[2:]
    assert {each.steps for each in found} == {together}
    assert sleeps_a_step(found) < 1.4 / together


def test_the_longer_it_has_been_so_the_more() -> None:
    """What a sequence that ends costs the others is a small part of what has been computed for it."""
    host, told = Host(), 0
    for seen in host.ahead(*[4e-4] * 2 * LONG):
        assert seen.steps <= 1 + (told + len(host.ends)) // RUN
        told += seen.steps
    assert seen.steps == TOGETHER


def test_among_other_kinds_each_is_waited_for_by_itself() -> None:
    host = Host()
    for other in ("other", "prompt", ""):
        host.ahead(*[4e-4] * LONG)
        assert host.waiting.ahead == TOGETHER - 1
        launch = host.launch_silent if not other else partial(host.launch, kind=other, is_prompt=other == "prompt")
        launch(4e-4)
        assert host.waiting.ahead == 0
        while host.ends:
            assert host.wait().steps == 1
        assert host.ahead(4e-4, 4e-4, 4e-4)[0].steps == 1


def test_the_last_step_is_waited_for_by_itself() -> None:
    host = Host()
    host.ahead(*[1e-3] * 2 * LONG)
    while host.ends:
        seen = host.wait()
    assert seen.steps == 1
    assert seen.late < 5e-6


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.2, 2])
@pytest.mark.parametrize("steps", [50, LONG])
def test_other_times_are_learned_while_the_device_waits_once_at_most(factor: float, steps: int) -> None:
    host = Host()
    host.ahead(*[1e-3] * steps)
    changing, changed = host.ahead(*[1e-3 * factor] * 60), host.free
    after = host.ahead(*[1e-3 * factor] * 100)
    assert changed < 1e-3 * (steps + 60 * factor) + 2e-3
    assert host.free - changed == pytest.approx(0.1 * factor)
    assert sleeps_a_step(changing) < 4
    assert max(each.late for each in changing[3:]) < 2e-3
    assert sleeps_a_step(after) < 0.5
    assert mean([each.late for each in after]) < 2e-4


@pytest.mark.parametrize("seconds", [2e-4, 1e-3])
def test_the_host_does_not_slow_the_device_down(seconds: float) -> None:
    host = Host()
    host.ahead(*[seconds] * 50)
    busy = host.free
    host.ahead(*[seconds] * 1000)
    assert host.free - busy == pytest.approx(1000 * seconds)


@pytest.mark.parametrize("steps", [50, LONG])
def test_a_host_that_was_away_learns_nothing_wrong(steps: int) -> None:
    host = Host()
    host.ahead(*[1e-3] * steps)
    host.now += 1e-2
    host.ahead(*[1e-3] * 3)
    found = host.ahead(*[1e-3] * 20)
    assert sleeps_a_step(found) < 0.6
    assert max(each.late for each in found[1:]) < 4e-4


# Steps that somebody waits for


@pytest.mark.parametrize("is_prompt", [False, True])
@pytest.mark.parametrize("seconds", [5e-5, 7e-4, 4e-3, 5e-2])
def test_an_urgent_step_is_noticed_at_once_without_burning_a_core(seconds: float, is_prompt: bool) -> None:
    found = Host().alone(*[seconds] * 40, is_prompt=is_prompt)[10:]
    assert max(each.late for each in found) < 5e-6
    assert max(each.yields for each in found) * YIELD_S <= BEFORE_S
    assert max(each.sleeps for each in found) < 12


def test_urgent_steps_of_uneven_length() -> None:
    rng = random.Random(2)
    found = Host().alone(*(rng.gauss(1, 0.03) * 2e-3 for _ in range(200)), is_prompt=True)[10:]
    assert mean([each.late for each in found]) < 3e-5
    assert max(each.yields for each in found) * YIELD_S <= BEFORE_S + AFTER_S + YIELD_S
    assert sleeps(found) < 5


def test_a_prompt_is_urgent_though_others_follow() -> None:
    host = Host()
    for _ in range(20):
        host.launch(1e-3, "prompt", is_prompt=True)
        host.launch(1e-3)
        seen = host.wait()
        host.wait()
    assert seen.late < 5e-6


def test_a_first_step_that_took_far_longer_is_forgotten() -> None:
    found = Host().alone(5e-2, *[1e-3] * 30, is_prompt=True)
    assert max(each.late for each in found[20:]) < 5e-6


# Steps of which nothing is known


def test_an_unknown_step_is_looked_at_from_the_start() -> None:
    [seen] = Host().alone(1e-3)
    assert seen.yields == 0
    assert seen.sleeps == pytest.approx(1e-3 / (URGENT_S + SLACK_S), abs=2)
    [seen] = Host().alone(5e-2)
    assert seen.late < 3e-4
    assert seen.sleeps < 500


def test_behind_a_silent_step_nothing_is_known_or_learned() -> None:
    host = Host()
    host.alone(*[1e-3] * 20)
    host.launch_silent(2e-2)
    host.launch(1e-3)
    seen = host.wait()
    assert seen.yields == 0
    assert seen.late < 3e-4
    [after] = host.alone(1e-3)
    assert after.sleeps == 1
    assert after.late < 5e-6


def test_kinds_are_learned_apart() -> None:
    host, seen = Host(), []
    for _ in range(20):
        for kind, seconds in (("a", 1e-3), ("b", 3e-3)):
            host.launch(seconds, kind)
            seen.append(host.wait())
    assert max(each.late for each in seen[20:]) < 5e-6


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (15, 15), (17, 18), (64, 64), (65, 72), (1500, 1536)])
def test_numbers_of_tokens_are_kinds(count: int, expected: int) -> None:
    assert rounded(count) == expected


# Steps that do not end


@pytest.mark.parametrize("known", [[], [1e-3] * 20, [5e-2] * 20])
@pytest.mark.parametrize("is_prompt", [False, True])
def test_the_device_is_asked_for_a_fault_and_no_core_burns(known: list[float], is_prompt: bool) -> None:
    host = Host()
    host.alone(*known, is_prompt=is_prompt)
    start = host.now
    seen = host.alone(1.0, is_prompt=is_prompt)[0]
    assert host.now - start > 1
    assert 1 / (2 * CHECK_S) <= seen.checks <= 1 / CHECK_S
    assert seen.yields * YIELD_S <= BEFORE_S + AFTER_S + YIELD_S
    assert seen.sleeps * SLACK_S < 0.4


def test_the_first_question_comes_in_time() -> None:
    host = Host()
    host.ahead(*[1e-2] * 20)
    host.launch(1.0)
    while len(host.ends) > 1:
        host.wait()
    start = host.now
    while host.now < start + 1 and (pause := host.waiting.pause(1)) is not None:
        host.now += pause + SLACK_S
    assert host.now - start < 2 * CHECK_S


def test_a_step_that_ends_in_time_asks_nothing() -> None:
    assert not any(each.checks for each in Host().ahead(*[5e-3] * 100))
