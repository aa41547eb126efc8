# SPDX-License-Identifier: Apache-2.0
"""How fast a bundle is on this machine, through the scheduler that serves it.

    prefill   `batch` prompts at once, from the first one's submission to the last one's first token
    decode    `batch` sequences that all decode, from one token to a number of tokens later

Prompts are random and no two are alike, so nothing is reused. Medians over repeats, after a warm-up.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orinkit.device.sensors import Reading
from orinkit.errors import ConfigError, EngineError
from orinkit.memory.speed import Speed
from orinkit.model import ModelSpec
from orinkit.recipe import Shapes
from orinkit.runtime.request import Finished, Request, Token
from orinkit.runtime.sampling import Sampling
from orinkit.runtime.scheduler import Scheduler

WARM_UP = 4
"""Tokens of each sequence that are decoded before time counts."""
MOST = 1 << 20


@dataclass(frozen=True)
class Workload:
    """What is measured: every prompt length and every depth with every batch size."""

    prompts: tuple[int, ...] = (128, 512, 2048)
    batches: tuple[int, ...] = (1, 2, 8)
    depths: tuple[int, ...] = (0, 2048)
    tokens: int = 64
    """Tokens of each sequence that a repeat decodes."""
    repeats: int = 3

    def validate(self) -> None:
        """Raises ConfigError."""
        for name, values, least in (
            ("prompt", self.prompts, 1),
            ("batch", self.batches, 1),
            ("depth", self.depths, 0),
            ("tokens", (self.tokens,), 1),
            ("repeat", (self.repeats,), 1),
        ):
            for value in values:
                if not least <= value <= MOST:
                    raise ConfigError(f"{name}: expected {least} to {MOST}, found {value}")


@dataclass(frozen=True)
class Case:
    """One row: what was measured and what came out; figures are None where it was skipped."""

    kind: Literal["prefill", "decode"]
    batch: int
    tokens: int
    """Length of each prompt, or tokens that each sequence holds when decoding begins."""
    skipped: str = ""
    """Why it was not measured."""
    tokens_per_second: float | None = None
    """Of all sequences together, median over the repeats."""
    slowest: float | None = None
    fastest: float | None = None
    host_us: float | None = None
    """Processor time of this thread for each token of all sequences, in microseconds."""
    predicted: float | None = None
    """Tokens per second by the plan."""
    reading: Reading | None = None
    """Sensors, while the last repeat had just ended."""

    @property
    def ratio(self) -> float | None:
        """Measured by predicted."""
        measured, predicted = self.tokens_per_second, self.predicted
        return measured / predicted if measured and predicted else None


class Bench:
    """Measures one scheduler that nobody else uses."""

    def __init__(
        self,
        scheduler: Scheduler,
        spec: ModelSpec,
        shapes: Shapes,
        speed: Speed | None = None,
        read: Callable[[], Reading] = Reading,
        seed: int = 0,
    ) -> None:
        """`speed` predicts, `read` reads the sensors; the same seed makes the same prompts."""
        self._scheduler, self._spec, self._shapes, self._speed, self._read = scheduler, spec, shapes, speed, read
        self._random = np.random.default_rng(seed)
        self._sampling = Sampling(logit_bias=dict.fromkeys(spec.eos, -100.0))  # an answer must not end by itself

    def run(self, workload: Workload) -> Iterator[Case]:
        """The cases one after the other. Raises ConfigError, EngineError."""
        workload.validate()
        for batch in workload.batches:
            for tokens in workload.prompts:
                yield self._prefill(batch, tokens, workload.repeats)
            for depth in workload.depths:
                yield self._decode(batch, depth, workload)

    def _prefill(self, batch: int, tokens: int, repeats: int) -> Case:
        if skipped := self._misfit(batch, tokens + 1):
            return Case("prefill", batch, tokens, skipped)
        self._prompts_read(1, min(tokens, self._shapes.chunk))
        rates, host = [], []
        for _ in range(repeats):
            seconds, cpu = self._prompts_read(batch, tokens)
            rates.append(batch * tokens / seconds)
            host.append(cpu / (batch * tokens))
        found = self._speed.prefill(tokens) if self._speed else None
        return self._case("prefill", batch, tokens, rates, host, found.tokens_per_second if found else None)

    def _prompts_read(self, batch: int, tokens: int) -> tuple[float, float]:
        """Seconds until `batch` prompts have their first token, and processor time of this thread."""
        requests = [Request(self._prompt(tokens), self._sampling, max_tokens=1) for _ in range(batch)]
        start, cpu = time.perf_counter(), time.thread_time()
        left = {self._scheduler.submit(request) for request in requests}
        while left:
            left -= {event.request for event in self._step(may_end=True)}
        seconds, cpu = time.perf_counter() - start, time.thread_time() - cpu
        self._drain()
        return seconds, cpu

    def _decode(self, batch: int, depth: int, workload: Workload) -> Case:
        chunks = -(-max(depth, 1) // self._shapes.chunk)
        ahead = batch * chunks + WARM_UP  # those that are ready first decode while the others' prompts are read
        if skipped := self._misfit(batch, max(depth, 1) + ahead + workload.tokens * workload.repeats + WARM_UP):
            return Case("decode", batch, depth, skipped)
        running = {self._scheduler.submit(Request(self._prompt(max(depth, 1)), self._sampling)) for _ in range(batch)}
        waiting = set(running)
        while waiting:
            waiting -= {event.request for event in self._step()}
        self._tokens(WARM_UP * batch)
        rates, host = [], []
        for _ in range(workload.repeats):
            start, cpu = time.perf_counter(), time.thread_time()
            count = self._tokens(workload.tokens * batch)
            rates.append(count / (time.perf_counter() - start))
            host.append((time.thread_time() - cpu) / count)
        found = self._speed.decode(batch, depth) if self._speed else None
        case = self._case("decode", batch, depth, rates, host, found.tokens_per_second if found else None)
        for request in running:
            self._scheduler.cancel(request)
        self._drain()
        return case

    def _tokens(self, count: int) -> int:
        """Step until at least `count` tokens have come: how many."""
        found = 0
        while found < count:
            found += len(self._step())
        return found

    def _step(self, may_end: bool = False) -> list[Token]:
        events = self._scheduler.step()
        for event in events:
            if isinstance(event, Finished) and not (may_end and event.reason == "length"):
                raise event.error or EngineError(f"expected sequences that go on, found one that ended: {event.reason}")
        return [event for event in events if isinstance(event, Token)]

    def _drain(self) -> None:
        while not self._scheduler.is_idle:
            self._scheduler.step()

    def _prompt(self, tokens: int) -> tuple[int, ...]:
        return tuple(self._random.integers(0, self._spec.vocab, tokens).tolist())

    def _misfit(self, batch: int, tokens: int) -> str:
        """Why a case does not fit the bundle's shapes, if it does not."""
        if batch > self._shapes.slots:
            return f"{batch} sequences need as many slots, the bundle has {self._shapes.slots}"
        if tokens > self._shapes.capacity:
            return f"{tokens} tokens need as much capacity, the bundle has {self._shapes.capacity}"
        return ""

    def _case(
        self,
        kind: Literal["prefill", "decode"],
        batch: int,
        tokens: int,
        rates: list[float],
        host: list[float],
        predicted: float | None,
    ) -> Case:
        return Case(
            kind,
            batch,
            tokens,
            tokens_per_second=statistics.median(rates),
            slowest=min(rates),
            fastest=max(rates),
            host_us=statistics.median(host) * 1e6,
            predicted=predicted,
            reading=self._read(),
        )
