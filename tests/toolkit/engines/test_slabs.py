# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import standin
from orinkit.memory import arena


def test_pieces_come_one_after_another_from_few_allocations() -> None:
    with standin.installed():
        from orinkit.engines.gpu import Gpu
        from orinkit.engines.slabs import Slabs

        gpu = Gpu()
        sizes = [1000, 1, 300]
        slabs = Slabs(gpu, sizes)
        first, second, third = (slabs.take(nbytes) for nbytes in sizes)
        assert (second - first, third - second, first % 256) == (1024, 256, 0)
        assert gpu.num_allocations == len(arena.slabs(sizes)) == 1
        assert slabs.nbytes == sum(arena.slabs(sizes))


def test_a_piece_that_does_not_fit_any_more_begins_the_next() -> None:
    with standin.installed():
        from orinkit.engines.gpu import Gpu
        from orinkit.engines.slabs import Slabs

        sizes = [200 << 20, 100 << 20, 1]
        slabs = Slabs(Gpu(), sizes)
        places = [slabs.take(nbytes) for nbytes in sizes]
        ends = sorted(zip(places, sizes, strict=True))
        assert all(start + size <= following for (start, size), (following, _) in itertools.pairwise(ends))
