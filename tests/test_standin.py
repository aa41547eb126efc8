# SPDX-License-Identifier: Apache-2.0
"""The stand-in for TensorRT keeps the rules that it is there for: a runner that breaks one of them fails on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import standin
from orinkit.engines import open_engine
from orinkit.recipe import Shapes
from orinkit.runtime.batch import Batch, Row

SHAPES = Shapes(capacity=1024, slots=4, chunk=16)
STEP = ("input_ids", "cu_seqlens", "past_lens", "slots", "logit_rows")


class Runner:
    """Drives a context by hand, as a careless runner would; the good one is `orinkit.engines.trt`."""

    def __init__(self, engine: Any) -> None:
        import tensorrt

        self.engine, self.gpu = engine, engine.gpu
        strategy = tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED
        self.context = engine.engine.create_execution_context(strategy)
        self.inputs = engine.gpu.allocate(256 * len(STEP))
        self.logits = engine.gpu.allocate(4 * SHAPES.slots * engine.vocab)
        self.staged = engine.gpu.pinned((64 * len(STEP),), np.int32)

    def bind(self, skip: str = "") -> None:
        caches = self.engine.caches(SHAPES.slots, SHAPES.capacity, SHAPES.chunk)
        self.caches = caches
        addresses = self.engine.addresses(caches) | {"logits": self.logits.address}
        addresses |= {name: self.inputs.address + 256 * index for index, name in enumerate(STEP)}
        for name, address in addresses.items():
            if name != skip:
                assert self.context.set_tensor_address(name, address)

    def memory(self, shift: int = 0, less: int = 0) -> None:
        arena = self.engine.arena
        self.context.set_device_memory(arena.address + shift, arena.nbytes - less)

    def shape(self, rows: list[Row], index: int) -> bool:
        inputs = Batch.of(rows, self.engine.limits(index)).inputs()
        for place, name in enumerate(STEP):
            values = getattr(inputs, name)
            self.staged.array[64 * place : 64 * place + len(values)] = values
        self.gpu.send(self.inputs.address, self.staged, self.staged.array.nbytes)
        return all(self.context.set_input_shape(name, (len(getattr(inputs, name)),)) for name in STEP)

    def run(self) -> bool:
        return bool(self.context.execute_async_v3(self.gpu.stream))


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with standin.installed():
        yield standin.built_bundle(demo_bundle, tmp_path_factory.mktemp("rules") / "demo", SHAPES)


@pytest.fixture
def runner(bundle: Any) -> Runner:
    from cuda.bindings import runtime

    runtime.DEVICE.reset()
    return Runner(open_engine("tensorrt", bundle.graph, bundle.manifest.model))


PROMPT = [Row(0, 0, (1, 2, 3))]
NEXT = [Row(0, 3, (4,))]


def ready(runner: Runner, rows: list[Row] = PROMPT, index: int = 0) -> None:
    runner.memory()
    runner.context.set_optimization_profile_async(index, runner.gpu.stream)
    runner.bind()
    assert runner.shape(rows, index)


def why(runner: Runner) -> str:
    return str(runner.engine.errors.describe())


def test_by_the_rules_a_step_runs(runner: Runner) -> None:
    ready(runner)
    assert runner.run()
    runner.gpu.synchronise()
    assert why(runner) == ""


def test_a_switching_runner_fails_as_the_report_says(runner: Runner) -> None:
    """NVIDIA/TensorRT-Edge-LLM issue 50: decode captured on profile 1, then back to profile 0 for the next prompt."""
    from orinkit.errors import DeviceError

    ready(runner)
    assert runner.run()
    assert runner.context.set_optimization_profile_async(1, runner.gpu.stream)
    assert runner.shape(NEXT, 1)
    assert runner.run()
    launch = runner.gpu.capture(lambda: None if runner.run() else pytest.fail(why(runner)))
    launch()
    runner.gpu.synchronise()
    assert runner.context.set_optimization_profile_async(0, runner.gpu.stream)
    assert runner.shape([Row(1, 0, (5, 6))], 0)
    assert not runner.run()
    assert "illegal memory access was encountered) in shapeChangeHelper" in why(runner)
    for call in (runner.gpu.synchronise, launch):
        with pytest.raises(DeviceError, match="CUDA error 700"):
            call()
    assert not runner.run()


def test_switching_without_a_capture_is_allowed(runner: Runner) -> None:
    ready(runner)
    assert runner.run()
    assert runner.context.set_optimization_profile_async(1, runner.gpu.stream)
    assert runner.shape(NEXT, 1)
    assert runner.run()


def test_a_profile_has_to_be_taken_before_its_shapes(runner: Runner) -> None:
    ready(runner)
    assert runner.context.set_optimization_profile_async(1, runner.gpu.stream)
    assert sorted(STEP) == runner.context.infer_shapes()
    assert not runner.run()
    assert "the shape of cu_seqlens is not set" in why(runner)


def test_shapes_stay_inside_of_the_profile(runner: Runner) -> None:
    ready(runner)
    for size in (0, SHAPES.chunk + 1):
        assert not runner.context.set_input_shape("input_ids", (size,))
    assert "is outside of profile 0" in why(runner)


@pytest.mark.parametrize("name", ["slots", "layers.0.norm1", "rec_0", "rec_0_out", "logits"])
def test_everything_has_to_be_bound(name: str, runner: Runner) -> None:
    runner.memory()
    runner.bind(skip=name)
    assert runner.shape(PROMPT, 0)
    assert not runner.run()
    assert f"Address is not set for {name}" in why(runner)


@pytest.mark.parametrize(("shift", "less"), [(0, 1), (128, 0), (0, 1 << 30)])
def test_the_arena_is_as_large_and_aligned_as_the_engine_asks(shift: int, less: int, runner: Runner) -> None:
    ready(runner)
    runner.memory(shift, less)
    assert not runner.run()
    assert "device memory: expected" in why(runner)


def test_the_arena_is_scratch(runner: Runner) -> None:
    """What lies there does not outlive a step."""
    import ctypes

    ready(runner)
    ctypes.memset(runner.engine.arena.address, 0, 64)
    assert runner.run()
    assert (ctypes.c_ubyte * 64).from_address(runner.engine.arena.address)[0] == 0xFF


def test_the_default_stream_is_refused(runner: Runner) -> None:
    ready(runner)
    assert not runner.context.execute_async_v3(0)
    assert "the default stream synchronises the device" in why(runner)


def test_a_synchronise_under_capture_invalidates_it(runner: Runner) -> None:
    from orinkit.errors import DeviceError

    with pytest.raises(DeviceError, match=r"CUDA error 90[01]"):
        runner.gpu.capture(runner.gpu.synchronise)


def test_memory_that_moved_faults_the_captured_step(runner: Runner) -> None:
    from orinkit.errors import DeviceError

    ready(runner)
    assert runner.run()
    launch = runner.gpu.capture(lambda: runner.run() and None)
    launch()
    runner.gpu.synchronise()
    del runner.caches
    launch()
    with pytest.raises(DeviceError, match="CUDA error 700"):
        runner.gpu.synchronise()
