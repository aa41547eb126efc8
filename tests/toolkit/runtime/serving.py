# SPDX-License-Identifier: Apache-2.0
"""A scheduler over the fake engine, and what to ask of its events."""

from __future__ import annotations

from dataclasses import replace

from orinkit.engines.base import Pipeline
from orinkit.model import Attention, LayerSpec, ModelSpec, Rope
from orinkit.recipe import Shapes
from orinkit.runtime.pipeline import HostPipeline
from orinkit.runtime.request import Event, Finished, Request, Token
from orinkit.runtime.scheduler import Scheduler
from orinkit.runtime.steps import Stepper
from orinkit.runtime.template import ChatTemplate
from orinkit.runtime.tokenizer import Tokenizer
from toolkit.runtime.fake_engine import FakeEngine
from toolkit.runtime.fake_pipeline import FakePipeline
from toolkit.runtime.tiny_tokenizer import TEMPLATE, byte_level

TOKENIZER = Tokenizer(byte_level(), ChatTemplate(TEMPLATE, {}))
EOS = TOKENIZER.num_ids - 1
SPEC = ModelSpec(
    architecture="test",
    hidden=8,
    vocab=TOKENIZER.num_ids,
    norm_eps=1e-6,
    tied=True,
    max_positions=64,
    rope=Rope(10000.0),
    layers=(LayerSpec(8, Attention(1, 1, 8, 8, 1.0)),),
    eos=(EOS,),
)
CHUNK = 16


class Clock:
    """Stands still until it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def scheduler(
    slots: int = 2,
    capacity: int = 64,
    engine: FakeEngine | None = None,
    eos: tuple[int, ...] = (EOS,),
    clock: Clock | None = None,
    run_ahead: int | None = None,
) -> Scheduler:
    """`run_ahead` steps ahead of what is read, as on a device; without it tokens are chosen on the host."""
    shapes = Shapes(capacity=capacity, slots=slots, chunk=CHUNK)
    engine = engine or FakeEngine(SPEC.vocab)
    pipeline: Pipeline = HostPipeline(Stepper(engine, shapes))
    if run_ahead is not None:
        pipeline = FakePipeline(engine, shapes, run_ahead)
    return Scheduler(pipeline, shapes, TOKENIZER, replace(SPEC, eos=eos), clock=clock or Clock())


def run(served: Scheduler) -> list[Event]:
    events = []
    while not served.is_idle:
        events += served.step()
    return events


def tokens_of(events: list[Event], number: int) -> list[int]:
    return [event.token for event in events if isinstance(event, Token) and event.request == number]


def end_of(events: list[Event], number: int) -> Finished:
    (end,) = (event for event in events if isinstance(event, Finished) and event.request == number)
    return end


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def alone(request: Request) -> list[int]:
    """The tokens of a request that has a scheduler to itself."""
    served = scheduler(slots=1)
    number = served.submit(request)
    return tokens_of(run(served), number)


def continued(prompt: str, num_tokens: int) -> str:
    """What the fake engine says after a prompt, greedily."""
    served = scheduler(capacity=256, eos=())
    served.submit(Request(TOKENIZER.encode(prompt, 256), max_tokens=num_tokens))
    return text_of(run(served))
