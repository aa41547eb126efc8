# SPDX-License-Identifier: Apache-2.0
"""Device memory, copies and captures, on any NVIDIA GPU."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.gpu
pytest.importorskip("cuda.bindings", reason="needs cuda-python", exc_type=ImportError)


def test_copies_go_there_and_back_and_captures_replay() -> None:
    from orinkit.engines.gpu import Gpu
    from orinkit.errors import EngineError

    try:
        gpu = Gpu()
    except EngineError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    data = np.arange(1000, dtype=np.float32)
    memory, back = gpu.allocate(data.nbytes), gpu.pinned(data.shape, np.float32)
    assert gpu.num_allocations == 2
    gpu.upload(memory.address, data)
    gpu.receive(back, memory.address, data.nbytes)
    gpu.synchronise()
    assert np.array_equal(back.array, data)
    replay = gpu.capture(lambda: gpu.fill(memory.address, 0, data.nbytes))
    gpu.upload(memory.address, data)
    replay()
    gpu.receive(back, memory.address, data.nbytes)
    gpu.synchronise()
    assert not back.array.any()
    assert gpu.num_allocations == 2
