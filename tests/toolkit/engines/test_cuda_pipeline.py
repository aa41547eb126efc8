# SPDX-License-Identifier: Apache-2.0
"""Captured decode gives the tokens of the `onnxruntime` engine, whoever shares the steps, and touches nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orinkit.bundle import Bundle
from orinkit.engines import open_engine
from orinkit.engines.base import Engine
from orinkit.engines.waiting import TOGETHER
from orinkit.ops import VERSIONS
from orinkit.runtime.pipeline import RUN_AHEAD, HostPipeline, open_pipeline
from orinkit.runtime.request import Finished, Request, Token
from orinkit.runtime.sampling import Sampling
from orinkit.runtime.scheduler import Scheduler
from orinkit.runtime.start import open_tokenizer
from orinkit.runtime.steps import Stepper

pytestmark = pytest.mark.gpu
LIBRARY = Path(__file__).parents[3] / "build/kernels/liborin_kernels.so"
SLOTS = 8
MARGIN = 0.02
"""Two logits that are closer may change places between an engine in float16 and one in float32."""


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle.open(demo_bundle, keys=None, supported=VERSIONS)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Any:
    pytest.importorskip("cuda.bindings", reason="needs cuda-python", exc_type=ImportError)
    from orinkit.engines.cuda import CudaEngine
    from orinkit.errors import EngineError

    try:
        return CudaEngine(bundle.graph, bundle.data, bundle.manifest.model, LIBRARY)
    except EngineError as error:
        pytest.skip(f"needs an NVIDIA GPU and `make kernels`: {error}")


def serve(engine: Engine, bundle: Bundle, slots: int = SLOTS, capacity: int = 1024) -> Scheduler:
    shapes = replace(bundle.manifest.recipe.shapes, slots=slots, capacity=capacity)
    return Scheduler(open_pipeline(engine, shapes), shapes, open_tokenizer(bundle), bundle.manifest.model)


@pytest.fixture(scope="module")
def cuda(engine: Any, bundle: Bundle) -> Scheduler:
    return serve(engine, bundle)


@pytest.fixture(scope="module")
def cpu(bundle: Bundle) -> Scheduler:
    return serve(open_engine("onnxruntime", bundle.graph, bundle.manifest.model), bundle)


def prompts(count: int) -> list[tuple[int, ...]]:
    return [tuple((7 * i + 13 * j) % 4000 + 1 for j in range(3 + 29 * i % 300)) for i in range(count)]


def run(served: Scheduler, requests: list[Request], cancel_after: dict[int, int] | None = None) -> list[list[int]]:
    """The tokens of each request; request i of `cancel_after` is cancelled when it has that many."""
    numbers = [served.submit(request) for request in requests]
    tokens: dict[int, list[int]] = {number: [] for number in numbers}
    while not served.is_idle:
        for event in served.step():
            if isinstance(event, Finished):
                assert event.error is None, event.error
            if isinstance(event, Token):
                tokens[event.request].append(event.token)
                index = numbers.index(event.request)
                if cancel_after and cancel_after.get(index) == len(tokens[event.request]):
                    served.cancel(event.request)
    return [tokens[number] for number in numbers]


def certain(served: Scheduler, requests: list[Request]) -> list[list[int]]:
    """The tokens of each request up to the first that is no clear choice between the best two."""
    found = []
    for request in requests:
        served.submit(request)
        tokens: list[int] = []
        is_clear = True
        while not served.is_idle:
            for event in served.step():
                if isinstance(event, Token):
                    is_clear = is_clear and event.top[0][1] - event.top[1][1] > MARGIN
                    tokens += [event.token] * is_clear
        found.append(tokens)
    return found


@pytest.fixture(scope="module")
def expected(cpu: Scheduler) -> list[list[int]]:
    return [run(cpu, [Request(ids, max_tokens=40)])[0] for ids in prompts(50)]


def test_fifty_prompts_alone(cuda: Scheduler, expected: list[list[int]]) -> None:
    for ids, tokens in zip(prompts(50), expected, strict=True):
        assert run(cuda, [Request(ids, max_tokens=40)])[0] == tokens, len(ids)


def test_neighbours_come_and_go(cuda: Scheduler, expected: list[list[int]]) -> None:
    """All at once over eight slots, some cancelled on the way."""
    cancelled = {index: 5 + index % 20 for index in range(0, 50, 3)}
    found = run(cuda, [Request(ids, max_tokens=40) for ids in prompts(50)], cancelled)
    for index, (tokens, wanted) in enumerate(zip(found, expected, strict=True)):
        assert tokens == wanted[: len(tokens)], index
        asked = min(cancelled.get(index, 40), len(wanted))
        assert asked <= len(tokens) <= asked + (RUN_AHEAD + TOGETHER - 1 if index in cancelled else 0), index


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.8, seed=5),
        Sampling(temperature=1.0, top_k=20, top_p=0.9, min_p=0.02, seed=6),
        Sampling(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2),
        Sampling(logit_bias={100: 5.0, 200: -100.0}, temperature=0.5, seed=7),
    ],
    ids=["temperature", "cuts", "penalties", "bias"],
)
def test_sampling_is_that_of_the_host(engine: Any, bundle: Bundle, sampling: Sampling) -> None:
    """One slot, so that both see logits of the same steps of the same kernels, to the last bit."""
    shapes = replace(bundle.manifest.recipe.shapes, slots=1, capacity=1024)
    on_host = HostPipeline(Stepper(engine, shapes))
    chosen_on_host = Scheduler(on_host, shapes, open_tokenizer(bundle), bundle.manifest.model)
    requests = [Request(ids, sampling, max_tokens=30) for ids in prompts(8)]
    assert run(serve(engine, bundle, slots=1), requests) == run(chosen_on_host, requests)


def test_log_probabilities(cuda: Scheduler, cpu: Scheduler) -> None:
    def told(served: Scheduler) -> list[Token]:
        served.submit(Request(prompts(9)[8], max_tokens=12, top_logprobs=5))
        events = []
        while not served.is_idle:
            events += served.step()
        return [event for event in events if isinstance(event, Token)]

    for found, wanted in zip(told(cuda), told(cpu), strict=True):
        assert (found.token, len(found.top)) == (wanted.token, 5)
        assert found.top[0][0] == found.token
        assert found.top[0][1] == pytest.approx(found.logprob, abs=1e-4)
        assert found.logprob == pytest.approx(wanted.logprob, abs=0.05)
        assert [value for _, value in found.top] == pytest.approx([value for _, value in wanted.top], abs=0.05)


def test_a_stop_token_ends_the_answer(cuda: Scheduler, expected: list[list[int]]) -> None:
    ids, stop = prompts(4)[3], expected[3][7]
    first = expected[3].index(stop)
    assert run(cuda, [Request(ids, max_tokens=40, stop_tokens=(stop,))])[0] == expected[3][: first + 1]


def test_nothing_is_allocated_while_serving(engine: Any, cuda: Scheduler) -> None:
    before = engine.gpu.num_allocations
    run(cuda, [Request(ids, max_tokens=10) for ids in prompts(20)])
    assert engine.gpu.num_allocations == before


def test_every_size_with_every_count(engine: Any, bundle: Bundle, expected: list[list[int]]) -> None:
    """R2: free slots and their rows of the caches hold 0xFF; they do so afterwards."""
    for slots in (1, 2, 3, 5, 8):
        served = serve(engine, bundle, slots, 512)
        caches: Any = served._pipeline._contexts.caches  # type: ignore[attr-defined]
        for count in range(1, slots + 1):
            fill(engine, caches)
            served._snapshots.forget()  # what it knows of the rows is no longer so
            found = run(served, [Request(ids, max_tokens=6) for ids in prompts(count)])
            assert found == [tokens[:6] for tokens in expected[:count]]
            assert untouched(engine, caches, range(count, slots))


def fill(engine: Any, caches: Any) -> None:
    for name, address in caches.addresses.items():
        engine.gpu.fill(address, 0xFF, caches.sizes[name])
    engine.gpu.synchronise()


def untouched(engine: Any, caches: Any, slots: range) -> bool:
    for name, address in caches.addresses.items():
        host = engine.gpu.pinned((caches.sizes[name],), np.uint8)
        engine.gpu.receive(host, address, caches.sizes[name])
        engine.gpu.synchronise()
        rows = host.array.reshape(caches.slots, -1)
        if any((rows[slot] != 0xFF).any() for slot in slots):
            return False
    return True


def test_a_thousand_steps_of_all_kinds(cuda: Scheduler, cpu: Scheduler) -> None:
    """R1: prefill and decode steps of every size in turn."""
    requests = [Request(ids, max_tokens=1 + 7 * index % 31, top_logprobs=2) for index, ids in enumerate(prompts(90))]
    for tokens, wanted in zip(run(cuda, requests), certain(cpu, requests), strict=True):
        assert tokens[: len(wanted)] == wanted


@pytest.mark.parametrize("edge", [128, 256, 512, 1023])
def test_around_a_threshold(engine: Any, bundle: Bundle, cpu: Scheduler, edge: int) -> None:
    """R5: the context passes chunk, split and capacity while a captured step decodes."""
    served = serve(engine, bundle, 1, 1024)
    length = min(edge - 6, 1010)
    request = Request(tuple(1 + j % 4000 for j in range(length)), max_tokens=min(13, 1024 - length))
    assert run(served, [request]) == run(cpu, [request])


def test_a_kept_beginning_changes_no_token(engine: Any, bundle: Bundle) -> None:
    served = serve(engine, bundle)
    system = tuple(1 + 7 * j % 4000 for j in range(150))
    asked = [Request((*system, *rest), max_tokens=20, cuts=(150,)) for rest in ((5, 6), (7,), (8, 9, 10))]
    without = [run(serve(engine, bundle), [request])[0] for request in asked]
    assert [run(served, [request])[0] for request in asked] == without
    served.submit(asked[0])
    ends = []
    while not served.is_idle:
        ends += [event for event in served.step() if isinstance(event, Finished)]
    assert ends[0].timings.reused_tokens == 150
