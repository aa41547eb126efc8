# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from orinkit.errors import EngineError, RequestError
from orinkit.runtime.sampling import History, Sampling, sample

NOTHING = History.of(())
LOGITS = np.array([1.0, 3.0, 2.0, 0.5, 3.0, -1.0, 1.5, 0.0], np.float32)


def chosen(logits: Any, sampling: Sampling, history: History = NOTHING, position: int = 0) -> int:
    return sample(np.array(logits, np.float32), history, sampling, position).token


def possible(logits: Any, sampling: dict[str, Any], draws: int = 400) -> set[int]:
    """Tokens that come up in many draws at a high temperature."""
    return {chosen(logits, Sampling(temperature=2.0, seed=3, **sampling), position=at) for at in range(draws)}


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("temperature", (-0.1, 2.1, 0.005, 1e308, math.nan, math.inf, "1", None, True)),
        ("top_k", (-1, 2**31, 1.5, "1", None, True)),
        ("top_p", (-0.1, 1.1, math.nan, "1", None)),
        ("min_p", (-0.1, 1.1, math.nan, "1", None)),
        ("repetition_penalty", (0, -1, 11, 1e308, math.nan, "1")),
        ("presence_penalty", (-2.1, 2.1, math.nan, "1")),
        ("frequency_penalty", (-2.1, 2.1, math.nan, "1")),
        ("seed", (-1, 2**64, 1.0, "1", None, True)),
        (
            "logit_bias",
            ({-1: 1.0}, {2**31: 1.0}, {1: 101.0}, {1: math.nan}, {"1": 1.0}, dict.fromkeys(range(301), 0.0)),
        ),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(field: str, bad: tuple[Any, ...]) -> None:
    """Case A22."""
    for value in bad:
        with pytest.raises(RequestError, match=f"^{field}: .*expected .* found"):
            Sampling(**{field: value})


def test_greedy_takes_the_highest_and_of_equal_ones_the_lowest_id() -> None:
    assert chosen(LOGITS, Sampling()) == 1


def test_the_logprob_is_that_of_the_model_itself() -> None:
    expected = np.log(np.exp(LOGITS) / np.exp(LOGITS).sum())
    found = sample(LOGITS, NOTHING, Sampling(logit_bias={5: 100.0}), position=0)
    assert found.token == 5
    assert found.logprob == pytest.approx(expected[5], rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nothing_is_drawn_from_numbers_that_are_not_finite(bad: float) -> None:
    logits = LOGITS.copy()
    logits[6] = bad
    for sampling in (Sampling(), Sampling(temperature=1.0, top_k=2)):
        with pytest.raises(EngineError, match="for token id 6"):
            sample(logits, NOTHING, sampling, position=0)


def test_extreme_logits_do_not_overflow() -> None:
    logits = [3e38, -3e38, 3e38]
    history = History.of((0, 1))
    strong = Sampling(temperature=0.01, top_p=0.5, repetition_penalty=0.1, logit_bias={0: 100.0})
    assert chosen(logits, strong, history) == 0
    assert chosen(logits, Sampling()) == 0


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    history = History.of((0, 3))
    history.add(0)
    assert chosen([1.9, 1.0, -5.0, -1.0], Sampling(repetition_penalty=2.0), history) == 1
    assert chosen([2.1, 1.0, -5.0, -1.0], Sampling(repetition_penalty=2.0), history) == 0
    assert chosen([-5.0, -1.9, -9.0, -1.0], Sampling(repetition_penalty=2.0), history) == 1
    assert chosen([-5.0, -2.1, -9.0, -1.0], Sampling(repetition_penalty=2.0), history) == 3


def test_presence_and_frequency_count_the_output_only() -> None:
    history = History.of((1, 1, 1))
    for token in (0, 0, 0, 2):
        history.add(token)
    assert chosen([2.0, 1.5, 1.4], Sampling(presence_penalty=0.7), history) == 1
    assert chosen([2.0, 0.0, 1.9], Sampling(presence_penalty=1.0), history) == 0
    assert chosen([2.0, 0.0, 1.9], Sampling(frequency_penalty=1.0), history) == 2
    assert chosen([2.0, 0.0, 0.6], Sampling(frequency_penalty=0.5), history) == 0


def test_bias_comes_before_the_repetition_penalty() -> None:
    history = History.of((0,))
    assert chosen([-1.0, 2.4], Sampling(logit_bias={0: 6.0}, repetition_penalty=2.0), history) == 0
    assert chosen([-1.0, 2.6], Sampling(logit_bias={0: 6.0}, repetition_penalty=2.0), history) == 1


def test_top_k_keeps_exactly_k_and_of_equal_ones_the_lowest_ids() -> None:
    assert possible(LOGITS, {"top_k": 1}) == {1}
    assert possible(LOGITS, {"top_k": 3}) == {1, 4, 2}
    assert possible([1.0] * 6, {"top_k": 2}) == {0, 1}
    assert possible(LOGITS, {"top_k": 100}) == set(range(8))


def test_top_p_keeps_the_fewest_that_reach_the_sum() -> None:
    halves = 2 * np.log([0.5, 0.25, 0.125, 0.125])  # at temperature 2 these are the probabilities
    assert possible(halves, {"top_p": 0.0}) == {0}
    assert possible(halves, {"top_p": 0.49}) == {0}
    assert possible(halves, {"top_p": 0.51}) == {0, 1}
    assert possible(halves, {"top_p": 0.74}) == {0, 1}
    assert possible(halves, {"top_p": 0.76}) == {0, 1, 2}
    assert possible(halves, {"top_k": 2, "top_p": 0.6}) == {0}, "its sum is over what top-k leaves"


def test_min_p_is_relative_to_the_most_likely() -> None:
    halves = 2 * np.log([0.5, 0.26, 0.24])
    assert possible(halves, {"min_p": 0.5}) == {0, 1}
    assert possible(halves, {"min_p": 1.0}) == {0}


@given(
    logits=st.lists(st.integers(-40, 40), min_size=1, max_size=60),
    top_k=st.integers(0, 70),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.4]),
)
def test_cuts_keep_what_a_full_sort_keeps(logits: list[int], top_k: int, top_p: float, min_p: float) -> None:
    scaled = (np.array(logits) / 8).astype(np.float32)
    kept = reference(scaled, Sampling(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p))
    for position in range(20):
        sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p, min_p=min_p, seed=position)
        assert kept[chosen(scaled, sampling)] > 0


