# SPDX-License-Identifier: Apache-2.0
"""What stands behind the graph in a step, on the stand-ins for CUDA and the kernels, which are ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import standin
from host_kernels import HostKernels
from orinkit.engines.base import Limits, Seat
from orinkit.errors import EngineError
from orinkit.runtime.sampling import Sampling, settings_of

LIMITS = Limits(biases=4, stops=3, logprobs=2, run_ahead=2, snapshots=0)
SLOTS, CAPACITY, VOCAB = 2, 32, 40


@pytest.fixture
def gpu() -> Iterator[Any]:
    with standin.installed():
        from orinkit.engines.gpu import Gpu

        yield Gpu()


@pytest.fixture
def library(tmp_path: Path) -> HostKernels:
    path = tmp_path / "kernels"
    path.touch()
    return HostKernels(path)


def seat(**changes: Any) -> Seat:
    values = {"prompt": (1, 2, 2), "settings": settings_of(Sampling(top_k=5, seed=9)), "biases": {7: 1.5}}
    return Seat(**{**values, "stops": (3,), "max_length": 9, **changes})


def test_a_seat_lies_in_its_slots_rows(gpu: Any, library: Any) -> None:
    from orinkit.engines.choosing import Seats

    seats = Seats(gpu, library, SLOTS, CAPACITY, VOCAB, LIMITS)
    seats.put(1, seat(num_logprobs=2, is_constrained=True))
    gpu.synchronise()
    settings = seats.settings.row(1)[0]
    assert (settings["top_k"], settings["seed"], settings["num_biases"]) == (5, 9, 1)
    assert (settings["num_logprobs"], settings["is_constrained"]) == (2, 1)
    assert seats.stops.row(1).tolist() == [3, -1, -1]
    assert (seats.bias_ids.row(1)[0], seats.bias_values.row(1)[0], seats.max_lengths.row(1)[0]) == (7, 1.5, 9)
    counts = gpu.pinned((SLOTS, VOCAB), np.uint16)
    gpu.receive(counts, seats.counts, 2 * SLOTS * VOCAB)
    gpu.synchronise()
    assert counts.array[1].nonzero()[0].tolist() == [1, 2]
    assert set(counts.array[1][[1, 2]].tolist()) == {0x8000}


@pytest.mark.parametrize(
    "changes", [{"biases": dict.fromkeys(range(5), 1.0)}, {"stops": (1, 2, 3, 4)}, {"num_logprobs": 3}]
)
def test_more_than_the_limits_is_refused(gpu: Any, library: Any, changes: dict[str, Any]) -> None:
    from orinkit.engines.choosing import Seats

    with pytest.raises(EngineError, match="slot 0: expected at most 4 biases, 3 stop ids and 2 log-probabilities"):
        Seats(gpu, library, SLOTS, CAPACITY, VOCAB, LIMITS).put(0, seat(**changes))


def test_the_ring_tells_of_the_step_that_is_asked_for_and_no_other(gpu: Any, library: Any) -> None:
    from orinkit.engines.choosing import FAILED, IDLE, Ring

    ring = Ring(gpu, library, SLOTS, LIMITS)
    entries = ring._entries.array
    entries["step"][:] = 999
    entries[3][0] = (3, 1, 17, -0.5, 0, [(17, -0.5), (4, -1.5)])
    entries[3][1] = (3, 0, -1, 0.0, FAILED, [(0, 0.0), (0, 0.0)])
    entries[4][0] = (4, 1, -1, 0.0, IDLE, [(0, 0.0), (0, 0.0)])
    first, second = ring.read(3, {1: 2})
    assert (first.slot, first.token, first.logprob) == (1, 17, -0.5)
    assert first.top == ((17, -0.5), (4, -1.5))
    assert (second.slot, second.token) == (0, None)
    assert ring.read(3, {})[0].top == ()
    assert ring.read(4, {}) == ()
    assert ring.read(35, {}) == (), "the same place, another step"


def test_the_head_counts_from_nothing_again(gpu: Any, library: Any) -> None:
    from orinkit.engines.choosing import Ring

    ring = Ring(gpu, library, SLOTS, LIMITS)
    ring._head.array[0] = 5
    assert ring.may_have_told(4)
    assert not ring.may_have_told(5)
    ring.restart()
    assert not ring.may_have_told(0)
