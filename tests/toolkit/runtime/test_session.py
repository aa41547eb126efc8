# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from orinkit.errors import EngineError, RequestError
from orinkit.runtime.request import Finished, Request, Token
from orinkit.runtime.session import Session, stream
from toolkit.runtime.fake_engine import FakeEngine
from toolkit.runtime.serving import SPEC, TOKENIZER, scheduler, text_of

SETTINGS = Request((0,), max_tokens=6)


def test_a_stream_ends_with_finished() -> None:
    events = list(stream(scheduler(), Request((1, 2), max_tokens=3)))
    assert [type(event) for event in events] == [Token, Token, Token, Finished]


def test_closing_a_stream_cancels_the_request() -> None:
    served = scheduler()
    events = stream(served, Request((1, 2), max_tokens=50))
    next(events)
    assert served.num_free_slots == 1
    events.close()
    assert served.num_free_slots == 2


def test_a_stream_asks_before_every_step_whether_it_is_cancelled() -> None:
    served = scheduler()
    asked = []

    def is_cancelled() -> bool:
        asked.append(served.num_free_slots)
        return len(asked) == 4

    events = list(stream(served, Request((1,) * 33), is_cancelled))
    assert len(asked) == 4, "three steps of prefill went before"
    assert [type(event) for event in events] == [Token, Finished]
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "cancelled"


def test_a_stream_raises_what_ends_its_request() -> None:
    served = scheduler(engine=FakeEngine(SPEC.vocab, faults={2: "raise"}))
    with pytest.raises(EngineError, match="an injected fault"):
        list(stream(served, Request((1, 2), max_tokens=3)))
    assert served.num_free_slots == 2
    assert len(list(stream(served, Request((1, 2), max_tokens=3)))) == 4


def test_a_session_remembers_questions_and_answers() -> None:
    session = Session(scheduler(capacity=256), SETTINGS, system="be brief")
    first = text_of(list(session.say("hi")))
    list(session.say("and?"))
    assert [message["role"] for message in session.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert session.messages[2]["content"] == first

    prompt = TOKENIZER.encode_chat(session.messages[:4], capacity=256).tokens
    again = list(stream(scheduler(capacity=256), Request(prompt, max_tokens=6)))
    assert session.messages[4]["content"] == text_of(again)


def test_a_cancelled_answer_is_remembered_as_far_as_it_came() -> None:
    session = Session(scheduler(), SETTINGS)
    seen: list[str] = []
    for event in session.say("hi", is_cancelled=lambda: len(seen) == 2):
        seen.append(event.text)
    assert session.messages == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "".join(seen)}]


def test_a_question_that_fails_is_forgotten() -> None:
    session = Session(scheduler(), SETTINGS)
    with pytest.raises(RequestError, match="at most 64 tokens"):
        list(session.say("x" * 70))
    assert session.messages == []
    list(session.say("hi"))
    assert len(session.messages) == 2
