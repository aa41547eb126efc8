# SPDX-License-Identifier: Apache-2.0
"""What only time shows, in a short form; ORIN_SOAK multiplies the rounds (make soak)."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from orinkit.serve import health
from toolkit.runtime.serving import TOKENIZER
from toolkit.serve.servers import CAPACITY, Server, continuation, num_descriptors, wait_for

FACTOR = int(os.environ.get("ORIN_SOAK", "1"))
LEAK = 4 << 20
"""Bytes that no process may grow by."""


def grown(server: Server, count: int) -> int:
    """Bytes by which the larger of both processes grows with so many requests; their descriptors must come back."""
    pids = (server.process.pid, server.worker)
    with ThreadPoolExecutor(8) as pool:

        def ask(count: int) -> None:
            prompts = (f"M8 {number}" for number in range(count))
            replies = pool.map(lambda text: server.complete(text, max_tokens=2), prompts)
            assert {reply.status for reply in replies} == {200}

        ask(100)
        before = [(health.resident(pid), num_descriptors(pid)) for pid in pids]
        ask(count)
    after = [health.resident(pid) for pid in pids]
    most = [count for _, count in before]
    wait_for(lambda: all(num_descriptors(pid) <= count for pid, count in zip(pids, most, strict=True)), server.explain)
    return max(now - memory for now, (memory, _) in zip(after, before, strict=True))


def test_m8_requests_leave_nothing_behind(server: Server) -> None:
    assert grown(server, max(200, 60 * FACTOR)) < LEAK


def test_l4_a_worker_that_leaks_is_noticed(start: Callable[..., Server]) -> None:
    server = start(fault="leak")
    server.wait_ready()
    assert grown(server, 100) >= LEAK


def test_no_prompt_appears_in_the_answer_of_another(server: Server) -> None:
    """Each answer must be exactly what the prompt gives alone, whatever runs beside it."""
    draw = random.Random(5)

    def asked(number: int) -> tuple[str, int]:
        return f"secret {number} {'x' * draw.randrange(40)}", draw.randrange(1, 12)

    cases = [asked(number) for number in range(60 * FACTOR)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda case: server.complete(case[0], max_tokens=case[1]), cases))
    for (prompt, size), reply in zip(cases, replies, strict=True):
        expected = continuation(TOKENIZER.encode(prompt, CAPACITY), size)
        assert reply.json["choices"][0]["text"] == TOKENIZER.decode(expected)


def test_a33_cancels_take_no_slot_for_good(server: Server) -> None:
    """Half of all streams are left in the middle; the others are whole and right."""

    def read(number: int) -> bool:
        events = server.stream(f"A33 {number}", max_tokens=20)
        if number % 2:
            with contextlib.closing(events):
                next(events)
            return True
        return list(events)[-1] == "[DONE]"

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(40 * FACTOR)))
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0, server.explain)
    assert server.metric("vllm:num_requests_waiting") == 0


def test_l3_a_burst_drains_and_its_excess_is_refused_at_once(server: Server) -> None:
    with ThreadPoolExecutor(60) as pool:
        replies = list(pool.map(lambda number: server.complete(f"L3 {number}", max_tokens=10), range(60)))
    assert {reply.status for reply in replies} == {200, 429}
    assert sum(reply.status == 200 for reply in replies) >= 16
    server.wait_ready()
