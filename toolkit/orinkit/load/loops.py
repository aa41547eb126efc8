# SPDX-License-Identifier: Apache-2.0
"""Sends the requests of a workload in an open or a closed loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

from orinkit.load.client import Client, Outcome
from orinkit.load.workload import Shot, Workload

NOT_SENT = "not sent: too many open"


@dataclass(frozen=True)
class Run:
    """What a workload gave, warm-up left out."""

    model: str
    outcomes: tuple[Outcome, ...]
    seconds: float
    """From the first request that counts to the last answer."""


async def run(workload: Workload, client: Client) -> Run:
    """Run a workload to its end. Raises ConfigError: no such server."""
    workload.validate()
    model = await client.open()
    shots = workload.shots()
    loop = _closed if workload.rate is None else _open
    outcomes = await loop(workload, client, shots, time.monotonic())
    counted = tuple(outcomes[number] for number in sorted(outcomes) if number >= workload.warmup)
    begin, end = min(outcome.begin for outcome in counted), max(outcome.end for outcome in counted)
    return Run(model, counted, end - begin)


async def _closed(workload: Workload, client: Client, shots: Iterator[Shot], _: float) -> dict[int, Outcome]:
    """So many clients, each with one request after the other."""
    outcomes: dict[int, Outcome] = {}
    numbered = enumerate(shots)

    async def work() -> None:
        for number, shot in numbered:
            outcomes[number] = await client.send(shot, time.monotonic())

    await asyncio.gather(*(work() for _ in range(workload.concurrency)))
    return outcomes


async def _open(workload: Workload, client: Client, shots: Iterator[Shot], begin: float) -> dict[int, Outcome]:
    """Each request at its time; one that would be too many at a time is not sent, and counted as an error."""
    outcomes: dict[int, Outcome] = {}
    tasks: set[asyncio.Task[None]] = set()

    async def send(number: int, shot: Shot) -> None:
        outcomes[number] = await client.send(shot, begin + shot.at)

    for number, shot in enumerate(shots):
        due = begin + shot.at
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        if len(tasks) >= workload.concurrency:
            outcomes[number] = Outcome(due, end=due, error=NOT_SENT)
            continue
        task = asyncio.ensure_future(send(number, shot))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return outcomes
