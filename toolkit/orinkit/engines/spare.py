# SPDX-License-Identifier: Apache-2.0
"""Copies of slots in device memory, by few launches: most states are so small that launching is what takes time.

kv    [slots, planes, rows, ..]   the rows that a sequence fills, of all planes at once
rest  [slots, ..]                 whole; equal ones that lie at equal distances at once
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from orinkit.engines.gpu import Gpu
from orinkit.engines.slabs import Slabs


@dataclass(frozen=True)
class SlotState:
    """One state of one slot."""

    address: int
    """Of slot 0; the others follow it."""
    nbytes: int
    planes: int = 1
    """Equal parts."""
    rows: int = 1
    """Rows of each part, which sequences fill from the first on, one for each token."""

    @classmethod
    def of(cls, address: int, shape: tuple[int, ...], dtype: str) -> SlotState:
        """A state [slots, ..]; that of keys and values is [slots, 2, Hkv, C, D] and has a row for each token."""
        nbytes = math.prod(shape[1:]) * np.dtype(dtype).itemsize
        return cls(address, nbytes, *((2 * shape[2], shape[3]) if len(shape) == 5 else ()))


def state_sizes(shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> dict[str, int]:
    """Bytes of states [slots, ..], in the order in which they lie in memory best: equal ones beside each other."""
    sizes = {name: math.prod(shape) * np.dtype(dtypes[name]).itemsize for name, shape in shapes.items()}
    return dict(sorted(sizes.items(), key=lambda item: item[1]))


_Placed = tuple[SlotState, int]
"""A state and where it lies in place 0."""


@dataclass(frozen=True)
class _Run:
    """Parts at equal distances, which one copy takes."""

    state: SlotState
    """The first, or the only one."""
    place: int
    parts: int
    pitch: int
    """Bytes from part to part in a slot."""
    place_pitch: int
    """And in a place."""

    @classmethod
    def of(cls, alike: list[_Placed]) -> _Run:
        (state, place), *more = alike
        if more:
            return cls(state, place, len(alike), more[0][0].address - state.address, more[0][1] - place)
        part = state.nbytes // state.planes
        return cls(state, place, state.planes, part, part)

    def ends(self, slot: int, place: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Address and pitch of the parts in a slot, and of those in a place."""
        held, kept = self.state.address + slot * self.state.nbytes, self.place + place * self.state.nbytes
        return (held, self.pitch), (kept, self.place_pitch)

    def is_kept(self, capacity: int) -> bool:
        """Whether a row stays where it is as long as a sequence is appended to: no ring, nor a state of all tokens."""
        return self.state.rows >= capacity

    def width(self, length: int) -> int:
        """Bytes of each part that a sequence of `length` tokens fills."""
        rows = self.state.rows
        return self.state.nbytes // self.state.planes // rows * min(length, rows)


class DeviceSpare:
    """As many places as are asked for, each with room for all states of one slot; see `engines.base.Spare`."""

    def __init__(self, gpu: Gpu, states: Mapping[str, SlotState], count: int, capacity: int) -> None:
        """`capacity`: most tokens of a slot. Raises DeviceError."""
        self._gpu = gpu
        in_order = sorted(states.values(), key=lambda state: (state.nbytes, state.address)) if count else []
        self._memory = Slabs(gpu, [count * state.nbytes for state in in_order])
        runs: list[list[_Placed]] = []
        for state in in_order:
            placed = state, self._memory.take(count * state.nbytes)
            if runs and _is_run([*runs[-1], placed]):
                runs[-1].append(placed)
            else:
                runs.append([placed])
        self._runs = [_Run.of(run) for run in runs]
        self._overwritten = [run for run in self._runs if not run.is_kept(capacity)]

    def save(self, slot: int, place: int, length: int) -> None:
        for run in self._runs:
            held, kept = run.ends(slot, place)
            self._gpu.copy(kept, held, run.width(length), run.parts)

    def restore(self, place: int, slot: int, length: int, has_rows: bool = False) -> None:
        for run in self._overwritten if has_rows else self._runs:
            held, kept = run.ends(slot, place)
            self._gpu.copy(held, kept, run.width(length), run.parts)


def _is_run(states: list[_Placed]) -> bool:
    """Whether states without rows are equally large and lie at equal distances, in slots and in places."""
    steps = {(later.address - state.address, after - place) for (state, place), (later, after) in pairwise(states)}
    kinds = {(state.nbytes, state.planes, state.rows) for state, _ in states}
    return kinds == {(states[0][0].nbytes, 1, 1)} and len(steps) == 1 and min(steps)[1] > 0
