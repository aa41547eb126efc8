# SPDX-License-Identifier: Apache-2.0
"""Hostile and unlucky clients over real sockets: bounds, times, disconnects."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from toolkit.serve.servers import MODEL, Server, cpu_seconds, num_descriptors, peak_memory, raw, received, wait_for

Start = Callable[..., Server]
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
MB = 1 << 20


def status_of(answer: bytes) -> list[int]:
    """Of all answers in what a connection has received."""
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


def said(server: Server, *pieces: bytes) -> bytes:
    """What a connection receives until it is closed; a server that stops listening early is fine."""
    with raw(server.port) as connected:
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connected.sendall(piece)
        return received(connected)


def body(**fields: object) -> bytes:
    data = json.dumps({"model": MODEL, "prompt": "ROMEO:", "temperature": 0, "max_tokens": 4, **fields}).encode()
    return b"Content-Length: %d\r\n\r\n%b" % (len(data), data)


def test_a9_a_body_that_is_too_long_is_refused_before_it_is_read(server: Server) -> None:
    server.check_golden()
    before = peak_memory(server.process.pid)
    assert status_of(said(server, HEAD, b"Content-Length: %d\r\n\r\n" % (MB + 1))) == [413]
    long = b"x" * (32 * MB)
    assert status_of(said(server, HEAD, b"Content-Length: %d\r\n\r\n" % len(long), long)) == [413]
    assert status_of(said(server, HEAD, b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(long), long)) == [413]
    pieces = b"%x\r\n%b\r\n" % (1000, b"x" * 1000)
    assert status_of(said(server, HEAD, b"Transfer-Encoding: chunked\r\n\r\n", pieces * (len(long) // 1000))) == [413]
    # A body that comes in pieces is kept up to 1 MB, and for a moment twice while its buffer grows.
    assert peak_memory(server.process.pid) - before < 4 * MB


def test_a9_a_content_length_that_lies_is_refused(server: Server) -> None:
    with raw(server.port) as connected:
        connected.sendall(HEAD + b"Content-Length: 100\r\n\r\n{}")
        connected.shutdown(socket.SHUT_WR)
        assert status_of(received(connected))[-1:] == [400]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + b"y" * (4 * MB), 431),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(10_000)), 431),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n", 431),
        (b"GET /" + b"a" * (64 << 10) + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /" + b"a" * (9 << 10) + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    ],
    ids=["a long header", "many headers", "a few headers too many", "a long target", "a target a bit too long"],
)
def test_a11_a_head_that_is_too_long_is_refused(server: Server, head: bytes, expected: int) -> None:
    before = peak_memory(server.process.pid)
    assert status_of(said(server, head)) == [expected]
    assert peak_memory(server.process.pid) - before < MB


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a12_a_compressed_body_is_refused(server: Server, coding: str) -> None:
    reply = server.request("POST", "/v1/completions", b"\x1f\x8b", Content_Encoding=coding)
    assert (reply.status, reply.code) == (415, "content_encoding")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\nHost: localhost\n\n\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: a\nY: b\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET  /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /livez\r\nHost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: +5\r\n\r\nhello",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}x\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n\r\n",
    ],
)
def test_framing_that_http_does_not_allow_is_refused(server: Server, head: bytes) -> None:
    assert status_of(said(server, head)) == [400]


def test_what_is_not_spoken_is_said_so(server: Server) -> None:
    assert status_of(said(server, b"GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n")) == [505]
    assert status_of(said(server, HEAD + b"Transfer-Encoding: gzip\r\n\r\n")) == [501]


def test_a_chunked_body_and_expect_are_understood(server: Server) -> None:
    data = json.dumps({"model": MODEL, "prompt": "ROMEO:", "max_tokens": 2}).encode()
    chunked = b"%x\r\n%b\r\n%X\r\n%b\r\n0\r\n\r\n" % (5, data[:5], len(data) - 5, data[5:])
    assert status_of(said(server, HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked)) == [200]
    assert status_of(said(server, HEAD + b"Connection: close\r\nExpect: 100-continue\r\n" + body())) == [100, 200]


def test_a14_a15_slow_clients_are_closed_in_time(server: Server) -> None:
    """200 clients that send a byte at a time, of the head or of the body; others are served meanwhile."""
    begin = time.monotonic()
    connections = [raw(server.port) for _ in range(200)]
    for number, connected in enumerate(connections):
        connected.sendall(b"GET /livez HT" if number % 2 else HEAD + b"Content-Length: 100\r\n\r\n{")
    while time.monotonic() - begin < 9:
        time.sleep(0.5)
        assert server.request("GET", "/livez").status == 200
        for connected in connections:
            with contextlib.suppress(ConnectionError):
                connected.sendall(b"a")
    for connected in connections:
        assert status_of(received(connected)) in ([408], [])
        connected.close()
    assert time.monotonic() - begin < 15


def test_a17_idle_connections_are_capped_and_livez_still_answers(start: Start) -> None:
    server = start(connections=50)
    server.wait_ready()
    connections = [raw(server.port) for _ in range(120)]
    try:
        wait_for(lambda: num_descriptors(server.process.pid) > 50, server.explain)
        assert num_descriptors(server.process.pid) < 90
        with socket.socket(socket.AF_UNIX) as live:
            live.settimeout(5)
            live.connect(f"{server.sockets}/live.sock")
            live.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            assert status_of(received(live)) == [200]
    finally:
        for connected in connections:
            connected.close()
    server.wait_ready()


def test_a18_without_descriptors_the_server_waits_and_recovers(start: Start) -> None:
    server = start(wrapper=("prlimit", "--nofile=64:64"))
    server.wait_ready()
    connections = [raw(server.port) for _ in range(80)]
    time.sleep(0.5)
    before = cpu_seconds(server.process.pid)
    time.sleep(1)
    assert cpu_seconds(server.process.pid) - before < 0.5
    for connected in connections:
        connected.close()
    server.wait_ready()
    server.check_golden()


def test_a32_a_client_that_stops_sending_still_gets_its_answer(server: Server) -> None:
    with raw(server.port) as connected:
        connected.sendall(HEAD + body(max_tokens=40))
        connected.shutdown(socket.SHUT_WR)
        answer = received(connected)
    assert status_of(answer)[-1] == 200
    assert set(status_of(answer)[:-1]) <= {100}
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 40


def test_a39_pipelined_requests_are_answered_in_order(server: Server) -> None:
    requests = [HEAD + body(max_tokens=count) for count in (3, 1, 2)]
    wrong = HEAD + body(max_tokens=0)
    last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = said(server, b"".join([requests[0], wrong, *requests[1:], last]))
    assert status_of(answer) == [200, 400, 200, 200, 200]
    assert [int(count) for count in re.findall(rb'"completion_tokens":(\d+)', answer)] == [3, 1, 2]


def test_a_client_that_takes_nothing_is_let_go(server: Server) -> None:
    """It asks again and again and never reads: the answers fill its window, and its place is given up."""
    with raw(server.port) as connected:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected.settimeout(0.2)
        request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with contextlib.suppress(TimeoutError):
            for _ in range(3000):
                connected.sendall(request)
        assert server.request("GET", "/livez").status == 200


def cancelled(server: Server) -> float:
    return server.metric('vllm:request_success_total{finished_reason="cancelled"}')


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a31_the_work_for_a_client_that_has_gone_is_stopped(server: Server, phase: str, is_stream: bool) -> None:
    before = cancelled(server)
    prompt = "long " * 60 if phase == "prefill" else "short"
    connected = raw(server.port)
    connected.sendall(HEAD + body(prompt=prompt, max_tokens=200, stream=is_stream))
    wait_for(lambda: server.metric("vllm:num_requests_running") == 1, server.explain)
    if phase == "decode":
        time.sleep(0.05)
    connected.close()
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0, server.explain, 5)
    assert cancelled(server) == before + 1


def test_a31_a_queued_request_of_a_client_that_has_gone_never_starts(server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(server.complete, f"A31 {number}", max_tokens=150) for number in range(4)]
        wait_for(lambda: server.metric("vllm:num_requests_running") == 4, server.explain)
        prompts = server.metric("vllm:prompt_tokens_total")
        connected = raw(server.port)
        connected.sendall(HEAD + body(prompt="never", max_tokens=200))
        wait_for(lambda: server.metric("vllm:num_requests_waiting") == 1, server.explain)
        connected.close()
        wait_for(lambda: server.metric("vllm:num_requests_waiting") == 0, server.explain)
        assert [run.result().status for run in runs] == [200] * 4
        read = sum(run.result().json["usage"]["prompt_tokens"] for run in runs)
    assert server.metric("vllm:prompt_tokens_total") == prompts + read


def test_a31_clients_that_go_at_their_last_token_leave_their_slots(server: Server) -> None:
    for number in range(20):
        with contextlib.closing(server.stream(f"A31 last {number}", max_tokens=5)) as events:
            assert any(json.loads(event)["choices"][0]["finish_reason"] for event in events)
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0, server.explain)


def test_a38_each_choice_counts_for_its_client_until_it_has_gone(start: Start) -> None:
    server = start(delay=0.02, client_limit=4)
    server.wait_ready()
    with raw(server.port) as connected:
        connected.sendall(HEAD + body(n=3, temperature=1, max_tokens=400))
        wait_for(lambda: server.metric("vllm:num_requests_running") == 3, server.explain)
        refused = server.complete(n=2, temperature=1)
        assert (refused.status, refused.code, refused.headers["retry-after"]) == (429, "client_limit", "1")
        assert refused.json["error"]["retryable"]
        assert server.complete().status == 200
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0, server.explain)
    assert len(server.complete(n=2, temperature=1).json["choices"]) == 2
