# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest

from orinkit.memory.fit import SYSTEM, changes, fit
from orinkit.memory.needs import memory_plan
from toolkit.memory.models import GPU, HYBRID, recipe

GIB = 1 << 30


def test_a_tenth_of_the_memory_stays_free() -> None:
    found = fit(5 * GIB, GPU)
    assert (found.visible, found.system, found.reserve) == (60 * GIB, SYSTEM, 6 * GIB)
    assert found.have == 53 * GIB
    assert found.spare == 48 * GIB


def test_half_a_gibibyte_stays_free_on_a_small_board() -> None:
    assert fit(0, replace(GPU, visible_gib=3.2)).reserve == GIB // 2


def test_a_board_that_does_not_say_what_linux_sees() -> None:
    assert fit(0, replace(GPU, visible_gib=None)).visible == int(0.92 * 64 * GIB)


def test_what_is_missing_makes_it_not_fit() -> None:
    found = fit(3 * GIB, replace(GPU, visible_gib=4.0))
    assert found.spare == 4 * GIB - SYSTEM - GIB // 2 - 3 * GIB < 0


@pytest.mark.parametrize("missing", [1, 20_000_000, 60_000_000])
def test_a_change_that_fits_does(missing: int) -> None:
    before = memory_plan(HYBRID, recipe(), "cuda").total()
    found = changes(HYBRID, recipe(), "cuda", missing)
    assert found[0].fits
    for change in found:
        key, _, value = change.text.partition(": ")
        changed = recipe(embedding=value) if key == "embedding" else recipe({key: int(value)})
        after = memory_plan(HYBRID, changed, "cuda").total()
        assert change.saves == before - after > 0
        assert change.fits == (change.saves >= missing)


def test_the_largest_value_that_suffices_is_proposed() -> None:
    one_slot = memory_plan(HYBRID, recipe(), "cuda").total() - memory_plan(HYBRID, recipe({"slots": 3}), "cuda").total()
    texts = {change.text for change in changes(HYBRID, recipe(), "cuda", one_slot)}
    assert "slots: 3" in texts
    assert "slots: 2" in {change.text for change in changes(HYBRID, recipe(), "cuda", one_slot + 1)}


def test_where_nothing_suffices_all_together_come_last() -> None:
    found = changes(HYBRID, recipe(), "cuda", 10 * GIB)
    assert found[-1].text == "all of these"
    assert not any(change.fits for change in found)
    assert found[-1].saves > max(change.saves for change in found[:-1])


def test_a_recipe_that_is_small_already_has_nothing_to_change() -> None:
    least = recipe({"slots": 1, "snapshots": 0, "capacity": 1024, "chunk": 128}, embedding="int4")
    assert changes(HYBRID, least, "cuda", GIB) == ()
