# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random
import statistics
from dataclasses import replace
from itertools import pairwise

import pytest

from orinkit.errors import ConfigError
from orinkit.load.workload import Lengths, Workload

PLAIN = Workload(50, 2, None, Lengths.parse("5"), Lengths.parse("7"), 0, 0.0, 0, 0)


def test_lengths_are_numbers_and_ranges() -> None:
    lengths = Lengths.parse("8, 16-20")
    source = random.Random(3)
    assert {lengths.draw(source) for _ in range(500)} == {8, 16, 17, 18, 19, 20}
    assert lengths.most == 20


@pytest.mark.parametrize("text", ["", "0", "9-8", "a", "1-2-3", "-5", "99999999", "5,", "1.5", "1048577"])
def test_other_lengths_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected lengths such as"):
        Lengths.parse(text)


def test_a_seed_gives_the_same_run_and_another_seed_another() -> None:
    workload = replace(PLAIN, rate=10.0, prompt=Lengths.parse("4-40"), cancel=0.5)
    assert list(workload.shots()) == list(workload.shots())
    assert list(workload.shots()) != list(replace(workload, seed=1).shots())


def test_a_rate_changes_the_times_only() -> None:
    closed, opened = list(PLAIN.shots()), list(replace(PLAIN, rate=5.0).shots())
    assert {shot.at for shot in closed} == {0.0}
    assert [shot.prompt for shot in closed] == [shot.prompt for shot in opened]


def test_arrivals_are_a_poisson_process() -> None:
    times = [shot.at for shot in replace(PLAIN, requests=4000, rate=20.0).shots()]
    gaps = [right - left for left, right in pairwise(times)]
    # The gaps of a Poisson process have their mean as deviation; 4000 of them tell both within 5 %.
    assert statistics.mean(gaps) == pytest.approx(1 / 20, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 20, rel=0.05)


def test_prompts_share_a_prefix_and_end_in_their_own_way() -> None:
    prompts = [shot.prompt for shot in replace(PLAIN, prompt=Lengths.parse("8,24"), prefix=16).shots()]
    long = [prompt for prompt in prompts if len(prompt) == 24]
    assert len({prompt[:16] for prompt in long}) == 1
    assert len({prompt[16:] for prompt in long}) == len(long)
    assert {prompt[:7] for prompt in prompts} == {long[0][:7]}


def test_so_many_leave_inside_their_answer() -> None:
    left = [shot.cancel_after for shot in replace(PLAIN, requests=2000, cancel=0.25).shots()]
    places = [place for place in left if place is not None]
    assert 0.2 < len(places) / len(left) < 0.3
    assert set(places) == set(range(7))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("requests", 0),
        ("requests", 1_000_001),
        ("concurrency", 0),
        ("rate", 0.0),
        ("rate", float("nan")),
        ("cancel", 1.1),
        ("warmup", -1),
        ("prefix", -1),
    ],
)
def test_bounds(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name}: expected"):
        replace(PLAIN, **{name: value}).validate()  # type: ignore[arg-type]


def test_a_run_has_an_end() -> None:
    with pytest.raises(ConfigError, match="tokens in all"):
        replace(PLAIN, requests=1_000_000, answer=Lengths.parse("1000")).validate()
