# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from orinkit.errors import EngineError, ResourceError
from orinkit.runtime.state import Slots


def test_the_lowest_free_slot_comes_first_and_starts_at_zero() -> None:
    slots = Slots(2, capacity=8)
    assert (slots.allocate(7), slots.allocate(8)) == (0, 1)
    slots.advance(7, 5)
    slots.free(7)
    assert slots.allocate(9) == 0
    assert slots.length(9) == 0


def test_a_slot_holds_its_capacity_and_no_more() -> None:
    slots = Slots(1, capacity=8)
    slots.allocate(1)
    slots.advance(1, 8)
    with pytest.raises(EngineError, match="at most 8 tokens, found 9"):
        slots.advance(1, 1)
    assert slots.length(1) == 8


def test_refused() -> None:
    slots = Slots(1, capacity=8)
    slots.allocate(1)
    with pytest.raises(EngineError, match="already owns slot 0"):
        slots.allocate(1)
    with pytest.raises(ResourceError, match="found all 1 taken"):
        slots.allocate(2)
    slots.free(1)
    with pytest.raises(EngineError, match="sequence 1 owns no slot"):
        slots.free(1)


class SlotsMachine(RuleBasedStateMachine):
    """Slots against a dictionary of owners."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(3, capacity=10)
        self.owners: dict[int, int] = {}

    @rule(sequence=st.integers(0, 5))
    def allocate(self, sequence: int) -> None:
        if sequence in self.owners or len(self.owners) == 3:
            with pytest.raises((EngineError, ResourceError)):
                self.slots.allocate(sequence)
        else:
            slot = self.slots.allocate(sequence)
            assert slot not in self.owners.values()
            self.owners[sequence] = slot

    @rule(sequence=st.integers(0, 5))
    def free(self, sequence: int) -> None:
        if sequence in self.owners:
            self.slots.free(sequence)
            del self.owners[sequence]
        else:
            with pytest.raises(EngineError):
                self.slots.free(sequence)

    @invariant()
    def agree(self) -> None:
        assert self.slots.num_free == 3 - len(self.owners)
        assert all(self.slots.slot(sequence) == slot for sequence, slot in self.owners.items())


TestSlots = SlotsMachine.TestCase
