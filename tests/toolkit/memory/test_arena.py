# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from orinkit.memory.arena import ALIGNMENT, SLAB, Value, aligned, place, slabs


def chains() -> st.SearchStrategy[list[Value]]:
    """Values that each read some of those before."""

    def value(index: int) -> st.SearchStrategy[Value]:
        reads = st.lists(st.integers(0, max(index - 1, 0)), max_size=3 if index else 0)
        return st.builds(
            lambda nbytes, found: Value(f"v{index}", nbytes, tuple(f"v{i}" for i in found)), st.integers(1, 5000), reads
        )

    return st.integers(1, 12).flatmap(lambda count: st.tuples(*map(value, range(count))).map(list))


@given(chains())
def test_values_that_are_needed_at_the_same_time_do_not_overlap(values: list[Value]) -> None:
    offsets, end = place(values)
    last = {name: index for index, value in enumerate(values) for name in value.reads}
    index_of = {value.name: index for index, value in enumerate(values)}
    alive = {name: range(index_of[name], max(last.get(name, len(values)), index_of[name]) + 1) for name in offsets}
    sizes = {value.name: value.nbytes for value in values}
    for one, other in itertools.combinations(offsets, 2):
        if set(alive[one]) & set(alive[other]):
            apart = offsets[one] + sizes[one] <= offsets[other] or offsets[other] + sizes[other] <= offsets[one]
            assert apart, (one, other)
    assert all(offset % ALIGNMENT == 0 and offset + sizes[name] <= end for name, offset in offsets.items())
    assert set(offsets) == {value.name for value in values[:-1]}


def test_a_chain_needs_room_for_two_values_only() -> None:
    values = [Value(f"v{i}", 1000, (f"v{i - 1}",) if i else ()) for i in range(10)]
    offsets, end = place(values)
    assert end == 2 * aligned(1000)
    assert set(offsets.values()) == {0, 1024}


def test_a_small_value_gives_the_whole_of_its_place_back() -> None:
    values = [
        Value("large", 4096, ()),
        Value("small", 256, ("large",)),
        Value("in the place of large", 256, ("small",)),
        Value("end of it", 256, ("in the place of large",)),
        Value("large again", 4096, ("end of it",)),
        Value("output", 256, ("large again",)),
    ]
    assert place(values)[1] <= 4096 + 3 * 256


@given(st.lists(st.integers(1, SLAB // 3), max_size=20))
def test_slabs_hold_all_pieces_and_are_full(sizes: list[int]) -> None:
    found = slabs(sizes)
    assert sum(found) == sum(map(aligned, sizes))
    assert all(size <= SLAB for size in found)
    assert all(one + other > SLAB for one, other in itertools.pairwise(found)) or len(found) < 2


def test_a_piece_beyond_a_slab_is_alone() -> None:
    assert slabs([256, 2 * SLAB, 256]) == [256, 2 * SLAB, 256]
