# SPDX-License-Identifier: Apache-2.0
"""What the daemon costs over the bare runtime, with the demo model on this machine. Ratios of one run, in turns.

    python bench/serving.py build/demo [--rounds 10] [--out bench/results/serving.json]

one stream     time to first token (prompt of 512 tokens) and time per token (128 of them) of both
many streams   tokens per second of as many streams as there are slots, of both
prefix         time to first token of a prompt of 800 tokens, and of others that share its first 768
full queue     time until the answer 429
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import selectors
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from served import Served

from orinkit.bundle import Bundle
from orinkit.ops import VERSIONS
from orinkit.runtime.request import Request, Token
from orinkit.runtime.sampling import Sampling
from orinkit.runtime.scheduler import Scheduler
from orinkit.runtime.start import start

PROMPT, ANSWER = 512, 128
PAUSE = 0.1
"""Seconds between two measurements: threads of ONNX Runtime wait for work a while with the core in their hands."""


class Bare:
    """The runtime in this process."""

    def __init__(self, bundle: Bundle) -> None:
        self.scheduler: Scheduler = start(bundle, "onnxruntime")
        self.eos = bundle.manifest.model.eos

    def request(self, prompt: list[int]) -> Request:
        return Request(tuple(prompt), Sampling(logit_bias=dict.fromkeys(self.eos, -100.0)), max_tokens=ANSWER)

    def one(self, prompt: list[int]) -> tuple[float, float]:
        """Seconds to the first token, and per token after it."""
        begin, times = time.perf_counter(), []
        self.scheduler.submit(self.request(prompt))
        while not self.scheduler.is_idle:
            times += [time.perf_counter() for event in self.scheduler.step() if isinstance(event, Token)]
        return times[0] - begin, (times[-1] - times[0]) / (len(times) - 1)

    def many(self, prompts: list[list[int]]) -> float:
        """Tokens per second of all together."""
        begin = time.perf_counter()
        for prompt in prompts:
            self.scheduler.submit(self.request(prompt))
        while not self.scheduler.is_idle:
            self.scheduler.step()
        return len(prompts) * ANSWER / (time.perf_counter() - begin)


class Daemon(Served):
    """The same through HTTP; the client is a bare socket, to measure the server and not the client."""

    def __init__(self, bundle: Path, model: str, eos: tuple[int, ...]) -> None:
        super().__init__(bundle)
        self.fields = {"model": model, "stream": True, "temperature": 0, "max_tokens": ANSWER}
        self.fields["logit_bias"] = {str(token): -100 for token in eos}

    def send(self, prompt: list[int]) -> socket.socket:
        body = json.dumps({**self.fields, "prompt": prompt}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json"
        connected = socket.create_connection(("127.0.0.1", self.port))
        connected.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        return connected

    def one(self, prompt: list[int]) -> tuple[float, float]:
        begin, times = time.perf_counter(), []
        with self.send(prompt) as connected:
            while data := connected.recv(1 << 16):
                times += [time.perf_counter()] * (b"data: {" in data)
        return times[0] - begin, (times[-1] - times[0]) / (ANSWER - 1)

    def many(self, prompts: list[list[int]]) -> float:
        """One thread reads all: a client with eight would take the cores from what is measured."""
        begin = time.perf_counter()
        with selectors.DefaultSelector() as selector:
            for prompt in prompts:
                connected = self.send(prompt)
                selector.register(connected, selectors.EVENT_READ, connected)
            while selector.get_map():
                for key, _ in selector.select():
                    if not key.data.recv(1 << 16):
                        selector.unregister(key.data)
                        key.data.close()
        return len(prompts) * ANSWER / (time.perf_counter() - begin)

    def prefix(self, rounds: int) -> dict[str, float]:
        """Seconds to the first token without and with a prefix that was read before."""
        fresh, shared = [], []
        for number in range(rounds):
            common = [number % 997 + 3] + [9] * 767
            first, second = (self.one(common + [tail] * 32)[0] for tail in (11, 12))
            fresh.append(first)
            shared.append(second)
        left, right = statistics.median(fresh), statistics.median(shared)
        return {"fresh": left, "shared": right, "ratio": left / right}

    def full(self, slots: int) -> list[float]:
        """Seconds until each of ten answers 429, with all slots and the queue taken."""
        held = [self.send([number + 1] * 8) for number in range(slots + 16)]
        time.sleep(0.1)
        waits = []
        for _ in range(10):
            begin = time.perf_counter()
            with self.send([1]) as connected:
                if b" 429 " in connected.recv(1 << 16):
                    waits.append(time.perf_counter() - begin)
        for connected in held:
            connected.close()
        return waits


def ratios(measure: Callable[[Any], float], rounds: int, bare: Bare, daemon: Daemon) -> dict[str, float]:
    """Medians of both, measured in turns."""

    def rested(side: Bare | Daemon) -> float:
        time.sleep(PAUSE)
        return measure(side)

    pairs = [(rested(bare), rested(daemon)) for _ in range(rounds)]
    left, right = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {"bare": left, "daemon": right, "ratio": right / left}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    bundle = Bundle.open(given.bundle, keys=None, supported=VERSIONS)
    manifest = bundle.manifest
    load, slots, bare = os.getloadavg()[0], manifest.recipe.shapes.slots, Bare(bundle)
    daemon = Daemon(given.bundle, manifest.name, manifest.model.eos)
    short = [[number + 5] * 8 for number in range(slots)]
    prompts = iter([[number % 997 + 3] + [7] * (PROMPT - 1) for number in range(10_000)])
    try:
        for side in (bare, daemon):
            side.one(short[0])
        found = {
            "first_token_s": ratios(lambda side: side.one(next(prompts))[0], given.rounds, bare, daemon),
            "per_token_s": ratios(lambda side: side.one(short[0])[1], given.rounds, bare, daemon),
            f"tokens_per_s_{slots}_streams": ratios(lambda side: side.many(short), given.rounds, bare, daemon),
            "first_token_with_prefix_s": daemon.prefix(given.rounds),
            "full_queue_s": {"max": max(daemon.full(slots), default=0.0)},
        }
    finally:
        daemon.close()
    machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    report = {**machine, "load_average": load, "slots": slots, "rounds": given.rounds, **found}
    text = json.dumps(report, indent=1)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