def test_a_flat_vocabulary_needs_more_than_the_first_part_of_the_nucleus() -> None:
    """Most of 5,000 tokens are kept, beyond the 1,024 that are sorted at first."""
    found = {chosen(np.zeros(5000), Sampling(temperature=1.0, top_p=0.9, seed=seed)) for seed in range(300)}
    assert max(found) < 4500
    assert max(found) > 4000


SETTINGS = [
    Sampling(temperature=1.0, seed=1),
    Sampling(temperature=0.5, seed=2**64 - 1),
    Sampling(temperature=1.7, top_k=5, seed=3),
    Sampling(temperature=1.3, top_p=0.8, seed=4),
    Sampling(temperature=1.0, min_p=0.15, seed=5),
    Sampling(temperature=1.5, top_k=6, top_p=0.9, min_p=0.1, logit_bias={2: 1.0, 5: 2.0}, seed=6),
]


@pytest.mark.parametrize("sampling", SETTINGS)
def test_draws_follow_the_exact_probabilities(sampling: Sampling) -> None:
    """Pearson's chi-square over 20,000 positions; the floor makes a false alarm a matter of 1 in 10,000, once."""
    draws = 20_000
    found = np.bincount([chosen(LOGITS, sampling, position=at) for at in range(draws)], minlength=len(LOGITS))
    exact = reference(LOGITS, sampling)
    assert not found[exact == 0].any()
    expected = draws * exact[exact > 0]
    statistic = float(((found[exact > 0] - expected) ** 2 / expected).sum())
    assert chi_square_tail(statistic, len(expected) - 1) > 1e-4


def test_the_same_seed_repeats_and_another_seed_or_position_differs() -> None:
    def draw(seed: int, first: int) -> list[int]:
        return [chosen(LOGITS, Sampling(temperature=1.0, seed=seed), position=first + at) for at in range(64)]

    assert draw(1, 0) == draw(1, 0)
    assert draw(1, 0) != draw(2, 0)
    assert draw(1, 0) != draw(1, 64)
    assert draw(1, 0)[10:] == draw(1, 10)[:54]


def test_history_counts_prompt_and_output() -> None:
    history = History.of([5, 5, 6])
    history.add(7)
    history.add(7)
    assert history.seen == {5, 6, 7}
    assert history.output == Counter({7: 2})


def reference(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """Exact probabilities, by a full sort and without regard to speed; bias, temperature and the three cuts."""
    scores = logits.astype(np.float64)
    for token, bias in sampling.logit_bias.items():
        scores[token] += bias
    weights = np.exp((scores - scores.max()) / sampling.temperature)
    order = sorted(range(len(logits)), key=lambda token: (-scores[token], token))
    order = order[: sampling.top_k or None]
    kept: list[int] = []
    total, reached = sum(weights[token] for token in order), 0.0
    for token in order:
        if kept and reached >= sampling.top_p * total:
            break
        kept.append(token)
        reached += weights[token]
    probabilities = np.zeros(len(logits))
    for token in kept:
        if weights[token] >= sampling.min_p * weights.max():
            probabilities[token] = weights[token]
    probabilities /= probabilities.sum()
    return probabilities


def chi_square_tail(statistic: float, freedom: int) -> float:
    """P(X >= statistic), by the cube-root approximation of Wilson and Hilferty (1931)."""
    mean, variance = 1 - 2 / (9 * freedom), 2 / (9 * freedom)
    return 0.5 * math.erfc(((statistic / freedom) ** (1 / 3) - mean) / math.sqrt(2 * variance))


@pytest.mark.parametrize(("statistic", "freedom", "tail"), [(3.841, 1, 0.05), (14.067, 7, 0.05), (24.322, 7, 0.001)])
def test_the_tail_agrees_with_the_tables(statistic: float, freedom: int, tail: float) -> None:
    assert chi_square_tail(statistic, freedom) == pytest.approx(tail, rel=0.1)
