# SPDX-License-Identifier: Apache-2.0
"""The rules that keep captures safe, on a GPU: one context for each size, padding that touches nothing, captures that
are there or said to be missing, memory that is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orinkit.bundle import Bundle
from orinkit.engines.base import Limits
from orinkit.errors import DeviceError
from orinkit.memory.needs import CAPTURE, decode_sizes, prefill_sizes
from orinkit.ops import VERSIONS
from orinkit.recipe import Shapes
from orinkit.runtime.pipeline import HostPipeline, open_pipeline
from orinkit.runtime.steps import Stepper
from toolkit.engines.conversations import GREEDY, PLAIN, Conversation, check_clear, make_eager, talk

pytestmark = pytest.mark.gpu
LIBRARY = Path(__file__).parents[3] / "build/kernels/liborin_kernels.so"
SHAPES = Shapes(capacity=1024, slots=8, chunk=32)
SIZES, PREFILLS = decode_sizes(SHAPES.slots), prefill_sizes(SHAPES.chunk)
LIMITS = Limits(biases=300, stops=32, logprobs=20, run_ahead=2, snapshots=0)


@pytest.fixture(scope="module")
def engine(demo_bundle: Path) -> Any:
    pytest.importorskip("cuda.bindings", reason="needs cuda-python", exc_type=ImportError)
    from orinkit.engines.cuda import CudaEngine
    from orinkit.errors import EngineError

    bundle = Bundle.open(demo_bundle, keys=None, supported=VERSIONS)
    try:
        return CudaEngine(bundle.graph, bundle.data, bundle.manifest.model, LIBRARY)
    except EngineError as error:
        pytest.skip(f"needs an NVIDIA GPU and `make kernels`: {error}")


def counted(launch: Callable[[], None], size: int, seen: Counter[int]) -> Callable[[], None]:
    def run() -> None:
        seen[size] += 1
        launch()

    return run


# R1: captures and prefill take turns


def test_a_thousand_steps_of_all_sizes_are_those_of_an_eager_run(engine: Any, record_property: Any) -> None:
    """To the last bit: tokens, their log-probabilities, and the alternatives."""
    captured: Any = open_pipeline(engine, SHAPES)
    seen: Counter[int] = Counter()
    prefills: Counter[int] = Counter()
    for steps, count in ((captured._captures.steps, seen), (captured._captures.prefills, prefills)):
        for size, step in steps.items():
            steps[size] = replace(step, launch=counted(step.launch, size, count))
    found = talk(captured, SHAPES, 1010)
    assert seen.total() >= 1000
    assert (set(seen), set(prefills)) == (set(SIZES), set(PREFILLS))
    assert found == talk(make_eager(open_pipeline(engine, SHAPES)), SHAPES, 1010)
    record_property("decode steps by size", dict(seen))
    record_property("short prefill steps by size", dict(prefills))
    record_property("sequences", len(found))


# R2: padding


def poison(engine: Any, contexts: Any) -> None:
    """NaN wherever a step has no business to look: all slots, the arena and the logits of earlier steps."""
    pieces = [(address, contexts.caches.sizes[name]) for name, address in contexts.caches.addresses.items()]
    arena, _ = contexts.prefill._memory
    for address, nbytes in (*pieces, (arena.address, arena.nbytes), (contexts.logits.address, contexts.logits.nbytes)):
        engine.gpu.fill(address, 0xFF, nbytes)
    engine.gpu.synchronise()


def untouched(engine: Any, caches: Any, slots: set[int]) -> bool:
    for name, address in caches.addresses.items():
        host = engine.gpu.pinned((caches.slots, caches.sizes[name] // caches.slots), np.uint8)
        engine.gpu.receive(host, address, caches.sizes[name])
        engine.gpu.synchronise()
        if (host.array[sorted(slots)] != 0xFF).any():
            return False
    return True


def answers(pipeline: Any, slots: list[int], ids: tuple[int, ...] = ()) -> Any:
    """Sequences in these slots, decoded side by side; without `ids` of any prompt."""
    conversation = Conversation(pipeline, SHAPES, seed=len(slots), seat=PLAIN)
    for slot in slots:
        conversation.join(slot, GREEDY, ids)
    for _ in range(6):
        conversation.decode()
    found = conversation.answers()
    for slot in slots:
        conversation.leave(slot)
    return found


def test_every_captured_size_with_every_real_count(engine: Any, record_property: Any) -> None:
    """The rows between the slots that run are padding, and all that is not theirs holds NaN, before and afterwards."""
    pipeline: Any = open_pipeline(engine, SHAPES)
    exact = HostPipeline(Stepper(engine, SHAPES))
    compared = 0
    for size in SIZES:
        for count in range(1, size + 1):
            slots = [*range(count - 1), size - 1]
            poison(engine, pipeline._contexts)
            compared += check_clear(answers(pipeline, slots), answers(exact, slots))
            assert untouched(engine, pipeline._contexts.caches, set(range(SHAPES.slots)) - set(slots)), (size, count)
    assert compared > 300
    record_property("tokens compared", compared)


def test_every_captured_prefill_with_every_real_count(engine: Any, record_property: Any) -> None:
    """The tokens behind the real ones belong to nobody; every second prompt is a rest behind a chunk."""
    pipeline: Any = open_pipeline(engine, SHAPES)
    exact = HostPipeline(Stepper(engine, SHAPES))
    compared = 0
    for count in range(1, max(PREFILLS) + 1):
        slot, ids = count % SHAPES.slots, tuple(7 * j % 4000 + 1 for j in range(count + SHAPES.chunk * (count % 2)))
        poison(engine, pipeline._contexts)
        found, wanted = (answers(each, [slot], ids) for each in (pipeline, exact))
        compared += check_clear(found, wanted)
        assert untouched(engine, pipeline._contexts.caches, set(range(SHAPES.slots)) - {slot}), count
    assert compared > 100
    record_property("tokens compared", compared)


# R3: a capture that fails is said to be missing


def test_a_failed_capture_is_told_and_changes_no_token(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = talk(open_pipeline(engine, SHAPES), SHAPES, 40)
    whole = engine.gpu.capture

    def fail_twice(work: Callable[[], None]) -> Any:
        tried.append(work)
        if len(tried) in (2, len(PREFILLS) + 2):
            raise DeviceError("CUDA error 900, cudaErrorStreamCaptureUnsupported", 900)
        return whole(work)

    tried: list[Any] = []
    monkeypatch.setattr(engine.gpu, "capture", fail_twice)
    pipeline = open_pipeline(engine, SHAPES)
    assert len(tried) == len(SIZES) + len(PREFILLS)
    reason = "are not captured: CUDA error 900, cudaErrorStreamCaptureUnsupported"
    assert pipeline.degraded == f"prefill steps of 16 tokens {reason}; decode steps of 4 sequences {reason}"
    assert talk(pipeline, SHAPES, 40) == expected


def test_an_error_that_ends_the_device_is_no_missing_capture(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Callable[[], None]) -> None:
        raise DeviceError("CUDA error 700, cudaErrorIllegalAddress", 700)

    monkeypatch.setattr(engine.gpu, "capture", fail)
    with pytest.raises(DeviceError, match="700"):
        open_pipeline(engine, SHAPES)


# R4: what captures take


def free() -> int:
    """Bytes of device memory."""
    from cuda.bindings import runtime as rt

    return int(rt.cudaMemGetInfo()[1])


def test_captures_take_no_more_than_the_plan_says(
    engine: Any, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """Nodes and their arguments: they share the arena and what follows, nothing of ours is allocated for them."""
    from orinkit.engines.captures import Captures, Contexts, Warm

    warm = Warm(Contexts(engine, engine.caches(SHAPES.slots, SHAPES.capacity, SHAPES.chunk), SHAPES.chunk, LIMITS))
    whole, each, allocated = engine.gpu.capture, [], engine.gpu.num_allocations

    def measured(work: Callable[[], None]) -> Any:
        before = free()
        launch = whole(work)
        each.append(before - free())
        return launch

    monkeypatch.setattr(engine.gpu, "capture", measured)
    before = free()
    captures = Captures(warm)
    total = before - free()
    names = [*(f"prefill {size}" for size in captures.prefills), *(f"decode {size}" for size in captures.steps)]
    record_property("bytes by captured size", dict(zip(names, each, strict=True)))
    record_property("bytes of all captured sizes after their first launch", total)
    assert engine.gpu.num_allocations == allocated
    assert total <= CAPTURE * (len(SIZES) + len(PREFILLS))
