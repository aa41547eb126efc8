# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio

import pytest

from orinkit.errors import ServiceError
from orinkit.runtime.request import Request, Token
from orinkit.serve.jobs import Desk, Job, Mailbox

TOKEN = Token(1, 2, 0.0, "x")


def job(number: int, client: str = "a", deadline: float | None = None) -> Job:
    return Job(number, Request((1,), deadline=deadline), client, Mailbox(), 0, 0.0)


def desk(*jobs: Job, slots: int = 2, queue: int = 2, client: int = 3) -> Desk:
    made = Desk(slots, queue, client)
    made.waiting.extend(jobs)
    return made


def test_a36_what_exceeds_slots_and_queue_is_refused() -> None:
    made = desk(client=100)
    made.check("a", 4, 1)
    with pytest.raises(ServiceError, match="queue is full") as refused:
        made.check("a", 5, 3)
    assert (refused.value.status, refused.value.code, refused.value.retry_after) == (429, "queue_full", 3)
    made.waiting.extend(job(number, str(number)) for number in range(2))
    made.take()
    made.take()
    made.check("x", 2, 1)
    with pytest.raises(ServiceError, match="queue is full"):
        made.check("x", 3, 1)


def test_a38_a_client_has_its_own_bound() -> None:
    made = desk(job(1), job(2), slots=10, queue=10)
    made.check("a", 1, 1)
    with pytest.raises(ServiceError, match="one client") as refused:
        made.check("a", 2, 1)
    assert (refused.value.status, refused.value.code) == (429, "client_limit")
    made.check("b", 3, 1)


def test_a38_a_free_slot_is_for_the_client_that_has_fewest() -> None:
    made = desk(job(1), job(2), job(3, "b"), job(4, "b"), slots=3)
    assert [taken.id for taken in (made.take(), made.take(), made.take()) if taken] == [1, 3, 2]
    assert made.take() is None


def test_a37_a_job_whose_time_has_come_is_taken_out() -> None:
    made = desk(job(1, deadline=5.0), job(2, deadline=7.0), job(3))
    assert [late.id for late in made.expired(6.0)] == [1]
    assert [left.id for left in made.waiting] == [2, 3]


def test_what_the_worker_had_is_given_once() -> None:
    made = desk(job(1), job(2), slots=1)
    made.take()
    assert not made.is_empty
    assert [lost.id for lost in made.clear()] == [1]
    assert list(made.clear()) == []


def test_a_mailbox_wakes_its_reader_and_keeps_the_order() -> None:
    async def run() -> list[int]:
        mailbox = Mailbox()
        reader = asyncio.ensure_future(mailbox.receive())
        await asyncio.sleep(0)
        mailbox.put(0, TOKEN)
        mailbox.put(1, TOKEN)
        first = await reader
        mailbox.put(2, TOKEN)
        return [index for index, _ in first + await mailbox.receive()]

    assert asyncio.run(run()) == [0, 1, 2]


def test_an_abandoned_job_tells_nothing() -> None:
    left = job(1)
    left.is_abandoned = True
    left.tell(TOKEN)
    left.is_abandoned = False
    left.tell(TOKEN)
    assert len(asyncio.run(left.mailbox.receive())) == 1
