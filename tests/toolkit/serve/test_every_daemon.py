# SPDX-License-Identifier: Apache-2.0
"""The daemon with the worker that is shipped: golden answers over HTTP, side by side, beside answers that are long or
left, and from the next worker when one is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from every_engine import ON_GPU, served
from orinkit.bundle import Bundle, GoldenCase
from orinkit.ops import VERSIONS
from orinkit.runtime.start import open_tokenizer
from toolkit.serve.servers import MODEL, Server, serving, wait_for

CLIENTS = 8
LONG, TOKENS = "Tom has", 200
"""A prompt whose answer is not soon ended, and has no choice that other kernels could make otherwise. It takes fewer
steps in a row until the most of them are in flight (`engines.waiting`)."""


@pytest.fixture(scope="module")
def demo(demo_bundle: Path) -> Bundle:
    return Bundle.open(demo_bundle, keys=None, supported=VERSIONS)


@pytest.fixture(scope="module", params=["onnxruntime", *ON_GPU])
def server(request: pytest.FixtureRequest, demo: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("daemon") / "demo"
    with (
        served(request.param, demo.graph.parent, folder, demo.manifest.recipe.shapes) as on,
        serving(folder, engine=on.engine, name=MODEL, fault=None) as found,
    ):
        yield found


def asked(server: Server, prompt: str | list[int], max_tokens: int) -> str:
    """What it says to a prompt. Streamed: what a client waits for is the next token, on a slow machine too."""
    pieces = []
    for event in server.stream(prompt, max_tokens=max_tokens):
        if event != "[DONE]":
            pieces.append(json.loads(event)["choices"][0]["text"])
    return "".join(pieces)


def golden(server: Server, case: GoldenCase) -> str:
    return asked(server, list(case.prompt_tokens), len(case.tokens))


def wanted(demo: Bundle, case: GoldenCase) -> str:
    return open_tokenizer(demo).decode(case.tokens)


def test_golden_answers_side_by_side(server: Server, demo: Bundle) -> None:
    cases = [*demo.manifest.golden] * CLIENTS
    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(lambda case: golden(server, case), cases))
    assert found == [wanted(demo, case) for case in cases]


def left(server: Server) -> None:
    """A long answer that is left after its first tokens."""
    stream = server.stream(LONG, max_tokens=TOKENS)
    next(stream)
    stream.close()


def test_long_answers_beside_short_ones_and_clients_that_go(server: Server, demo: Bundle) -> None:
    """However many steps are in flight when somebody joins or leaves."""
    alone, cases = server.complete(LONG, max_tokens=TOKENS).json, demo.manifest.golden
    assert alone["usage"]["completion_tokens"] == TOKENS
    with ThreadPoolExecutor(CLIENTS) as pool:
        long = [pool.submit(asked, server, LONG, TOKENS) for _ in range(8)]
        short = [(case, pool.submit(golden, server, case)) for case in 8 * cases]
        gone = [pool.submit(left, server) for _ in range(8)]
    assert {future.result() for future in long} == {alone["choices"][0]["text"]}
    assert all(future.result() == wanted(demo, case) for case, future in short)
    for future in gone:
        future.result()
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0, server.explain)


def test_a_killed_worker_is_replaced_by_one_that_says_the_same(server: Server, demo: Bundle) -> None:
    endless = {"max_tokens": 1000, "logit_bias": {str(token): -100 for token in demo.manifest.model.eos}}
    worker, stream = server.worker, server.stream(LONG, **endless)
    next(stream)
    os.kill(worker, signal.SIGKILL)
    *_, last = stream
    assert json.loads(last)["error"]["code"] == "signal_9"
    server.wait_ready()
    assert server.worker != worker
    for case in demo.manifest.golden:
        assert golden(server, case) == wanted(demo, case)
