# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from orinkit.serve.pace import Loads, Pace


def test_a_step_has_at_least_the_least_time() -> None:
    assert Pace(2.0).limit(is_reading=False) == 2.0


def test_until_enough_steps_are_known_ten_self_tests_count() -> None:
    pace = Pace(2.0)
    pace.begin(1.5)
    pace.add(0.01)
    assert pace.limit(is_reading=False) == 15


def test_ten_times_the_99th_percentile_counts_and_prompts_have_more() -> None:
    pace = Pace(0.5)
    pace.begin(3.0)
    for index in range(512):
        pace.add(9.0 if index in (100, 200) else 0.2)
    assert pace.limit(is_reading=False) == pytest.approx(2.0)
    assert pace.limit(is_reading=True) == pytest.approx(30.0)


def test_a_new_worker_begins_anew() -> None:
    pace = Pace(0.5)
    pace.add(100.0)
    pace.begin(0.1)
    assert pace.limit(is_reading=False) == pytest.approx(1.0)


def test_the_usual_load_is_nearly_the_longest() -> None:
    loads = Loads()
    assert loads.usual == 5.0
    for seconds in (3.0, *[1.0] * 18, 9.0):
        loads.add(seconds)
    assert loads.usual == 3.0
