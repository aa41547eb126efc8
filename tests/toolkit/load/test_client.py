# SPDX-License-Identifier: Apache-2.0
"""What servers may send that ours does not: each one is a class of error and never an exception."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time

import pytest

from orinkit.load.client import Client, Outcome
from orinkit.load.workload import Shot

SHOT = Shot(0.0, (5, 6), 4, None)
PIECE = 'data: {"choices": [{"text": "a"}]}\n\n'
USAGE = 'data: {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 2}}\n\n'
DONE = "data: [DONE]\n\n"


def answered(status: str, body: str) -> Outcome:
    """The outcome of a request that a socket answers so, closing the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            accepted, _ = listening.accept()
            with accepted, accepted.makefile("rb") as request:
                request.readline()
                headers = http.client.parse_headers(request)
                request.read(int(headers["Content-Length"]))  # what is left unread resets the connection
                accepted.sendall(f"HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{body}".encode())

        thread = threading.Thread(target=answer)
        thread.start()
        outcome = asyncio.run(sent(f"http://127.0.0.1:{listening.getsockname()[1]}"))
        thread.join()
    return outcome


async def sent(url: str) -> Outcome:
    client = Client(url, None, 1, 10.0)
    try:
        return await client.send(SHOT, time.monotonic())
    finally:
        await client.close()


def test_a_whole_answer() -> None:
    outcome = answered("200 OK", PIECE * 2 + USAGE + DONE)
    assert outcome.error is None
    assert (outcome.num_prompt, outcome.num_tokens, len(outcome.times)) == (2, 2, 2)
    assert 0 <= outcome.first <= outcome.whole


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        ("200 OK", PIECE, "incomplete"),
        ("200 OK", "", "incomplete"),
        ("200 OK", PIECE + 'data: {"error": {"code": "gone"}}\n\n', "stream gone"),
        ("200 OK", "data: {\n\n", "no stream of completions"),
        ("200 OK", "data: 7\n\n", "no stream of completions"),
        ("200 OK", 'data: {"usage": {"tokens": 1}}\n\n', "no stream of completions"),
        ("429 Too Many Requests", '{"error": {"code": "queue_full"}}', "429 queue_full"),
        ("500 Internal Server Error", "<html>", "500 without a code"),
        ("503 Service Unavailable", "[]", "503 without a code"),
    ],
)
def test_failures_by_their_class(status: str, body: str, error: str) -> None:
    assert answered(status, body).error == error


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        outcome = asyncio.run(sent(f"http://127.0.0.1:{free.getsockname()[1]}"))
    assert outcome.error == "connection: ConnectError"
