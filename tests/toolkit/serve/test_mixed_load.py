# SPDX-License-Identifier: Apache-2.0
"""Everything that clients do, side by side, for ORIN_MIXED seconds (make soak): what is right stays right, and slots,
descriptors and memory come back to what they were."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orinkit.serve import health
from toolkit.runtime.serving import TOKENIZER
from toolkit.serve.servers import (
    CAPACITY,
    MODEL,
    Reply,
    Server,
    continuation,
    num_descriptors,
    raw,
    serving,
    tell_memory,
    wait_for,
)

pytestmark = pytest.mark.usefixtures("grammar")
SECONDS = float(os.environ.get("ORIN_MIXED", "2"))
CLIENTS = 8
ROOM = 100
MIB = 1 << 20
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Tom", "Ann"]}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def shared(bundle: Path) -> Iterator[Server]:
    """A daemon with room for all, so that a refusal is wrong here.

    Without keys these clients are one client. With two choices each they have the sixteen jobs that one client may have
    unless told otherwise, and what a client has left counts until the server has noticed.
    """
    with serving(bundle, delay=0.003, queue=ROOM, client_limit=ROOM, drain=0.0) as server:
        yield server


def text_after(prompt: str) -> str:
    """What 24 tokens say after a prompt."""
    return TOKENIZER.decode(continuation(TOKENIZER.encode(prompt, CAPACITY), 24))


GOLDEN = {prompt: text_after(prompt) for prompt in (f"mixed {number} {'x' * (number * 7)}" for number in range(16))}


def chat(server: Server, **fields: Any) -> Reply:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "mixed"}], **fields}
    return server.request("POST", "/v1/chat/completions", body)


def choices(reply: Reply) -> list[Any]:
    """Of a whole answer."""
    assert reply.status == 200, reply
    return list(reply.json["choices"])


class Mix:
    """One client: what it may do, and a promise that every such thing keeps."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server = server
        self.draw = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.deeds = (self.whole, self.streamed, self.left, self.gone, self.talk, self.shaped, self.late, self.wrong)

    def run(self, seconds: float) -> Counter[str]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            deed = self.draw.choice(self.deeds)
            deed()
            self.done[deed.__name__] += 1
        return self.done

    def whole(self) -> None:
        prompt = self.draw.choice(list(GOLDEN))
        assert choices(self.server.complete(prompt, max_tokens=24))[0]["text"] == GOLDEN[prompt]

    def streamed(self) -> None:
        prompt = self.draw.choice(list(GOLDEN))
        *events, last = self.server.stream(prompt, max_tokens=24)
        assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == GOLDEN[prompt]
        assert last == "[DONE]"

    def left(self) -> None:
        """The client leaves in the middle of a stream."""
        with contextlib.closing(self.server.stream("mixed, left", max_tokens=400)) as events:
            for _ in range(self.draw.randrange(1, 5)):
                next(events)

    def gone(self) -> None:
        """The client leaves before anything has come: waiting, in prefill, or of an answer that is not streamed."""
        body = json.dumps({"model": MODEL, "prompt": "mixed, gone" * 20, "max_tokens": 200}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with raw(self.server.port) as connected:
            connected.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(self.draw.uniform(0, 0.05))

    def talk(self) -> None:
        both = choices(chat(self.server, max_tokens=12, n=2, seed=self.draw.randrange(100)))
        assert [choice["message"]["role"] for choice in both] == ["assistant"] * 2

    def shaped(self) -> None:
        wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
        choice = choices(chat(self.server, max_tokens=60, response_format=wanted))[0]
        if choice["finish_reason"] == "stop":
            assert sorted(json.loads(choice["message"]["content"])) == ["name", "old"]

    def late(self) -> None:
        """A deadline that may pass anywhere between the queue and the last token."""
        reply = self.server.complete("mixed, late", max_tokens=100, timeout=self.draw.uniform(0.01, 0.4))
        assert reply.status == 200 or (reply.status, reply.code) == (504, "deadline"), reply

    def wrong(self) -> None:
        assert self.server.complete("mixed", max_tokens=-1).json["error"]["param"] == "max_tokens"


def load(server: Server, seconds: float, seed: int) -> Counter[str]:
    """What all clients did."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        mixes = [Mix(server, CLIENTS * seed + number) for number in range(CLIENTS)]
        return sum(pool.map(lambda mix: mix.run(seconds), mixes), Counter())


def test_l4_mixed_load_leaves_slots_descriptors_and_memory_as_they_were(server: Server) -> None:
    """The first tenth only warms up; what was done is told by --log-cli-level=INFO."""
    pids = (server.process.pid, server.worker)
    load(server, SECONDS / 10 + 1, seed=0)
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0, server.explain)
    before = [(health.resident(pid), num_descriptors(pid)) for pid in pids]
    done = load(server, SECONDS, seed=1)
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0, server.explain)
    assert server.metric("vllm:num_requests_waiting") == 0
    assert server.worker == pids[1]
    assert server.events("mistake") == []
    wait_for(
        lambda: all(num_descriptors(pid) <= count for pid, (_, count) in zip(pids, before, strict=True)),
        server.explain,
    )
    grown = [health.resident(pid) - memory for pid, (memory, _) in zip(pids, before, strict=True)]
    logging.getLogger(__name__).info("done %s, bytes grown %s", dict(done), grown)
    assert max(grown) < 4 * MIB


def test_l7_faults_of_all_kinds_under_load_leave_no_wrong_answer(start: Callable[..., Server], tmp_path: Path) -> None:
    """Each fault is over before the next one; meanwhile an answer is right, or a 503."""
    memory = tmp_path / "proc/meminfo"
    tell_memory(memory, 4 << 20)
    server = start(root=str(tmp_path), delay=0.003, step=0.5, fault_limit=10000, restart=0.2, restart_limit=0.2)
    server.wait_ready()
    faults: dict[str, Callable[[], object]] = {
        "F5": lambda: os.kill(server.worker, signal.SIGKILL),
        "F7": lambda: os.kill(server.worker, signal.SIGSTOP),
        "A31": Mix(server, 0).left,
        "M3": lambda: tell_memory(memory, 100),
    }
    statuses: Counter[int] = Counter()
    is_over = threading.Event()

    def ask(client: int) -> None:
        for number in itertools.count():
            prompt = f"L7 {client} {number}"
            reply = server.complete(prompt, max_tokens=24)
            statuses[reply.status] += 1
            assert reply.status == 503 or choices(reply)[0]["text"] == text_after(prompt)
            if is_over.is_set():
                return

    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(ask, client) for client in range(4)]
        for name in random.Random(7).choices(list(faults), k=int(SECONDS / 20)) or faults:
            faults[name]()
            if name != "A31":
                wait_for(lambda: not server.is_ready(), server.explain)
            tell_memory(memory, 4 << 20)
            server.wait_ready()
            time.sleep(0.2)
        is_over.set()
        for clients in asking:
            clients.result()
    assert set(statuses) == {200, 503}
    assert server.events("mistake") == []
