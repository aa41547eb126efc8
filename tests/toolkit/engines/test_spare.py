# SPDX-License-Identifier: Apache-2.0
"""Copies of slots hold what the slots held, and copying touches nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import standin

SLOTS, PLACES, ROWS = 3, 2, 10
SHAPES = {
    "conv_0": (SLOTS, 8, 3),
    "rec_0": (SLOTS, 2, 4, 8),
    "conv_1": (SLOTS, 8, 3),
    "rec_1": (SLOTS, 2, 4, 8),
    "conv_2": (SLOTS, 8, 3),
    "kv_3": (SLOTS, 2, 2, ROWS, 16),
    "conv_4": (SLOTS, 8, 3),
}
DTYPES = {name: "float32" if name.startswith("rec") else "float16" for name in SHAPES}


@pytest.fixture
def gpu() -> Iterator[Any]:
    with standin.installed():
        from orinkit.engines.gpu import Gpu

        yield Gpu()


class States:
    """States of three slots; each row of a slot, or all of a state that has no rows, is full of bytes of its own."""

    def __init__(self, gpu: Any) -> None:
        from orinkit.engines.slabs import Slabs
        from orinkit.engines.spare import SlotState, state_sizes

        self.gpu, self.sizes = gpu, state_sizes(SHAPES, DTYPES)
        self.memory = Slabs(gpu, self.sizes.values())
        self.addresses = {name: self.memory.take(nbytes) for name, nbytes in self.sizes.items()}
        self.states = {name: SlotState.of(self.addresses[name], SHAPES[name], DTYPES[name]) for name in SHAPES}
        for slot in range(SLOTS):
            self.fill(slot, 40 * (slot + 1))

    def fill(self, slot: int, value: int) -> None:
        for index, (name, state) in enumerate(self.states.items()):
            for part in range(state.planes * state.rows):
                nbytes = state.nbytes // state.planes // state.rows
                to = state.address + slot * state.nbytes + part * nbytes
                self.gpu.fill(to, value + (part % ROWS if name == "kv_3" else index), nbytes)

    def held(self, slot: int) -> dict[str, list[int]]:
        """The values of a slot's states: one of each row."""
        found = {}
        for name, state in self.states.items():
            host = self.gpu.pinned(
                (SLOTS, state.planes, state.rows, state.nbytes // state.planes // state.rows), np.uint8
            )
            self.gpu.receive(host, state.address, host.array.nbytes)
            self.gpu.synchronise()
            assert (host.array[slot] == host.array[slot, :1, :, :1]).all(), name
            found[name] = host.array[slot, 0, :, 0].tolist()
        return found

    @staticmethod
    def full(value: int, rows: int = ROWS, rest: int = 0) -> dict[str, list[int]]:
        """What `held` gives of a slot full of `value`, whose rows from `rows` on are those of `rest`."""
        found = {name: [value + index] for index, name in enumerate(SHAPES)}
        return found | {"kv_3": [(value if row < rows else rest) + row for row in range(ROWS)]}


def spare_of(gpu: Any, states: States, count: int = PLACES, capacity: int = ROWS) -> Any:
    from orinkit.engines.spare import DeviceSpare

    return DeviceSpare(gpu, states.states, count, capacity)


def test_a_slot_comes_back_and_no_other_changes(gpu: Any) -> None:
    states = States(gpu)
    spare = spare_of(gpu, states)
    spare.save(1, 0, ROWS)
    spare.save(2, 1, ROWS + 5)  # a ring that has wrapped
    states.fill(1, 170)
    spare.restore(0, 2, ROWS)
    assert [states.held(slot) for slot in range(SLOTS)] == [states.full(value) for value in (40, 170, 80)]
    spare.restore(1, 0, ROWS + 5)
    spare.restore(0, 1, ROWS)
    assert [states.held(slot) for slot in range(SLOTS)] == [states.full(value) for value in (120, 80, 80)]


@pytest.mark.parametrize("length", [1, ROWS - 1])
def test_only_rows_that_the_sequence_fills_are_copied(gpu: Any, length: int) -> None:
    states = States(gpu)
    spare = spare_of(gpu, states)
    spare.save(0, 1, length)
    spare.restore(1, 2, length)
    assert states.held(2) == states.full(40, length, rest=120)
    assert [states.held(slot) for slot in (0, 1)] == [states.full(40), states.full(80)]


@pytest.mark.parametrize("capacity", [ROWS, ROWS + 1], ids=["all tokens", "a ring"])
def test_rows_that_the_slot_still_has_are_left(gpu: Any, capacity: int) -> None:
    """But not those of a ring, which may have come round since."""
    states = States(gpu)
    spare = spare_of(gpu, states, capacity=capacity)
    spare.save(0, 1, 4)
    states.fill(0, 120)
    spare.restore(1, 0, 4, has_rows=True)
    assert states.held(0) == states.full(40, rows=0 if capacity == ROWS else 4, rest=120)


def test_equal_states_are_copied_at_once(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One launch for all convolutions, one for all recurrent states, one for each layer's keys and values."""
    spare, copied = spare_of(gpu, States(gpu)), []
    monkeypatch.setattr(gpu, "copy", lambda *of: copied.append(of[2:]))
    spare.save(0, 0, 4)
    assert copied == [(48, 4), (256, 2), (4 * 32, 4)]


def test_states_at_other_distances_are_copied_one_by_one(gpu: Any) -> None:
    from orinkit.engines.spare import DeviceSpare, SlotState

    memory = [gpu.allocate(nbytes) for nbytes in (512, 2048, 512, 512)]
    states = {f"rec_{i}": SlotState(each.address, 256) for i, each in enumerate(memory)}
    spare = DeviceSpare(gpu, states, 1, capacity=8)
    for index, each in enumerate(memory):
        gpu.fill(each.address, index + 1, each.nbytes)
    spare.save(1, 0, 1)
    for each in memory:
        gpu.fill(each.address, 99, each.nbytes)
    spare.restore(0, 0, 1)
    host = gpu.pinned((512,), np.uint8)
    for index, each in enumerate(memory):
        gpu.receive(host, each.address, 512)
        gpu.synchronise()
        assert (host.array == [index + 1] * 256 + [99] * 256).all()


def test_copies_are_made_where_they_stand_between_steps(gpu: Any) -> None:
    """Nothing is copied before its turn: what is enqueued earlier is seen, what is enqueued later is not."""
    states = States(gpu)
    spare = spare_of(gpu, states)

    def work() -> None:
        states.fill(0, 150)
        spare.save(0, 0, ROWS)
        states.fill(0, 160)
        spare.restore(0, 1, ROWS)

    replay = gpu.capture(work)
    assert states.held(0) == states.full(40)
    replay()
    assert [states.held(slot) for slot in range(SLOTS)] == [states.full(value) for value in (160, 150, 120)]


def test_everything_is_allocated_at_once(gpu: Any) -> None:
    states = States(gpu)
    before = gpu.num_allocations
    spare = spare_of(gpu, states)
    made = gpu.num_allocations
    spare.save(0, 1, ROWS)
    spare.restore(1, 2, ROWS)
    assert (made - before, gpu.num_allocations) == (1, made)


def test_no_places_take_no_memory(gpu: Any) -> None:
    states = States(gpu)
    before = gpu.num_allocations
    spare_of(gpu, states, 0)
    assert gpu.num_allocations == before
