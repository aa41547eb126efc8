# SPDX-License-Identifier: Apache-2.0
"""The runtime does not know which engine it drives: the same promises on each of them, with the demo model.

Tokens of steps of different sizes agree where two logits differ clearly; on the engines of EXACT they agree always.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from every_engine import ENGINES, EXACT, Served, served
from orinkit.bundle import Bundle
from orinkit.engines import open_engine
from orinkit.ops import VERSIONS
from orinkit.runtime.pipeline import HostPipeline, open_pipeline
from orinkit.runtime.request import Event, Finished, Request, Token
from orinkit.runtime.sampling import Sampling
from orinkit.runtime.scheduler import Scheduler
from orinkit.runtime.selftest import selftest
from orinkit.runtime.session import stream
from orinkit.runtime.steps import Stepper
from toolkit.engines.conversations import GREEDY, MARGIN, PLAIN, Conversation, check_clear

PROMPTS = (
    "ROMEO:",
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\n" * 8,
    "Tom has 3 apples and buys 4 more. How many",
    "A",
    "KING RICHARD III:\nNow is the winter of our discontent\nMade glorious summer by this sun of York;\n" * 2,
    "JULIET:\nO Romeo, Romeo! wherefore art thou",
    "\n",
    "Ann has 12 pears. She eats",
)
"""1 to 128 tokens: in chunks of 32 some take one step of prefill, some several."""


@pytest.fixture(scope="module", params=ENGINES)
def on(request: pytest.FixtureRequest, demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The demo model on one engine, with chunks of 32 tokens."""
    demo = Bundle.open(demo_bundle, keys=None, supported=VERSIONS)
    shapes = replace(demo.manifest.recipe.shapes, chunk=32)
    with served(request.param, demo_bundle, tmp_path_factory.mktemp("every") / "demo", shapes) as found:
        yield found


exact = pytest.mark.parametrize("on", EXACT, indirect=True)


def asked(scheduler: Scheduler, prompt: str, **settings: object) -> Request:
    return Request(scheduler.tokenizer.encode(prompt, scheduler.capacity), **settings)  # type: ignore[arg-type]


def run(scheduler: Scheduler) -> list[Event]:
    events: list[Event] = []
    while not scheduler.is_idle:
        events += scheduler.step()
    return events


def told(events: list[Event], number: int | None = None) -> list[Token]:
    return [event for event in events if isinstance(event, Token) and number in (None, event.request)]


def tokens(events: list[Event], number: int | None = None) -> list[int]:
    return [event.token for event in told(events, number)]


def clear(events: list[Event]) -> list[int]:
    """The tokens up to the first that was no clear choice between the best two."""
    found = []
    for event in told(events):
        if event.top[0][1] - event.top[1][1] < MARGIN:
            break
        found.append(event.token)
    return found


def ending(events: list[Event]) -> Finished:
    last = events[-1]
    assert isinstance(last, Finished)
    return last


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def test_the_golden_tokens(on: Served) -> None:
    golden = on.bundle.manifest.golden
    assert selftest(on.start(), golden) == sum(len(case.tokens) for case in golden) > 0


def test_side_by_side_as_alone(on: Served) -> None:
    scheduler = on.start()
    requests = [asked(scheduler, prompt, max_tokens=6 + i, top_logprobs=2) for i, prompt in enumerate(PROMPTS)]
    assert scheduler.num_free_slots == 4 < len(requests)
    assert max(len(request.prompt) for request in requests) > 3 * 32
    numbers = [scheduler.submit(request) for request in requests]
    events, compared = run(scheduler), 0
    for number, request in zip(numbers, requests, strict=True):
        alone = list(stream(on.start(), request))
        wanted = clear(alone)
        assert tokens(events, number)[: len(wanted)] == wanted
        assert len(told(events, number)) == request.max_tokens or ending(alone).reason == "stop"
        compared += len(wanted)
    assert compared > 40


@exact
def test_drawn_side_by_side_as_alone(on: Served) -> None:
    scheduler = on.start()
    requests = [
        asked(scheduler, prompt, sampling=Sampling(0.9, seed=index), max_tokens=6 + index)
        for index, prompt in enumerate(PROMPTS)
    ]
    numbers = [scheduler.submit(request) for request in requests]
    events = run(scheduler)
    for number, alone in zip(numbers, requests, strict=True):
        assert tokens(events, number) == tokens(list(stream(on.start(), alone)))


def test_steps_that_take_turns_give_what_onnxruntime_gives(on: Served) -> None:
    """Prefill and decode of all sizes; where the engine chooses tokens itself, in captures that run ahead."""
    demo = on.bundle
    reference = HostPipeline(Stepper(open_engine("onnxruntime", demo.graph, demo.manifest.model), on.shapes))
    heard = []
    for pipeline in (open_pipeline(on.open(), on.shapes), reference):
        assert pipeline.degraded is None
        conversation = Conversation(pipeline, on.shapes, seat=PLAIN)
        for slots in ((0,), (1, 2), (3,)):
            for slot in slots:
                conversation.join(slot, GREEDY)
            for _ in range(6):
                conversation.decode()
        conversation.leave(1)
        conversation.decode()
        heard.append(conversation.answers())
    assert check_clear(*heard) > 20


def test_an_answer_ends_at_the_first_of_all_limits(on: Served) -> None:
    scheduler = on.start()
    whole = list(stream(scheduler, asked(scheduler, "ROMEO:", max_tokens=24)))
    assert (ending(whole).reason, len(tokens(whole))) == ("length", 24)
    stop = text(whole)[20:26]
    stopped = list(stream(scheduler, asked(scheduler, "ROMEO:", max_tokens=24, stop=(stop,))))
    assert (ending(stopped).reason, text(stopped)) == ("stop", text(whole)[: text(whole).index(stop)])
    last = tokens(whole)[9]
    at_token = list(stream(scheduler, asked(scheduler, "ROMEO:", max_tokens=24, stop_tokens=(last,))))
    assert (ending(at_token).reason, tokens(at_token)) == ("stop", tokens(whole)[: tokens(whole).index(last) + 1])


def test_an_answer_ends_where_the_slot_is_full(on: Served) -> None:
    scheduler = on.start()
    prompt = scheduler.tokenizer.encode(PROMPTS[1] * 9, scheduler.capacity)[: scheduler.capacity - 3]
    assert len(prompt) == scheduler.capacity - 3
    end = list(stream(scheduler, Request(prompt)))
    assert len(tokens(end)) == 3 or ending(end).reason == "stop"


def test_a_cancelled_answer_leaves_nothing_in_its_slot(on: Served) -> None:
    scheduler = on.start()
    numbers = [scheduler.submit(asked(scheduler, PROMPTS[1])) for _ in range(scheduler.num_free_slots)]
    for _ in range(20):
        scheduler.step()
    for number in numbers:
        scheduler.cancel(number)
    request = asked(scheduler, PROMPTS[0], max_tokens=12)
    assert tokens(list(stream(scheduler, request))) == tokens(list(stream(on.start(), request)))


def test_a_kept_beginning_changes_no_token(on: Served) -> None:
    scheduler = on.start()
    system = scheduler.tokenizer.encode(PROMPTS[4], scheduler.capacity)
    for rest, reused in (((5, 6), 0), ((7,), len(system)), ((5, 6), len(system))):
        request = Request((*system, *rest), max_tokens=8, cuts=(len(system),))
        found = list(stream(scheduler, request))
        assert ending(found).timings.reused_tokens == reused
        assert tokens(found) == tokens(list(stream(on.start(), request)))
