# SPDX-License-Identifier: Apache-2.0
"""Answers keep to their grammar, whatever the model would rather say."""

from __future__ import annotations

import json
import re

import pytest

from orinkit.errors import EngineError, RequestError
from orinkit.runtime.grammar import MAX_CHARACTERS, Grammar, Grammars
from orinkit.runtime.request import Event, Finished, Request
from orinkit.runtime.sampling import Sampling, allowed
from toolkit.runtime.serving import EOS, SPEC, TOKENIZER, end_of, run, scheduler, text_of, tokens_of

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["ok", "n"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(TOKENIZER, SPEC.vocab, (EOS,))


def run_alone() -> list[Event]:
    served = scheduler(capacity=256)
    served.submit(Request((7, 7), max_tokens=30))
    return run(served)


@pytest.mark.parametrize("run_ahead", [None, 2])
@pytest.mark.parametrize("seed", range(4))
def test_an_answer_is_of_its_grammar(seed: int, run_ahead: int | None) -> None:
    served = scheduler(capacity=256, run_ahead=run_ahead)
    grammar = Grammar("regex", "(red|green)-[0-9]{3}")
    free = served.submit(Request((7, 7), max_tokens=30))
    number = served.submit(Request((1, 2, 3), Sampling(temperature=1.0, seed=seed), grammar=grammar))
    events = run(served)
    text = text_of([event for event in events if event.request == number])
    assert re.fullmatch(grammar.text, text)
    assert end_of(events, number).reason == "stop"
    assert tokens_of(events, free) == tokens_of(run_alone(), 1)


def test_a_grammar_may_come_while_steps_of_others_are_in_flight() -> None:
    served = scheduler(capacity=4096, run_ahead=2)
    free = served.submit(Request((7, 7), Sampling(logit_bias={EOS: -100.0})))
    events = served.step()
    grammar = Grammar("regex", "(red|green)-[0-9]{3}")
    number = served.submit(Request((1, 2, 3), Sampling(temperature=1.0, seed=3), grammar=grammar))
    while served.num_queued:
        events += served.step()
    while not any(isinstance(event, Finished) for event in events):
        events += served.step()
    assert end_of(events, number).reason == "stop"
    assert re.fullmatch(grammar.text, text_of([event for event in events if event.request == number]))
    served.cancel(free)
    assert end_of(run(served), free).reason == "cancelled"


def test_a_schema_gives_json_that_fits_it() -> None:
    served = scheduler(capacity=256)
    number = served.submit(Request((3, 2), Sampling(temperature=1.0, seed=1), grammar=Grammar("json_schema", SCHEMA)))
    events = run(served)
    found = json.loads(text_of(events))
    assert end_of(events, number).reason == "stop"
    assert set(found) == {"ok", "n"}
    assert isinstance(found["ok"], bool)
    assert 0 <= found["n"] <= 9


def test_the_mask_allows_what_may_come(grammars: Grammars) -> None:
    constraint = grammars.compile(Grammar("regex", "ab"))
    (a,), (b,) = TOKENIZER.encode("a", 9), TOKENIZER.encode("b", 9)
    assert allowed(constraint.mask(), SPEC.vocab)[[a, b]].tolist() == [True, False]
    with pytest.raises(EngineError, match="expected one of the tokens that it allows"):
        constraint.accept(b)


def test_an_answer_is_complete_where_nothing_may_come(grammars: Grammars) -> None:
    constraint = grammars.compile(Grammar("regex", "a"))
    (a,) = TOKENIZER.encode("a", 9)
    assert not constraint.is_complete
    constraint.accept(a)
    mask = allowed(constraint.mask(), SPEC.vocab) if not constraint.is_complete else None
    assert mask is None or mask.nonzero()[0].tolist() == [EOS]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("regex", "x" * (MAX_CHARACTERS + 1), "expected at most 65536 characters"),
        ("json_schema", "{", "expected a JSON schema"),
        ("json_schema", "[]", "found a JSON list"),
        ("json_schema", '{"a":' * 40 + "1" + "}" * 40, "at most 32 levels"),
        ("lark", "start: x", "expected json_schema, json_object or regex"),
    ],
)
def test_what_is_no_grammar_is_refused(kind: str, text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Grammar(kind, text)  # type: ignore[arg-type]


@pytest.mark.parametrize("grammar", [Grammar("regex", "("), Grammar("json_schema", '{"type": "nonsense"}')])
def test_what_cannot_be_compiled_is_refused(grammars: Grammars, grammar: Grammar) -> None:
    with pytest.raises(RequestError, match="expected one that can be compiled"):
        grammars.compile(grammar)
    served = scheduler()
    number = served.submit(Request((1,), grammar=grammar))
    assert isinstance(end_of(run(served), number).error, RequestError)
