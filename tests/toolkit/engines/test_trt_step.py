# SPDX-License-Identifier: Apache-2.0
"""Steps and contexts of a plan on the stand-in for TensorRT, which is ours: what they refuse, and captures."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import standin
from orinkit.bundle import Bundle
from orinkit.engines.base import Profile, StepInputs
from orinkit.errors import DeviceError, EngineError
from orinkit.recipe import Shapes
from orinkit.runtime.batch import Batch, Row, Sizes
from orinkit.runtime.steps import Stepper

SHAPES = Shapes(capacity=1024, slots=4, chunk=32)


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    with standin.installed():
        yield standin.built_bundle(demo_bundle, tmp_path_factory.mktemp("step") / "demo", SHAPES)


@pytest.fixture
def engine(bundle: Bundle) -> Any:
    return standin.opened(bundle)


def step(rows: list[Row], profile: Profile) -> StepInputs:
    return Batch.of(rows, profile).inputs()


class CapturedDecode:
    """A decode step of `count` sequences, warmed up on padding and captured."""

    def __init__(self, engine: Any, caches: Any, count: int) -> None:
        from orinkit.engines.bound import StepArrays, shape_of

        self.engine, self.profile = engine, Profile("decode", count, count)
        self.inputs = StepArrays(engine.gpu, self.profile)
        self.logits = engine.gpu.allocate(4 * count * engine.vocab)
        self.received = engine.gpu.pinned((count, engine.vocab), np.float32)
        self.step = engine.bind(self.profile, caches, self.inputs.addresses | {"logits": self.logits.address})
        probe = step([Row(slot, 0, (1,)) for slot in range(count)], self.profile)
        padding = replace(probe, slots=np.full(count, -1, np.int32))
        self.shape = shape_of(padding)
        self.inputs.send(padding)
        self.step.enqueue(self.shape)
        self.launch = engine.gpu.capture(lambda: self.step.enqueue(self.shape))

    def run(self, inputs: StepInputs) -> Any:
        self.inputs.send(inputs)
        self.launch()
        self.engine.gpu.receive(self.received, self.logits.address, self.received.array.nbytes)
        self.engine.gpu.synchronise()
        return self.received.array.copy()


def test_captures_beside_prefill_equal_the_eager_run(engine: Any) -> None:
    """Case R1: captured decode of three sizes, and prefill in between, each in its own context, over one arena."""
    caches = engine.caches(SHAPES.slots, SHAPES.capacity, SHAPES.chunk)
    captures = {count: CapturedDecode(engine, caches, count) for count in (1, 2, 4)}
    ahead = engine.context(Profile("prefill", SHAPES.chunk, 4), caches)
    eager = Stepper(engine, SHAPES)
    lengths = [0] * 4
    rng = np.random.default_rng(0)
    launches = standin.device().num_launches
    for turn in range(60):
        size = int(rng.integers(0, 4))
        if size == 0:
            slot = turn % 4
            tokens = tuple(int(token) for token in rng.integers(1, 4000, rng.integers(1, SHAPES.chunk)))
            lengths[slot] = lengths[slot] if lengths[slot] < 900 else 0
            rows = [Row(slot, lengths[slot], tokens)]
            found, expected = ahead.run(step(rows, ahead.profile)).copy(), eager.prefill(rows)
        else:
            count = (1, 2, 4)[size - 1]
            rows = [Row(slot, lengths[slot], (int(rng.integers(1, 4000)),)) for slot in range(count)]
            found, expected = captures[count].run(step(rows, captures[count].profile)), eager.decode(rows)
        for row in rows:
            lengths[row.slot] += len(row.tokens)
        assert np.array_equal(found, expected)
    assert standin.device().num_launches - launches > 20


def test_a_capture_without_a_warm_up_is_refused(engine: Any) -> None:
    decode = CapturedDecode(engine, engine.caches(4, 1024, 32), 2)
    fresh = engine.bind(
        decode.profile, engine.caches(4, 1024, 32), decode.inputs.addresses | {"logits": decode.logits.address}
    )
    with pytest.raises(EngineError, match=r"capturing|Capture"):
        engine.gpu.capture(lambda: fresh.enqueue(decode.shape))


def test_a_captured_step_keeps_its_sizes(engine: Any) -> None:
    decode = CapturedDecode(engine, engine.caches(4, 1024, 32), 2)
    with pytest.raises(EngineError, match="the context was captured with other shapes"):
        decode.step.enqueue(replace(decode.shape, tokens=1, sequences=1))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([Row(0, 0, (1,) * 33)], "expected a step within .*found 33 tokens"),
        ([Row(slot, 0, (1,)) for slot in range(5)], "found 5 tokens of 5 sequences"),
        ([Row(0, 1020, (1,) * 5)], "slots below 4 of at most 1024 tokens, found 1025 tokens in slot 0"),
        ([Row(4, 0, (1,))], "found 1 tokens in slot 4"),
    ],
)
def test_a_step_beyond_profile_or_caches_changes_nothing(rows: list[Row], message: str, engine: Any) -> None:
    context = engine.context(Profile("prefill", 32, 4), engine.caches(4, 1024, 32))
    inputs = step(rows, Profile("any", 64, 8))
    with pytest.raises(EngineError, match=message):
        context.run(inputs)
    assert context.run(step([Row(0, 0, (1, 2))], context.profile)).shape[0] == 1


def test_an_empty_input_is_refused(engine: Any) -> None:
    context = engine.context(Profile("prefill", 32, 4), engine.caches(4, 1024, 32))
    inputs = step([Row(0, 0, (1, 2))], context.profile)
    with pytest.raises(EngineError, match="expected no empty input, found 2 tokens, 1 sequences, 0 rows"):
        context.run(replace(inputs, logit_rows=np.zeros(0, np.int32)))


def test_padded_sequences_beside_several_tokens_want_padded_tokens(engine: Any) -> None:
    """The plugins see shapes, no lengths: with T <= B they take each sequence for one of at most one token."""
    context = engine.context(Profile("prefill", 32, 4), engine.caches(4, 1024, 32))
    rows = [Row(0, 0, (1, 2))]
    with pytest.raises(
        EngineError, match=r"expected at most one token of each sequence .* found 2; pad the tokens too"
    ):
        context.run(Batch.of(rows, context.profile, Sizes(2, 3, 1)).inputs())
    padded = context.run(Batch.of(rows, context.profile, Sizes(4, 3, 3)).inputs())[0].copy()
    assert np.array_equal(padded, context.run(step(rows, context.profile))[0])


def test_a_fault_ends_the_engine(engine: Any) -> None:
    """An address outside of live memory is the next call's error, and everything after it is refused."""
    context = engine.context(Profile("decode", 1, 1), engine.caches(4, 1024, 32))
    first = step([Row(0, 0, (1,))], context.profile)
    context.run(first)
    standin.device().memory.pop(engine.arena.address)
    with pytest.raises(DeviceError, match="CUDA error 700"):
        context.run(first)
    for _ in range(3):
        with pytest.raises(EngineError, match="lost by an earlier fault; start again"):
            context.run(first)


def test_a_profile_is_taken_in_one_place_only() -> None:
    """Case R1: where a context is made, before anything is bound or shaped, and nowhere else in the toolkit."""
    name = "set_optimization_profile"
    found = []
    for path in sorted((standin.ROOT / "toolkit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and name in ast.unparse(node):
                found.append(f"{path.stem}.{node.name}")
    assert found == ["trt_step.__init__"]
