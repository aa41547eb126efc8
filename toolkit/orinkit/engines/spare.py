# SPDX-License-Identifier: Apache-2.0
"""Copies of slots in device memory."""

from __future__ import annotations

from collections.abc import Mapping

from orinkit.engines.gpu import Gpu
from orinkit.engines.slabs import Slabs


class DeviceSpare:
    """As many places as are asked for, each with room for all states of one slot; see `engines.base.Spare`."""

    def __init__(self, gpu: Gpu, addresses: Mapping[str, int], slot_bytes: Mapping[str, int], count: int) -> None:
        """`addresses` of the states [slots, ..], and the bytes of one slot in each. Raises DeviceError."""
        self._gpu, self._states, self._slot_bytes = gpu, dict(addresses), dict(slot_bytes)
        sizes = {name: count * nbytes for name, nbytes in slot_bytes.items()} if count else {}
        self._memory = Slabs(gpu, sizes.values())
        self._places = {name: self._memory.take(size) for name, size in sizes.items()}

    def save(self, slot: int, place: int) -> None:
        for name, nbytes in self._slot_bytes.items():
            self._gpu.copy(self._places[name] + place * nbytes, self._states[name] + slot * nbytes, nbytes)

    def restore(self, place: int, slot: int) -> None:
        for name, nbytes in self._slot_bytes.items():
            self._gpu.copy(self._states[name] + slot * nbytes, self._places[name] + place * nbytes, nbytes)
