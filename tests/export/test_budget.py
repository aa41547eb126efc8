# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import numpy as np
import pytest

from orinkit.recipe import Named
from orinkit_export.budget import Option, Options, spend

FORMATS: tuple[Named, ...] = ("int4-g128", "int4-g64", "int4-g32", "int8")
BYTES = (33, 34, 36, 65)
NARROW, *_, WIDE = FORMATS


def options(size: int, *costs: float) -> Options:
    """Of a matrix of 64 x `size` weights."""
    return {name: Option(size * each, cost) for name, each, cost in zip(FORMATS, BYTES, costs, strict=True)}


def total(matrices: dict[str, Options], chosen: dict[str, Named]) -> Option:
    found = [matrices[name][text] for name, text in chosen.items()]
    return Option(sum(option.nbytes for option in found), sum(option.cost for option in found))


@pytest.fixture
def matrices() -> dict[str, Options]:
    """Four of different sizes; what they cost in their narrowest format differs most."""
    scales = np.random.default_rng(5).lognormal(0, 1.5, 4)
    shares = (1.0, 0.85, 0.7, 0.005)
    sizes = (1, 2, 3, 1)
    return {f"m{i}": options(size, *(scales[i] * share for share in shares)) for i, size in enumerate(sizes)}


def test_a_matrix_that_costs_more_gets_more() -> None:
    matrices = {"dear": options(1, 8, 7, 5, 0.1), "cheap": options(1, 1, 0.9, 0.7, 0.01)}
    assert spend(matrices, 36 + 33) == {"dear": "int4-g32", "cheap": NARROW}
    assert spend(matrices, 65 + 35) == {"dear": WIDE, "cheap": "int4-g64"}


@pytest.mark.parametrize("most", [0, 33 * 7])
def test_the_narrowest_is_the_least_that_is_taken(most: int, matrices: dict[str, Options]) -> None:
    assert set(spend(matrices, most).values()) == {NARROW}


def test_what_is_enough_for_all_is_given_to_all(matrices: dict[str, Options]) -> None:
    assert set(spend(matrices, 65 * 7).values()) == {WIDE}


@pytest.mark.parametrize("most", range(33 * 7, 66 * 7, 9))
def test_no_choice_within_the_budget_costs_much_less(most: int, matrices: dict[str, Options]) -> None:
    """The best of all combinations can be ahead by one step that did not fit."""
    found = total(matrices, spend(matrices, most))
    every = (dict(zip(matrices, chosen, strict=True)) for chosen in itertools.product(FORMATS, repeat=4))
    best = min((total(matrices, chosen) for chosen in every), key=lambda each: (each.nbytes > most, each.cost))
    largest = max(
        before.cost - after.cost for each in matrices.values() for before, after in itertools.pairwise(each.values())
    )
    assert found.nbytes <= most
    assert best.cost <= found.cost <= best.cost + largest


def test_a_wider_format_that_loses_more_is_not_taken() -> None:
    assert spend({"odd": options(1, 1.0, 1.2, 0.9, 1.1)}, 1000) == {"odd": "int4-g32"}
