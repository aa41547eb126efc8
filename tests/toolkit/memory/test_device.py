# SPDX-License-Identifier: Apache-2.0
"""The plan of the `cuda` engine beside what the driver says was taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orinkit.engines.base import Profile, Seat
from orinkit.memory.needs import memory_plan
from orinkit.model import Attention, GatedDelta, LayerSpec, ModelSpec, Rope
from orinkit.runtime.sampling import Sampling, settings_of
from toolkit.memory import graphs
from toolkit.memory.models import recipe

pytestmark = pytest.mark.gpu
LIBRARY = Path(__file__).parents[3] / "build/kernels/liborin_kernels.so"
TOLERANCE = 0.03

ATTENTION = Attention(8, 2, 256, 64, 1 / 16, gate=True, qk_norm=True)
DELTA = GatedDelta(16, 16, 128, 128, 4)
LAYERS = tuple(
    LayerSpec(3584, attention=ATTENTION) if index % 4 == 3 else LayerSpec(3584, gated_delta=DELTA)
    for index in range(24)
)
QWEN = ModelSpec("qwen3.5", 1024, 248320, 1e-6, True, 262144, Rope(1e7), LAYERS)
"""The shape of Qwen3.5-0.8B."""


@pytest.fixture
def runtime() -> Any:
    pytest.importorskip("cuda.bindings", reason="needs cuda-python", exc_type=ImportError)
    from cuda.bindings import runtime

    if runtime.cudaGetDeviceCount() != (runtime.cudaError_t.cudaSuccess, 1) or not LIBRARY.exists():
        pytest.skip("needs one NVIDIA GPU and `make kernels`")
    return runtime


@pytest.mark.parametrize("embedding", ["float16", "int4"])
def test_the_plan_is_what_the_device_gives(embedding: str, tmp_path: Path, runtime: Any) -> None:
    """Beyond the context and the modules, which are there before."""
    from orinkit.engines.cuda import CudaEngine
    from orinkit.engines.gpu import Gpu
    from orinkit.engines.kernels import KernelLibrary
    from orinkit.runtime.batch import Batch, Row
    from orinkit.runtime.pipeline import open_pipeline

    how = recipe({"capacity": 8192, "slots": 4, "chunk": 512}, embedding=embedding)
    path = graphs.write(tmp_path, QWEN, how)
    gpu = Gpu()
    sm_count = KernelLibrary(LIBRARY).device.sm_count
    gpu.synchronise()
    before = runtime.cudaMemGetInfo()[1]
    pipeline = open_pipeline(CudaEngine(path, path.parent / "model.data", QWEN, LIBRARY), how.shapes)
    ids = tuple(range(512))
    pipeline.seat(0, Seat(ids, settings_of(Sampling()), {}, (), 600))
    pipeline.prefill(Batch.of([Row(0, 0, ids)], Profile("prefill", 512, 4)).inputs())
    pipeline.decode([0], 513)
    assert len(pipeline.collect(0)) == 2
    used = before - runtime.cudaMemGetInfo()[1]
    planned = memory_plan(QWEN, how, "cuda", sm_count=sm_count).total("device")
    assert used == pytest.approx(planned, rel=TOLERANCE)
