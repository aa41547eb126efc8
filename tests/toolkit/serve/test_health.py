# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re
import time
from collections.abc import Callable

from orinkit.serve import health
from orinkit.serve.metrics import GAUGES
from toolkit.serve.servers import MODEL, Server, wait_for


def test_livez_needs_nothing(server: Server) -> None:
    assert server.request("GET", "/livez").json == {"status": "alive"}


def test_readyz_names_the_state(server: Server) -> None:
    assert server.readyz().json == {"status": "ready", "reason": ""}


def test_models_are_listed_with_their_length(server: Server) -> None:
    (entry,) = server.request("GET", "/v1/models").json["data"]
    assert (entry["id"], entry["object"], entry["max_model_len"]) == (MODEL, "model", 512)


def test_metrics_tell_of_the_server_as_it_is(server: Server) -> None:
    before = server.metric("vllm:generation_tokens_total")
    server.complete(max_tokens=5)
    assert server.metric("vllm:generation_tokens_total") == before + 5
    text = server.request("GET", "/metrics").body.decode()
    assert server.metric('orin_state{state="ready"}') == 1
    assert set(re.findall(r"^# TYPE (\S+) gauge$", text, re.MULTILINE)) <= GAUGES.keys()
    assert server.metric("orin_worker_resident_bytes") > 1 << 20
    assert server.metric("orin_memory_available_bytes") > 1 << 20


def test_a_worker_that_is_slow_serves_and_says_why(start: Callable[..., Server]) -> None:
    server = start(fault="degraded")
    server.wait_ready()
    assert server.readyz().json == {"status": "degraded", "reason": "a capture failed"}
    server.check_golden()


def test_the_memory_of_a_process_that_has_gone_is_nothing() -> None:
    assert health.resident(os.getpid()) > 1 << 20
    assert health.resident(2**22 + 1) == 0


def test_a50_readyz_may_be_asked_often_and_runs_no_self_test(server: Server) -> None:
    steps = server.metric("vllm:time_to_first_token_seconds_count")
    begin = time.monotonic()
    assert {server.readyz().status for _ in range(100)} == {200}
    assert time.monotonic() - begin < 5
    assert server.metric("vllm:time_to_first_token_seconds_count") == steps


def test_an_idle_worker_is_checked_and_a_silent_one_is_not_ready(start: Callable[..., Server]) -> None:
    server = start(check=0.2)
    server.wait_ready()
    time.sleep(1)
    assert server.readyz().status == 200
    wait_for(lambda: server.readyz().status == 200)
    server.check_golden()
