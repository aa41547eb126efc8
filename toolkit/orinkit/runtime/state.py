# SPDX-License-Identifier: Apache-2.0
"""Slots: which sequence owns which rows of the caches, and how many of its tokens they hold.

A slot is not cleared when it is freed: the next owner starts with a past length of 0, and whatever the caches hold
then counts as zero.
"""

from __future__ import annotations

from orinkit.errors import EngineError, ResourceError


class Slots:
    """The slots of one set of caches; `capacity` is the number of tokens that each can hold."""

    def __init__(self, num_slots: int, capacity: int) -> None:
        self.capacity = capacity
        self._free = list(range(num_slots))
        self._slot: dict[int, int] = {}
        self._length: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, sequence: int) -> int:
        """The lowest free slot, now owned by `sequence`, with length 0. Raises ResourceError: all are taken."""
        if sequence in self._slot:
            raise EngineError(f"sequence {sequence} already owns slot {self._slot[sequence]}; free it first")
        if not self._free:
            raise ResourceError(f"expected a free slot, found all {len(self._slot)} taken; wait until a sequence ends")
        slot = min(self._free)
        self._free.remove(slot)
        self._slot[sequence], self._length[sequence] = slot, 0
        return slot

    def free(self, sequence: int) -> None:
        """Give the slot of `sequence` back. A sequence that owns none is an error: a slot must not be freed twice."""
        self._free.append(self.slot(sequence))
        del self._slot[sequence], self._length[sequence]

    def slot(self, sequence: int) -> int:
        self._check_owner(sequence)
        return self._slot[sequence]

    def length(self, sequence: int) -> int:
        """Tokens of `sequence` that the caches hold."""
        self._check_owner(sequence)
        return self._length[sequence]

    def advance(self, sequence: int, num_tokens: int) -> None:
        """Note that a step has added `num_tokens` tokens of `sequence` to the caches."""
        length = self.length(sequence) + num_tokens
        if length > self.capacity:
            raise EngineError(f"slot {self._slot[sequence]}: expected at most {self.capacity} tokens, found {length}")
        self._length[sequence] = length

    def _check_owner(self, sequence: int) -> None:
        if sequence not in self._slot:
            raise EngineError(f"sequence {sequence} owns no slot; owners: {sorted(self._slot)}")
