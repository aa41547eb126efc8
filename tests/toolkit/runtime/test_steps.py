# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from orinkit.errors import EngineError
from orinkit.recipe import Shapes
from orinkit.runtime.batch import Row
from orinkit.runtime.steps import Stepper
from toolkit.runtime.fake_engine import FakeEngine, logits_of

SHAPES = Shapes(capacity=32, slots=3, chunk=16)


@pytest.fixture
def stepper() -> Stepper:
    return Stepper(FakeEngine(vocab=50), SHAPES)


def test_one_context_per_profile_is_made_once() -> None:
    engine = FakeEngine(vocab=50)
    stepper = Stepper(engine, SHAPES)
    for _ in range(3):
        stepper.prefill([Row(0, 0, (1, 2))])
        stepper.decode([Row(0, 2, (3,))])
    assert [name for name, _ in engine.seen] == ["prefill", "decode"] * 3
    assert [context.profile.name for context in engine.contexts] == ["prefill", "decode"]
    assert {context.profile.tokens for context in engine.contexts} == {SHAPES.chunk, SHAPES.slots}


def test_row_i_of_the_logits_belongs_to_row_i(stepper: Stepper) -> None:
    logits = stepper.prefill([Row(2, 0, (1, 2), wants_logits=False), Row(0, 0, (3,))])
    assert np.array_equal(logits[1], logits_of([(3,)], 50))
    logits = stepper.decode([Row(2, 2, (7,)), Row(0, 1, (8,))])
    assert np.array_equal(logits[0], logits_of([(1, 2), (7,)], 50))
    assert np.array_equal(logits[1], logits_of([(3,), (8,)], 50))


def test_a_slot_that_was_used_before_starts_anew(stepper: Stepper) -> None:
    stepper.prefill([Row(1, 0, (1, 2, 3))])
    assert np.array_equal(stepper.prefill([Row(1, 0, (4,))])[0], logits_of([(4,)], 50))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row(3, 0, (1,)), "a slot below 3 .* found slot 3"),
        (Row(0, 17, (1,) * 16), "at most 32 tokens in it, found slot 0 with 33 tokens"),
        (Row(0, 0, (1,) * 17), "tokens"),
    ],
)
def test_a_row_beyond_the_caches_or_the_profile_is_refused(stepper: Stepper, row: Row, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        stepper.prefill([row])


def test_decode_takes_one_token_of_each_sequence(stepper: Stepper) -> None:
    with pytest.raises(EngineError, match="expected one token for slot 1, found 2"):
        stepper.decode([Row(0, 0, (1,)), Row(1, 0, (1, 2))])
