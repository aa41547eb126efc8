# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest

from orinkit.runtime.philox import gumbel, philox4x32

ALL = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = philox4x32(counter, key)
    assert tuple(int(word[0]) for word in words) == expected


def test_an_array_of_counters_is_as_good_as_one_at_a_time() -> None:
    together = np.stack(philox4x32((np.arange(5), 7, 0, 0), (1, 2)), axis=1)
    alone = [np.concatenate(philox4x32((index, 7, 0, 0), (1, 2))) for index in range(5)]
    assert np.array_equal(together, alone)


def test_a_number_depends_on_seed_position_and_id_alone() -> None:
    ids = np.array([3, 20_000, 5, 248_319])
    some = gumbel(ids, position=11, seed=2**63 + 5)
    every = gumbel(np.arange(248_320), position=11, seed=2**63 + 5)
    assert np.array_equal(some, every[ids])
    assert not np.any(some == gumbel(ids, position=12, seed=2**63 + 5))
    assert not np.any(some == gumbel(ids, position=11, seed=2**63 + 6))
    assert not np.any(some == gumbel(ids, position=11, seed=5)), "the high word of the seed counts"


def test_the_formula() -> None:
    word = int(philox4x32((42, 9, 0, 0), (7, 1))[0][0])
    expected = -math.log(-math.log((word + 0.5) / 2**32))
    assert gumbel(np.array([42]), position=9, seed=(1 << 32) + 7)[0] == pytest.approx(expected, rel=1e-15)


def test_mean_and_variance_are_those_of_the_gumbel_distribution() -> None:
    drawn = gumbel(np.arange(200_000), position=0, seed=1)
    assert drawn.mean() == pytest.approx(np.euler_gamma, abs=0.01)
    assert drawn.var() == pytest.approx(math.pi**2 / 6, abs=0.03)
    assert np.isfinite(drawn).all()
