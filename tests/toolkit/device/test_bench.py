# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from orinkit.device.bench import Bench, Workload
from orinkit.device.sensors import Reading
from orinkit.errors import ConfigError, EngineError
from orinkit.memory.speed import Speed
from orinkit.recipe import Shapes
from orinkit.runtime.pipeline import HostPipeline
from orinkit.runtime.scheduler import Scheduler
from orinkit.runtime.steps import Stepper
from orinkit.target import Gpu
from toolkit.bundle.samples import manifest
from toolkit.runtime.fake_engine import FakeEngine
from toolkit.runtime.serving import SPEC, TOKENIZER

SHAPES = Shapes(capacity=256, slots=3, chunk=16)
WORKLOAD = Workload(prompts=(5, 40), batches=(1, 3), depths=(0, 33), tokens=7, repeats=2)
GPU = Gpu(87, 16, 4, 64, 204.8, clock_mhz=1300)


def bench(engine: FakeEngine | None = None, speed: Speed | None = None, eos: tuple[int, ...] = SPEC.eos) -> Bench:
    model = replace(SPEC, eos=eos)
    scheduler = Scheduler(HostPipeline(Stepper(engine or FakeEngine(SPEC.vocab), SHAPES)), SHAPES, TOKENIZER, model)
    return Bench(scheduler, model, SHAPES, speed, lambda: Reading(power_w=12.5, gpu_mhz=1300))


def prompts_of(engine: FakeEngine) -> Iterator[tuple[int, ...]]:
    """First chunks of all prompts that an engine was given."""
    for name, inputs in engine.seen:
        edges = inputs.cu_seqlens
        for index, past in enumerate(inputs.past_lens):
            if name == "prefill" and past == 0:
                yield tuple(inputs.input_ids[edges[index] : edges[index + 1]].tolist())


def test_every_length_and_depth_with_every_batch() -> None:
    cases = list(bench().run(WORKLOAD))
    kinds = [("prefill", 5), ("prefill", 40), ("decode", 0), ("decode", 33)]
    assert [(case.kind, case.tokens, case.batch) for case in cases] == [
        (*kind, batch) for batch in (1, 3) for kind in kinds
    ]
    for case in cases:
        assert not case.skipped
        assert case.slowest is not None
        assert case.fastest is not None
        assert case.tokens_per_second is not None
        assert 0 < case.slowest <= case.tokens_per_second <= case.fastest
        assert case.host_us is not None
        assert case.reading == Reading(power_w=12.5, gpu_mhz=1300)
        assert (case.predicted, case.ratio) == (None, None)


def test_no_two_prompts_are_alike() -> None:
    engine = FakeEngine(SPEC.vocab)
    list(bench(engine).run(replace(WORKLOAD, prompts=(40,), depths=(33,))))
    prompts = list(prompts_of(engine))
    assert len(prompts) == (1 + 2) + 1 + (1 + 6) + 3  # a warm-up, repeats of each batch, sequences that decode
    assert len(set(prompts)) == len(prompts)


def test_all_sequences_decode_together_while_time_counts() -> None:
    engine = FakeEngine(SPEC.vocab)
    list(bench(engine).run(Workload((), (3,), (33,), tokens=7, repeats=2)))
    steps = [len(inputs.slots) for name, inputs in engine.seen if name == "decode"]
    assert steps[-14:] == [3] * 14


def test_an_end_token_does_not_end_a_sequence() -> None:
    """All tokens but one would end it; that one is chosen."""
    assert list(bench(eos=tuple(range(1, SPEC.vocab))).run(Workload((), (1,), (0,), tokens=4, repeats=1)))


def test_what_does_not_fit_is_skipped_with_the_reason() -> None:
    cases = list(bench().run(Workload((16, 256), (1, 4), (250,), tokens=8, repeats=1)))
    reasons = {(case.kind, case.batch, case.tokens): case.skipped for case in cases}
    assert reasons["prefill", 1, 16] == ""
    assert reasons["prefill", 1, 256] == "257 tokens need as much capacity, the bundle has 256"
    assert reasons["decode", 1, 250].endswith("the bundle has 256")
    assert reasons["prefill", 4, 16] == "4 sequences need as many slots, the bundle has 3"
    assert all(case.tokens_per_second is None for case in cases if case.skipped)


@pytest.mark.parametrize("step", [1, 4, 20])
def test_a_fault_of_the_engine_is_raised(step: int) -> None:
    """While a prompt is read and while tokens are decoded."""
    with pytest.raises(EngineError, match="an injected fault"):
        list(bench(FakeEngine(SPEC.vocab, faults={step: "raise"})).run(Workload((20,), (1,), (0,))))


def test_the_plan_predicts_beside() -> None:
    speed = Speed(SPEC, manifest().recipe, GPU)
    prefill, decode = bench(speed=speed).run(Workload((40,), (1,), (33,), tokens=4, repeats=1))
    expected = speed.prefill(40)
    assert expected is not None
    assert prefill.predicted == expected.tokens_per_second
    assert decode.predicted == speed.decode(1, 33).tokens_per_second
    assert decode.tokens_per_second is not None
    assert decode.ratio == decode.tokens_per_second / decode.predicted


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        (Workload(prompts=(0,)), "prompt: expected 1 to 1048576, found 0"),
        (Workload(batches=(0,)), "batch: expected 1"),
        (Workload(depths=(-1,)), "depth: expected 0"),
        (Workload(tokens=0), "tokens: expected 1"),
        (Workload(repeats=0), "repeat: expected 1"),
    ],
)
def test_wrong_workloads(workload: Workload, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list(bench().run(workload))
