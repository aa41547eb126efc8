# SPDX-License-Identifier: Apache-2.0
"""Copies of slots hold what the slots held, and copying touches nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import standin

SLOTS, PLACES = 3, 2
SLOT_BYTES = {"kv_3": 1000, "conv_0": 24, "rec_0": 256}


@pytest.fixture
def gpu() -> Iterator[Any]:
    with standin.installed():
        from orinkit.engines.gpu import Gpu

        yield Gpu()


class States:
    """States of three slots, each full of bytes of its own."""

    def __init__(self, gpu: Any) -> None:
        self.gpu = gpu
        self.memory = {name: gpu.allocate(SLOTS * nbytes) for name, nbytes in SLOT_BYTES.items()}
        self.addresses = {name: memory.address for name, memory in self.memory.items()}
        for slot in range(SLOTS):
            self.fill(slot, 10 * (slot + 1))

    def fill(self, slot: int, value: int) -> None:
        for index, (name, nbytes) in enumerate(SLOT_BYTES.items()):
            self.gpu.fill(self.addresses[name] + slot * nbytes, value + index, nbytes)

    def held(self) -> list[list[int]]:
        """The value of each slot in each state, which is the same in all of its bytes."""
        found = []
        for name, nbytes in SLOT_BYTES.items():
            host = self.gpu.pinned((SLOTS, nbytes), np.uint8)
            self.gpu.receive(host, self.addresses[name], host.array.nbytes)
            self.gpu.synchronise()
            assert (host.array == host.array[:, :1]).all(), name
            found.append(host.array[:, 0].tolist())
        return found


def spare_of(gpu: Any, states: States, count: int = PLACES) -> Any:
    from orinkit.engines.spare import DeviceSpare

    return DeviceSpare(gpu, states.addresses, SLOT_BYTES, count)


def test_a_slot_comes_back_and_no_other_changes(gpu: Any) -> None:
    states = States(gpu)
    spare = spare_of(gpu, states)
    spare.save(1, 0)
    spare.save(2, 1)
    states.fill(1, 70)
    spare.restore(0, 2)
    assert states.held() == [[10, 70, 20], [11, 71, 21], [12, 72, 22]]
    spare.restore(1, 0)
    spare.restore(0, 1)
    assert states.held() == [[30, 20, 20], [31, 21, 21], [32, 22, 22]]


def test_copies_are_made_where_they_stand_between_steps(gpu: Any) -> None:
    """Nothing is copied before its turn: what is enqueued earlier is seen, what is enqueued later is not."""
    states = States(gpu)
    spare = spare_of(gpu, states)

    def work() -> None:
        states.fill(0, 40)
        spare.save(0, 0)
        states.fill(0, 50)
        spare.restore(0, 1)

    replay = gpu.capture(work)
    assert states.held()[0] == [10, 20, 30]
    replay()
    assert states.held()[0] == [50, 40, 30]


def test_everything_is_allocated_at_once(gpu: Any) -> None:
    states = States(gpu)
    before = gpu.num_allocations
    spare = spare_of(gpu, states)
    made = gpu.num_allocations
    spare.save(0, 1)
    spare.restore(1, 2)
    assert (made - before, gpu.num_allocations) == (1, made)


def test_no_places_take_no_memory(gpu: Any) -> None:
    states = States(gpu)
    before = gpu.num_allocations
    spare_of(gpu, states, 0)
    assert gpu.num_allocations == before
