# SPDX-License-Identifier: Apache-2.0
"""Copies of slots in device memory, on the stand-in for CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import standin

SLOTS, SIZES = 3, {"kv_0": 512, "rec_0": 256}


@pytest.fixture
def gpu() -> Iterator[Any]:
    with standin.installed():
        from orinkit.engines.gpu import Gpu

        yield Gpu()


def read(gpu: Any, address: int, nbytes: int) -> NDArray[np.uint8]:
    host = gpu.pinned((nbytes,), np.uint8)
    gpu.receive(host, address, nbytes)
    gpu.synchronise()
    found: NDArray[np.uint8] = host.array.copy()
    return found


def test_a_slot_comes_back_into_any_slot_and_nothing_else_changes(gpu: Any) -> None:
    from orinkit.engines.spare import DeviceSpare

    memory = {name: gpu.allocate(SLOTS * size) for name, size in SIZES.items()}
    rng = np.random.default_rng(0)
    before = {name: rng.integers(0, 256, (SLOTS, size), np.uint8) for name, size in SIZES.items()}
    for name, values in before.items():
        gpu.upload(memory[name].address, values)
    spare = DeviceSpare(gpu, {name: each.address for name, each in memory.items()}, SIZES, 2)
    spare.save(1, 0)
    spare.save(2, 1)
    for name, size in SIZES.items():
        gpu.fill(memory[name].address + size, 0xFF, size)
    spare.restore(0, 2)
    for name, size in SIZES.items():
        found = read(gpu, memory[name].address, SLOTS * size).reshape(SLOTS, size)
        assert np.array_equal(found[0], before[name][0])
        assert (found[1] == 0xFF).all()
        assert np.array_equal(found[2], before[name][1])
    spare.restore(1, 1)
    for name, size in SIZES.items():
        assert np.array_equal(read(gpu, memory[name].address + size, size), before[name][2])


def test_no_places_take_no_memory(gpu: Any) -> None:
    from orinkit.engines.spare import DeviceSpare

    before = gpu.num_allocations
    DeviceSpare(gpu, dict.fromkeys(SIZES, 0), SIZES, 0)
    assert gpu.num_allocations == before
