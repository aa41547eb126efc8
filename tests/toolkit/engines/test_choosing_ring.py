# SPDX-License-Identifier: Apache-2.0
"""The ring by which the device tells the host what its steps have chosen."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import standin
from host_kernels import HostKernels
from orinkit.engines.base import Chosen, Limits
from orinkit.errors import EngineError

SLOTS = 3
LIMITS = Limits(biases=4, stops=3, logprobs=2, run_ahead=2, snapshots=0)
LIBRARY: Any = HostKernels(Path(__file__))


class Told:
    """A ring and what a device would write to it."""

    def __init__(self, gpu: Any) -> None:
        from orinkit.engines.choosing import Ring

        self.gpu, self.ring = gpu, Ring(gpu, LIBRARY, SLOTS, LIMITS)
        top = [("top", [("id", "<i4"), ("logprob", "<f4")], (LIMITS.logprobs,))]
        self.entry = np.dtype([*LIBRARY.dtype("step_entry").descr, *top])

    def entries(self, step: int) -> Any:
        from orinkit.engines.choosing import RING_STEPS

        nbytes = RING_STEPS * SLOTS * self.entry.itemsize
        raw: Any = (ctypes.c_byte * nbytes).from_address(self.ring.addresses["ring"])
        return np.frombuffer(raw, self.entry).reshape(RING_STEPS, SLOTS)[step % RING_STEPS]

    def write(self, step: int, *rows: tuple[int, int, int]) -> None:
        """Slot, token and state of each row."""
        for index, (slot, token, state) in enumerate(rows):
            self.entries(step)[index] = (step, slot, token, -0.5, state, [(token, -0.5), (1, -2.0)])

    def head(self, value: int) -> None:
        ctypes.c_uint64.from_address(self.ring.addresses["head"]).value = value


@pytest.fixture
def told() -> Iterator[Told]:
    with standin.installed():
        from orinkit.engines.gpu import Gpu

        yield Told(Gpu())


def test_what_a_step_chose_is_read_once_the_head_is_beyond_it(told: Told) -> None:
    from orinkit.engines.choosing import IDLE

    told.write(0, (2, 40, 0), (0, -1, IDLE), (1, 41, 1))
    assert not told.ring.may_have_told(0)
    told.head(1)
    assert told.ring.may_have_told(0)
    assert not told.ring.may_have_told(1)
    assert told.ring.read(0, 3, {2: 1, 1: 0}) == (Chosen(2, 40, -0.5, ((40, -0.5),)), Chosen(1, 41, -0.5))


def test_every_slot_is_told_as_many_alternatives_as_it_wants(told: Told) -> None:
    told.write(0, (0, 40, 0), (1, 41, 0), (2, 42, 0))
    assert [len(chosen.top) for chosen in told.ring.read(0, 3, {0: 2, 1: 0})] == [2, 0, 0]


def test_where_no_token_can_be_chosen_none_is_told(told: Told) -> None:
    from orinkit.engines.choosing import FAILED

    told.write(0, (1, -1, FAILED))
    assert told.ring.read(0, 3, {1: 2}) == (Chosen(1, None),)


def test_entries_of_a_step_that_lay_there_before_are_not_read(told: Told) -> None:
    """A step of fewer rows leaves the others' entries as an older step wrote them."""
    from orinkit.engines.choosing import RING_STEPS

    told.write(3, (0, 40, 0), (1, 41, 0), (2, 42, 0))
    told.write(3 + RING_STEPS, (0, 50, 0))
    assert [chosen.token for chosen in told.ring.read(3 + RING_STEPS, 3, {})] == [50]
    assert [chosen.token for chosen in told.ring.read(3, 3, {})] == [41, 42]


def test_a_library_whose_entries_are_others_is_refused(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {name: kind for name, kind in LIBRARY.fields("step_entry").items() if name != "logprob"}
    monkeypatch.setattr(LIBRARY, "fields", lambda _: entries)
    with pytest.raises(EngineError, match=r"expected a kernel library whose ring entries are .*logprob.*, found"):
        Told(told.gpu)


def test_a_ring_that_starts_again_has_told_nothing(told: Told) -> None:
    told.head(9)
    told.gpu.fill(told.ring.addresses["clock"], 7, 8)
    told.ring.restart()
    assert not told.ring.may_have_told(0)
    assert ctypes.c_uint64.from_address(told.ring.addresses["clock"]).value == 0


@pytest.mark.parametrize("byte", [0, 0xFF])
def test_rows_that_no_step_has_written_since_it_started_are_not_read(told: Told, byte: int) -> None:
    """Memory of zeros would be the first slot's token 0 of step 0, were the state not there."""
    told.entries(0).view(np.uint8).fill(byte)
    told.ring.restart()
    told.write(0, (2, 40, 0))
    assert [(chosen.slot, chosen.token) for chosen in told.ring.read(0, 3, {})] == [(2, 40)]
