# SPDX-License-Identifier: Apache-2.0
"""The supervisor: keeps one worker alive, hands it jobs, and answers for it when it dies.

    starting ─> ready ─> recovering ─> ready ...       a fault: what ran is answered, what waited is kept once
       or degraded └──> faulted, engine_invalid       given up: /readyz tells for a while, then the daemon ends
                   └──> gpu_stuck                     not even SIGKILL ends the worker: no second one is started
    draining                                           nothing new; what runs may finish

It never imports an engine. Between a fault and the next passed self-test no job is handed over, so none can succeed.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from orinkit.errors import ServiceError
from orinkit.model import ModelSpec
from orinkit.recipe import Shapes
from orinkit.runtime.request import Request
from orinkit.serve import wire
from orinkit.serve.child import WORKER, Child, Ending
from orinkit.serve.faults import EXIT_ARTEFACT, EXIT_FAULTED, FaultLog
from orinkit.serve.handover import Handover
from orinkit.serve.jobs import Desk, Job, Mailbox
from orinkit.serve.meminfo import Memory, probe
from orinkit.serve.metrics import Metrics
from orinkit.serve.pace import Loads, Pace
from orinkit.serve.settings import Settings

State = Literal[
    "starting",
    "ready",
    "degraded",
    "recovering",
    "draining",
    "faulted",
    "engine_invalid",
    "gpu_stuck",
    "insufficient_memory",
]
SERVING: tuple[State, ...] = ("ready", "degraded")
Log = Callable[..., None]
TICK = 0.05
"""Seconds between two looks at the deadlines."""


class Supervisor:
    """One worker at a time and the jobs for it; everything happens in one event loop."""

    def __init__(
        self,
        settings: Settings,
        handover: Handover,
        model: ModelSpec,
        shapes: Shapes,
        need: int,
        metrics: Metrics,
        log: Log,
        command: Sequence[str] = WORKER,
    ) -> None:
        """`need`: bytes that a worker takes; `command`: what starts one."""
        self.settings = settings
        self.capacity = shapes.capacity
        self.vocab = model.vocab
        self.state: State = "starting"
        self.reason = ""
        self.desk = Desk(shapes.slots, settings.queue, settings.client_limit)
        self.faults = FaultLog(settings.fault_limit, settings.restart, settings.restart_limit, time.monotonic)
        self.pace = Pace(settings.step)
        self.memory = Memory(Path(settings.root))
        self.metrics = metrics
        self.child: Child | None = None
        self.heard = time.monotonic()
        """When the worker last told anything."""
        self.is_low = False
        """Whether memory is below its floor."""
        self._handover = handover
        self._need = need
        self._log = log
        self._command = command
        self._num_jobs = 0
        self._process: Child | None = None
        """The worker from its start until it is reaped; `child` is None from its fault on."""
        self._is_up = False
        """Whether it has passed its self-test."""
        self._is_checking = self._is_probed = False
        self._began = time.monotonic()
        self._loads = Loads()
        self._stop = asyncio.Event()
        self._draining: asyncio.Future[None] | None = None

    @property
    def retry_after(self) -> int:
        """Seconds until the next worker, if there is none, is usually ready."""
        return max(1, math.ceil(self._loads.usual + self.faults.next_delay))

    def check_state(self) -> None:
        """Whether anything is taken now. Raises ServiceError 503."""
        if self.state not in SERVING:
            wait = None if self.state in ("faulted", "engine_invalid", "gpu_stuck") else self.retry_after
            raise ServiceError(f"the server is {self.state}; try again later", 503, self.state, retry_after=wait)
        if self.is_low:
            raise ServiceError("memory is low; try again later", 503, "low_memory", retry_after=self.retry_after)

    def submit(self, requests: Sequence[Request], client: str) -> tuple[Mailbox, list[Job]]:
        """Take requests that belong together, all or none. Raises RequestError, and ServiceError 422, 429 and 503."""
        self.check_state()
        for request in requests:
            request.check(self.vocab, self.capacity)
        if self.faults.is_quarantined(requests[0].prompt):
            raise ServiceError("this prompt was being answered at two faults", 422, "quarantined")
        self.desk.check(client, len(requests), retry_after=1)
        mailbox, now, jobs = Mailbox(), time.monotonic(), []
        for index, request in enumerate(requests):
            self._num_jobs += 1
            jobs.append(Job(self._num_jobs, request, client, mailbox, index, now))
        self.desk.waiting.extend(jobs)
        self._hand_over()
        return mailbox, jobs

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody waits for these any more."""
        for job in jobs:
            if job in self.desk.waiting:
                self.desk.waiting.remove(job)
            elif job.id in self.desk.running and not job.is_abandoned and self.child is not None:
                self.child.send(wire.Cancel(job.id))
            job.is_abandoned = True

    def _hand_over(self) -> None:
        while self._is_up and self.child is not None and (job := self.desk.take()):
            self.metrics.observe("vllm:request_queue_time_seconds", time.monotonic() - job.submitted)
            if len(self.desk.running) == 1:
                self.heard = time.monotonic()
            self.child.send(wire.Submit(job.id, job.request))

    def _report(self, report: wire.Report) -> None:
        now = time.monotonic()
        self.heard = now
        match report:
            case wire.Stepped():
                self.pace.add(report.seconds)
                if self.desk.deliver(report, self.metrics, now):
                    self._hand_over()
            case wire.Ready():
                self._ready(report, now)
            case wire.Checked():
                self._is_checking = False
            case wire.Fault():
                # Before the process has ended: nothing that it said may be believed any more.
                self._fail(report.code)

    def _ready(self, report: wire.Ready, now: float) -> None:
        self._loads.add(now - self._began)
        if self.state == "recovering":
            self.metrics.add("orin_restarts_total")
        self.pace.begin(report.seconds)
        self._is_up, self._is_checking = True, False
        if self.state != "draining":
            self._enter("degraded" if report.degraded else "ready", report.degraded or "")
        self._log("ready", seconds=now - self._began, selftest=report.seconds)
        self._hand_over()

    def _enter(self, state: State, reason: str = "") -> None:
        self.state, self.reason = state, reason
        self._log("state", state=state, reason=reason or None)

    def _fail(self, code: str) -> None:
        """A worker is lost: answer what it had, keep what waited, once. Does nothing the second time."""
        if self.child is None:
            return
        self.child, self._is_up = None, False
        lost = self.desk.clear()
        self.faults.add(job.request.prompt for job in lost)
        self.metrics.add("orin_faults_total", code=code)
        if self.state != "draining":
            self._enter("recovering", code)
        twice = [job for job in self.desk.waiting if job.is_replayed]
        for job in self.desk.waiting:
            job.is_replayed = True
        for job in (*lost, *twice):
            if job in self.desk.waiting:
                self.desk.waiting.remove(job)
            message = "the engine failed while this was being answered; it is being started again"
            job.tell(ServiceError(message, 503, code, retry_after=self.retry_after))

    async def run(self) -> int:
        """Keep a worker until told to stop: the exit code."""
        keeping, stopping = asyncio.ensure_future(self._keep()), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({keeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return keeping.result() if keeping.done() else 0
        finally:
            keeping.cancel()
            stopping.cancel()
            if self._process is not None:
                self._process.kill("stopped")
                await self._process.ending()

    async def _keep(self) -> int:
        while True:
            await self._memory_for_one()
            ending = await self._one_worker()
            self._log("worker ended", code=ending.code, exit=ending.exit, message=ending.message or None)
            if ending.exit is None:
                self._dismiss("gpu_stuck", "the worker cannot be killed; the machine needs a restart")
                await self._stop.wait()
                return EXIT_FAULTED
            if ending.exit == EXIT_ARTEFACT:
                return await self._give_up("engine_invalid", ending.message, EXIT_ARTEFACT)
            if self.faults.is_over:
                return await self._give_up("faulted", ending.code, EXIT_FAULTED)
            await asyncio.sleep(self.faults.next_delay)

    async def _memory_for_one(self) -> None:
        """Wait until there is room for a worker; before the first one a probe must have had it."""
        while (lacking := self.memory.lacks(self._need)) or not (self._is_probed or await probe(self._need)):
            if self.state != "insufficient_memory":
                have = lacking["have"] if lacking else self.memory.figures()["MemAvailable"]
                self._enter("insufficient_memory", f"need {self._need} bytes above the floor, have {have}")
            await asyncio.sleep(1)
        self._is_probed = True
        if self.state == "insufficient_memory":
            self._enter("starting")

    async def _one_worker(self) -> Ending:
        self._began = self.heard = time.monotonic()
        self._process = self.child = await Child.start(self._command, self._handover, self._report)
        self._log("worker started", pid=self.child.pid)
        ending = await self._process.ending()
        self._fail(ending.code)
        if ending.exit is not None:
            self._process = None
        return ending

    async def _give_up(self, state: State, reason: str, code: int) -> int:
        self._dismiss(state, reason)
        await asyncio.sleep(self.settings.farewell)
        return code

    def _dismiss(self, state: State, reason: str) -> None:
        """Enter a state in which nobody is served any more."""
        self._enter(state, reason)
        for job in self.desk.waiting:
            job.tell(ServiceError(f"the server is {state}", 503, state))
        self.desk.waiting.clear()

    def look(self, now: float) -> None:
        """Hold everybody to their deadlines; called at every TICK."""
        for job in self.desk.expired(now):
            job.tell(ServiceError("the deadline has passed while waiting for a slot", 504, "deadline"))
        if self.child is None:
            return
        if self.state in SERVING and self.desk.is_empty and now - self.heard > self.settings.check:
            self.heard, self._is_checking = now, True
            self.child.send(wire.Check())
        if now - self.heard > self.limit:
            code = "step_deadline" if self._is_up else "load_deadline"
            self.child.kill(code)
            self._fail(code)

    @property
    def limit(self) -> float:
        """Seconds for which the worker may say nothing at the moment."""
        if not self._is_up:
            return self.settings.load
        if self._is_checking or self.desk.running:
            return self.pace.limit(self._is_checking or any(job.last is None for job in self.desk.running.values()))
        return math.inf

    def drain(self) -> None:
        """Take nothing new, let what runs end within its time, then stop. The second time: stop now."""
        if self._draining is not None:
            return self.stop()
        self._enter("draining")
        self._draining = asyncio.ensure_future(self._drain())
        return None

    async def _drain(self) -> None:
        end = time.monotonic() + self.settings.drain
        while not self.desk.is_empty and time.monotonic() < end:
            await asyncio.sleep(TICK)
        self.stop()

    def stop(self) -> None:
        """Let `run` return, whatever is going on; what still runs is told so."""
        for job in (*self.desk.waiting, *self.desk.running.values()):
            job.tell(ServiceError("the server is draining", 503, "draining"))
        self._stop.set()
