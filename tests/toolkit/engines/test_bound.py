# SPDX-License-Identifier: Apache-2.0
"""Where a step's inputs lie, on the stand-in for CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import standin
from orinkit.engines.base import Profile, StepInputs


@pytest.fixture
def gpu() -> Iterator[Any]:
    with standin.installed():
        from orinkit.engines.gpu import Gpu

        yield Gpu()


def inputs(*lengths: int, past: int = 0) -> StepInputs:
    edges = np.cumsum([0, *lengths], dtype=np.int32)
    count = len(lengths)
    ids = np.arange(edges[-1], dtype=np.int32) + 100
    slots, rows = np.arange(count, dtype=np.int32), (edges[1:] - 1).astype(np.int32)
    return StepInputs(ids, edges, np.full(count, past, np.int32), slots, rows)


def test_the_shape_of_a_step(gpu: Any) -> None:
    from orinkit.engines.bound import shape_of

    found = shape_of(inputs(3, 1, past=7))
    assert (found.tokens, found.sequences, found.logit_rows) == (4, 2, 2)
    assert (found.max_step, found.max_length) == (3, 10)


def test_arrays_arrive_where_they_are_said_to_lie(gpu: Any) -> None:
    from orinkit.engines.bound import StepArrays

    arrays = StepArrays(gpu, Profile("prefill", 16, 4), "destinations")
    assert all(address % 256 == 0 for address in arrays.addresses.values())
    for lengths, destinations in (((3, 1), [2, -1]), ((5,), [0]), ((1, 1, 1), [1, 2, 3])):
        step = inputs(*lengths)
        arrays.send(step, destinations=np.array(destinations, np.int32))
        gpu.synchronise()
        for name, values in (*vars(step).items(), ("destinations", destinations)):
            host = gpu.pinned((len(values),), np.int32)
            gpu.receive(host, arrays.addresses[name], 4 * len(values))
            gpu.synchronise()
            assert host.array.tolist() == list(values), name
