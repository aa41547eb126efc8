# SPDX-License-Identifier: Apache-2.0
"""What the supervisor knows of the requests: who waits, who runs, and what each has been told."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from orinkit.errors import ServiceError
from orinkit.runtime.request import Finished, Request, Token
from orinkit.serve.metrics import Metrics
from orinkit.serve.wire import Stepped

News = Token | Finished | ServiceError
"""A ServiceError ends a job that the worker cannot."""


class Mailbox:
    """What has happened to the jobs of one HTTP request, for its one reader."""

    def __init__(self) -> None:
        self._held: list[tuple[int, News]] = []
        self._waiting: asyncio.Future[None] | None = None

    def put(self, index: int, news: News) -> None:
        self._held.append((index, news))
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def receive(self) -> list[tuple[int, News]]:
        """All news since the last call, each with the index of its job; at least one."""
        if not self._held:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        held, self._held = self._held, []
        return held


@dataclass(eq=False)
class Job:
    """One answer that is to be computed."""

    id: int
    request: Request
    client: str
    mailbox: Mailbox
    index: int
    submitted: float
    is_abandoned: bool = False
    """Its client has gone; what still comes of it goes nowhere."""
    is_replayed: bool = False
    """A worker has ended while it waited."""
    last: float | None = None
    """When its last token came."""

    def tell(self, news: News) -> None:
        if not self.is_abandoned:
            self.mailbox.put(self.index, news)


@dataclass
class Desk:
    """Jobs that wait and jobs that the worker has, within the bounds of slots, queue and clients."""

    slots: int
    queue_limit: int
    client_limit: int
    waiting: deque[Job] = field(default_factory=deque)
    running: dict[int, Job] = field(default_factory=dict)

    def check(self, client: str, count: int, retry_after: int) -> None:
        """Whether `count` more jobs of `client` fit. Raises ServiceError 429."""
        own = sum(job.client == client for job in (*self.waiting, *self.running.values()))
        if own + count > self.client_limit:
            raise ServiceError(
                f"expected at most {self.client_limit} answers for one client at a time, choices counted; wait for one",
                429,
                "client_limit",
                retry_after=retry_after,
            )
        if count > self.slots - len(self.running) + self.queue_limit - len(self.waiting):
            raise ServiceError("the queue is full; try again later", 429, "queue_full", retry_after=retry_after)

    def take(self) -> Job | None:
        """The next job for a free slot: of the client with the fewest running ones, the oldest."""
        if not self.waiting or len(self.running) >= self.slots:
            return None
        busy = Counter(job.client for job in self.running.values())
        job = min(self.waiting, key=lambda job: busy[job.client])
        self.waiting.remove(job)
        self.running[job.id] = job
        return job

    def deliver(self, report: Stepped, metrics: Metrics, now: float) -> bool:
        """Tell each job what a step has brought it, and count it; whether a slot is free again."""
        for token in report.tokens:
            if job := self.running.get(token.request):
                job.tell(token)
        for number, count in Counter(token.request for token in report.tokens).items():
            if job := self.running.get(number):
                _time(job, count, metrics, now)
        for end in report.ends:
            if job := self.running.pop(end.request, None):
                _count(job, end, metrics, now)
                job.tell(end)
        return bool(report.ends)

    def expired(self, now: float) -> list[Job]:
        """Take out and give the waiting jobs whose deadline has passed."""
        late = [job for job in self.waiting if job.request.deadline is not None and job.request.deadline <= now]
        for job in late:
            self.waiting.remove(job)
        return late

    def clear(self) -> Sequence[Job]:
        """Take out and give the jobs that the worker had."""
        lost = list(self.running.values())
        self.running.clear()
        return lost

    @property
    def is_empty(self) -> bool:
        return not (self.waiting or self.running)


def _time(job: Job, count: int, metrics: Metrics, now: float) -> None:
    """Tokens that are told together share the time since those before."""
    if job.last is None:
        metrics.observe("vllm:time_to_first_token_seconds", now - job.submitted)
        count -= 1
    since = now if job.last is None else job.last
    for _ in range(count):
        metrics.observe("vllm:time_per_output_token_seconds", (now - since) / count)
    job.last = now


def _count(job: Job, end: Finished, metrics: Metrics, now: float) -> None:
    timings = end.timings
    metrics.add("vllm:prompt_tokens_total", timings.prompt_tokens)
    metrics.add("vllm:prefix_cache_queries_total", timings.prompt_tokens)
    metrics.add("vllm:prefix_cache_hits_total", timings.reused_tokens)
    metrics.add("vllm:generation_tokens_total", timings.generated_tokens)
    metrics.add("vllm:request_success_total", finished_reason=end.reason)
    if job.is_abandoned:
        metrics.add("orin_wasted_tokens_total", timings.generated_tokens)
    metrics.observe("vllm:e2e_request_latency_seconds", now - job.submitted)
