# SPDX-License-Identifier: Apache-2.0
"""Faults of the worker, group F, with real processes that are really killed, stopped and made to fail."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime

import pytest

from toolkit.serve.servers import SLOTS, Reply, Server, is_running, wait_for

Start = Callable[..., Server]
KILLS = int(os.environ.get("ORIN_SOAK_KILLS", "3"))
POOL = ThreadPoolExecutor(16)


def stream(server: Server, prompt: str, max_tokens: int = 300) -> Future[list[str]]:
    """A stream that has begun, in a thread of its own: all events at its end."""
    begun = threading.Event()

    def read() -> list[str]:
        events = []
        for event in server.stream(prompt, max_tokens=max_tokens):
            events.append(event)
            begun.set()
        return events

    reading = POOL.submit(read)
    assert begun.wait(20)
    return reading


def complete(server: Server, prompt: str, max_tokens: int = 300) -> Future[Reply]:
    return POOL.submit(lambda: server.complete(prompt, max_tokens=max_tokens))


def running(server: Server, count: int) -> None:
    """Wait until so many requests hold a slot."""
    wait_for(lambda: server.metric("vllm:num_requests_running") == count, server.explain)


def error_of(events: list[str]) -> str:
    """The code of the error that a stream ended with."""
    assert "[DONE]" not in events
    return str(json.loads(events[-1])["error"]["code"])


def ended_by(server: Server, worker: int) -> str:
    """The cause for which a worker ended, once it has been reaped."""
    wait_for(lambda: not is_running(worker), server.explain)
    number = [line["pid"] for line in server.events("worker started")].index(worker)
    wait_for(lambda: len(server.events("worker ended")) > number, server.explain)
    return str(server.events("worker ended")[number]["code"])


def test_f1_a_sticky_error_ends_all_streams_and_nothing_succeeds_until_the_self_test(server: Server) -> None:
    worker, seen = server.worker, []
    answers = [stream(server, f"F1 {number}") for number in range(4)]
    running(server, 4)
    server.inject("cuda700@step:5")
    wait_for(lambda: server.readyz().status == 503, server.explain)
    while (reply := server.complete("after", max_tokens=1)).status != 200:
        seen.append((reply.status, reply.headers["retry-after"]))
    back = server.events("ready")[-1]["time"]
    assert {error_of(answer.result()) for answer in answers} == {"cuda_700"}
    assert ended_by(server, worker) == "cuda_700"
    assert server.events("worker ended")[-1]["exit"] == 70
    assert seen
    assert {status for status, _ in seen} == {503}
    first = next(line for line in server.events("request") if line["time"] > server.events("worker ended")[-1]["time"])
    assert first["time"] >= back


@pytest.mark.parametrize("code", [702, 716, 719, 999, 12345])
def test_f2_other_fatal_codes_end_the_worker(server: Server, code: int) -> None:
    worker = server.worker
    server.inject(f"cuda{code}@step:2")
    assert server.complete(f"F2 {code}").code == f"cuda_{code}"
    assert ended_by(server, worker) == f"cuda_{code}"
    server.wait_ready()
    assert server.metric(f'orin_faults_total{{code="cuda_{code}"}}') == 1


def test_f2_a_step_that_lacks_memory_ends_the_worker(server: Server) -> None:
    worker = server.worker
    server.inject("oom@step:2")
    reply = server.complete("F2 memory")
    assert (reply.status, reply.code) == (503, "memory")
    assert ended_by(server, worker) == "memory"
    assert server.events("worker ended")[-1]["exit"] == 75


@pytest.mark.parametrize("code", [1, 9])
def test_a_code_of_a_request_fails_that_request_only(server: Server, code: int) -> None:
    worker = server.worker
    server.inject(f"cuda{code}@step:2")
    assert server.complete(f"of a request {code}").code == "engine_error"
    server.check_golden()
    assert server.worker == worker


def test_f4_what_waited_is_served_by_the_next_worker(server: Server) -> None:
    runs = [complete(server, f"F4 runs {number}") for number in range(SLOTS)]
    running(server, SLOTS)
    waits = [complete(server, f"F4 waits {number}", max_tokens=4) for number in range(5)]
    wait_for(lambda: server.metric("vllm:num_requests_waiting") == 5, server.explain)
    server.inject("cuda700@step:1")
    assert {answer.result().status for answer in runs} == {503}
    assert {answer.result().json["error"]["type"] for answer in runs} == {"engine_fault"}
    assert [answer.result().status for answer in waits] == [200] * 5


def test_f5_a_killed_worker_is_replaced(server: Server) -> None:
    worker, answer, plain = server.worker, stream(server, "F5"), complete(server, "F5 plain")
    running(server, 2)
    os.kill(worker, signal.SIGKILL)
    assert error_of(answer.result()) == ended_by(server, worker) == "signal_9"
    assert plain.result().json["error"] == {
        **plain.result().json["error"],
        "type": "engine_fault",
        "code": "signal_9",
        "retryable": True,
    }
    server.wait_ready()
    assert len([line for line in server.events("worker started") if is_running(line["pid"])]) == 1


def test_f6_the_worker_goes_with_its_supervisor(start: Start) -> None:
    first = start()
    first.wait_ready()
    worker = first.worker
    first.process.kill()
    wait_for(lambda: not is_running(worker), first.explain, 5)
    second = start(sockets=first.sockets)
    second.wait_ready()
    assert second.stop() == 0


def test_f7_a_stopped_worker_is_killed_at_its_deadline(server: Server) -> None:
    worker, answer = server.worker, stream(server, "F7")
    running(server, 1)
    begin = time.monotonic()
    os.kill(worker, signal.SIGSTOP)
    assert error_of(answer.result()) == "step_deadline"
    assert time.monotonic() - begin < 6
    assert ended_by(server, worker) == "step_deadline"


def test_f8_a_hanging_step_is_ended_at_its_deadline(server: Server) -> None:
    worker = server.worker
    server.inject("hang@step:3")
    assert server.complete("F8").code == "step_deadline"
    assert ended_by(server, worker) == "step_deadline"


def test_f11_faults_at_every_start_end_in_faulted(start: Start) -> None:
    server = start(fault="cuda700@step:1", farewell=1.0, restart=0.05)
    wait_for(lambda: server.readyz().json["status"] == "faulted", server.explain)
    assert server.readyz().status == 503
    assert server.complete().code == "faulted"
    assert server.request("GET", "/livez").status == 200
    assert server.process.wait(10) == 69
    begun = [datetime.fromisoformat(line["time"]) for line in server.events("worker started")]
    ended = [datetime.fromisoformat(line["time"]) for line in server.events("worker ended")]
    waits = [(later - earlier).total_seconds() for earlier, later in zip(ended[:-1], begun[1:], strict=True)]
    assert [wait >= 0.05 * 2**index for index, wait in enumerate(waits)] == [True] * 4


def test_f12_a_prompt_at_two_faults_is_quarantined(server: Server) -> None:
    for _ in range(2):
        server.inject("cuda700@step:2")
        assert server.complete("F12, the poison").status == 503
        server.wait_ready()
    assert (server.complete("F12, the poison").status, server.complete("F12, the poison").code) == (422, "quarantined")
    assert server.complete("F12, another").status == 200


def test_f13_logits_that_are_no_numbers_fail_their_request_and_the_self_test_is_run(server: Server) -> None:
    worker, other = server.worker, stream(server, "F13 other")
    running(server, 1)
    server.inject("nan@step:3")
    reply = server.complete("F13", max_tokens=100)
    events = other.result()
    codes = {events[-1] if events[-1] == "[DONE]" else error_of(events), "200" if reply.status == 200 else reply.code}
    assert "numeric_error" in codes
    server.check_golden()
    assert (server.worker, server.readyz().status) == (worker, 200)


def test_f18_an_engine_that_cannot_be_loaded_is_not_tried_again(start: Start) -> None:
    server = start(engine="onnxruntime", farewell=1.0)
    wait_for(lambda: server.readyz().json["status"] == "engine_invalid", server.explain)
    assert server.readyz().status == 503
    assert server.process.wait(10) == 78
    assert len(server.events("worker started")) == 1


def test_f21_running_streams_may_finish_after_sigterm(start: Start) -> None:
    server = start(delay=0.003, drain=20)
    server.wait_ready()
    answers = [stream(server, f"F21 {number}", max_tokens=100) for number in range(3)]
    running(server, 3)
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: server.readyz().status == 503, server.explain)
    assert server.complete().code == "draining"
    assert [answer.result()[-1] for answer in answers] == ["[DONE]"] * 3
    assert server.process.wait(5) == 0


def test_f21_what_lasts_longer_than_the_drain_gets_an_error(start: Start) -> None:
    server = start(delay=0.01, drain=60)
    server.wait_ready()
    worker, answers = server.worker, [stream(server, f"F21 {number}", max_tokens=400) for number in range(3)]
    running(server, 3)
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: server.readyz().status == 503, server.explain)
    server.process.send_signal(signal.SIGTERM)
    assert {error_of(answer.result()) for answer in answers} == {"draining"}
    assert server.process.wait(5) == 0
    wait_for(lambda: not is_running(worker))


def test_f23_kills_under_load_are_all_survived(server: Server) -> None:
    """KILLS is 200 in a soak."""
    restarts = server.metric("orin_restarts_total")
    for number in range(KILLS):
        server.wait_ready()
        answers = [complete(server, f"F23 {number} {index}", max_tokens=100) for index in range(6)]
        running(server, SLOTS)
        os.kill(server.worker, signal.SIGKILL)
        assert {answer.result().status for answer in answers} <= {200, 503}
        server.wait_ready()
        server.check_golden()
    assert server.metric("orin_restarts_total") == restarts + KILLS


def test_a50_readyz_is_truthful_at_every_moment_of_a_fault(server: Server) -> None:
    told: list[str] = []
    answer = stream(server, "A50", max_tokens=400)
    running(server, 1)
    checks = len(server.events("ready"))
    server.inject("cuda700@step:5")
    while "step" not in told[-1:]:
        reply = server.readyz()
        told.append(reply.json["status"])
        assert (reply.status == 200) == (reply.json["status"] == "ready")
        if reply.status == 200 and "recovering" in told:
            break
    assert error_of(answer.result()) == "cuda_700"
    assert len(server.events("ready")) == checks + 1
