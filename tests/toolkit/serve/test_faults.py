# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from orinkit.errors import DeviceError, EngineError
from orinkit.serve import faults
from toolkit.runtime.serving import Clock


def log(limit: int = 5, clock: Clock | None = None) -> faults.FaultLog:
    return faults.FaultLog(limit, 1.0, 60.0, clock or Clock())


@pytest.mark.parametrize("code", [214, 700, 702, 710, 714, 715, 716, 717, 718, 719, 911, 999, 12345, 2, 3])
def test_f2_every_number_but_those_of_requests_is_fatal(code: int) -> None:
    assert faults.is_fatal(DeviceError("words", code))
    assert faults.code_of(DeviceError("words", code)) == f"cuda_{code}"


@pytest.mark.parametrize("code", [1, 9])
def test_the_numbers_of_requests_are_not_fatal(code: int) -> None:
    assert not faults.is_fatal(DeviceError("words", code))


def test_an_error_without_a_number_is_fatal_whatever_it_says() -> None:
    assert faults.is_fatal(EngineError("CUDA error 2: out of memory"))
    assert faults.code_of(EngineError("words")) == "engine"


def test_f11_the_waits_double_up_to_a_minute() -> None:
    found, waits = log(limit=100), []
    for _ in range(9):
        found.add([])
        waits.append(found.next_delay)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert log().next_delay == 0


def test_f11_five_faults_in_ten_minutes_are_too_many() -> None:
    clock = Clock()
    found = log(clock=clock)
    for _ in range(4):
        found.add([])
    assert not found.is_over
    found.add([])
    assert found.is_over
    clock.now += faults.WINDOW
    assert (found.is_over, found.next_delay) == (False, 0)


def test_f12_a_prompt_is_quarantined_for_ten_minutes_after_two_faults() -> None:
    clock = Clock()
    found = log(clock=clock)
    found.add([(1, 2), (1, 2), (3,)])
    assert not found.is_quarantined((1, 2))
    clock.now += 60
    found.add([(1, 2)])
    assert found.is_quarantined((1, 2))
    assert not found.is_quarantined((3,))
    assert not found.is_quarantined((1, 2, 3))
    clock.now += faults.WINDOW - 60
    assert not found.is_quarantined((1, 2))
