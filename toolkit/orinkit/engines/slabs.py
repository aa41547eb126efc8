# SPDX-License-Identifier: Apache-2.0
"""Device memory in large pieces, handed out from the front."""

from __future__ import annotations

from collections.abc import Iterable

from orinkit.engines.gpu import Gpu, Memory
from orinkit.memory import arena


class Slabs:
    """Room for pieces of known sizes in as few allocations as boards grant."""

    def __init__(self, gpu: Gpu, sizes: Iterable[int]) -> None:
        """Allocate room for pieces of `sizes` bytes, which have to be taken in that order. Raises DeviceError."""
        self._slabs: list[Memory] = [gpu.allocate(nbytes) for nbytes in arena.slabs(sizes)]
        self._index = self._used = 0
        self.nbytes = sum(slab.nbytes for slab in self._slabs)

    def take(self, nbytes: int) -> int:
        """The address of the next piece."""
        if self._used + arena.aligned(nbytes) > self._slabs[self._index].nbytes:
            self._index, self._used = self._index + 1, 0
        address = self._slabs[self._index].address + self._used
        self._used += arena.aligned(nbytes)
        return address
