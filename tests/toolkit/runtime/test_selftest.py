# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest

from orinkit.bundle import GoldenCase
from orinkit.errors import EngineError, VerificationError
from orinkit.runtime.request import Request
from orinkit.runtime.selftest import selftest
from toolkit.runtime.fake_engine import FakeEngine
from toolkit.runtime.serving import SPEC, TOKENIZER, alone, scheduler


def case(prompt: str, num_tokens: int) -> GoldenCase:
    tokens = TOKENIZER.encode(prompt, capacity=64)
    return GoldenCase(prompt, tokens, tuple(alone(Request(tokens, max_tokens=num_tokens))), margin=0.25)


CASES = [case("To be", 8), case("or not to be, that is the question", 5), case("日本", 8)]


def test_golden_tokens_pass() -> None:
    assert selftest(scheduler(), CASES) == sum(len(golden.tokens) for golden in CASES)


@pytest.mark.parametrize("place", range(5))
def test_the_first_token_that_differs_is_told(place: int) -> None:
    right = CASES[1].tokens
    wrong = replace(CASES[1], tokens=(*right[:place], right[place] ^ 1, *(0 for _ in right[place + 1 :])))
    with pytest.raises(
        VerificationError,
        match=f"'or not .*': expected token {right[place] ^ 1} at place {place} .* found {right[place]}; .*0.25",
    ):
        selftest(scheduler(), [CASES[0], wrong])


def test_an_answer_that_ends_early_differs() -> None:
    end = CASES[0].tokens[2]
    with pytest.raises(VerificationError, match="at place 3 of the answer, found its end"):
        selftest(scheduler(eos=(end,)), CASES)


def test_a_prompt_that_is_split_differently_is_told() -> None:
    with pytest.raises(VerificationError, match=r"golden prompt 'To be': expected the tokens \[1, 2\], found \["):
        selftest(scheduler(), [replace(CASES[0], prompt_tokens=(1, 2))])


def test_without_golden_prompts_nothing_passes() -> None:
    with pytest.raises(VerificationError, match="found none"):
        selftest(scheduler(), [])


def test_a_fault_of_the_engine_is_raised() -> None:
    with pytest.raises(EngineError, match="an injected fault"):
        selftest(scheduler(engine=FakeEngine(SPEC.vocab, faults={2: "raise"})), CASES)
