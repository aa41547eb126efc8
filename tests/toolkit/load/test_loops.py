# SPDX-License-Identifier: Apache-2.0
"""Load on a real daemon with the fake engine, through real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from orinkit.errors import ConfigError
from orinkit.load.client import CANCELLED, Client
from orinkit.load.loops import NOT_SENT, Run, run
from orinkit.load.workload import Lengths, Workload
from toolkit.serve.servers import Server, fake_bundle, serving, wait_for

KEY = "a-key-of-the-load-test"
PLAIN = Workload(20, 4, None, Lengths.parse("5-30"), Lengths.parse("2-8"), 0, 0.0, 2, 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("load")
    keys = folder / "keys"
    keys.write_text(KEY)
    keys.chmod(0o400)
    with serving(fake_bundle(folder / "bundle"), key=KEY, api_keys=str(keys), queue=4, delay=0.002) as server:
        yield server


def loaded(server: Server, workload: Workload, key: str | None = KEY) -> Run:
    async def measured() -> Run:
        client = Client(f"http://127.0.0.1:{server.port}", key, workload.concurrency, 20.0)
        try:
            return await run(workload, client)
        finally:
            await client.close()

    return asyncio.run(measured())


def test_a_closed_loop_gives_whole_answers_only(server: Server) -> None:
    before = server.metric("vllm:generation_tokens_total")
    found = loaded(server, replace(PLAIN, warmup=0))
    assert [outcome.error for outcome in found.outcomes] == [None] * PLAIN.requests
    assert found.model == "demo"
    shots = list(replace(PLAIN, warmup=0).shots())
    assert [one.num_prompt for one in found.outcomes] == [len(shot.prompt) for shot in shots]
    assert all(0 < one.num_tokens <= shot.max_tokens for one, shot in zip(found.outcomes, shots, strict=True))
    assert sum(one.num_tokens for one in found.outcomes) == server.metric("vllm:generation_tokens_total") - before
    assert all(one.begin <= one.times[0] <= one.times[-1] <= one.end for one in found.outcomes)


def test_the_warm_up_is_sent_and_not_counted(server: Server) -> None:
    before = server.metric("vllm:prompt_tokens_total")
    found = loaded(server, replace(PLAIN, requests=3, warmup=5))
    assert len(found.outcomes) == 3
    prompts = [len(shot.prompt) for shot in replace(PLAIN, requests=3, warmup=5).shots()]
    assert server.metric("vllm:prompt_tokens_total") - before == sum(prompts)


def test_an_open_loop_sends_at_its_times_and_counts_what_it_could_not_send(server: Server) -> None:
    found = loaded(server, replace(PLAIN, rate=400.0, concurrency=2, requests=60, warmup=0))
    assert {outcome.error for outcome in found.outcomes} == {None, NOT_SENT}
    begins = [outcome.begin for outcome in found.outcomes]
    times = [shot.at for shot in replace(PLAIN, rate=400.0, requests=60, warmup=0).shots()]
    assert [begin - begins[0] for begin in begins] == pytest.approx([at - times[0] for at in times])


def test_a_full_queue_is_a_class_of_its_own(server: Server) -> None:
    found = loaded(server, replace(PLAIN, concurrency=40, requests=80, answer=Lengths.parse("8")))
    assert {outcome.error for outcome in found.outcomes} <= {None, "429 queue_full", "429 client_limit"}
    refused = [outcome for outcome in found.outcomes if outcome.is_refused]
    assert refused
    assert refused == [outcome for outcome in found.outcomes if outcome.error is not None]


def test_cancelled_requests_leave_the_server(server: Server) -> None:
    found = loaded(server, replace(PLAIN, cancel=1.0, answer=Lengths.parse("40"), warmup=0))
    assert {outcome.error for outcome in found.outcomes} <= {CANCELLED, None}
    cancelled = [outcome for outcome in found.outcomes if outcome.error == CANCELLED]
    assert cancelled
    assert all(outcome.num_tokens == len(outcome.times) for outcome in cancelled)
    wait_for(lambda: server.metric("vllm:num_requests_running") == 0, server.explain)


def test_a_fault_in_the_middle_is_told_by_its_code(server: Server) -> None:
    server.inject("cuda700@step:6")
    found = loaded(server, replace(PLAIN, answer=Lengths.parse("20"), warmup=0, requests=8))
    errors = {outcome.error for outcome in found.outcomes} - {None}
    assert errors
    assert all(error.startswith(("stream ", "503 ")) for error in errors if error is not None)
    server.wait_ready()


def test_a_server_that_is_not_there_or_wants_another_key(server: Server) -> None:
    with pytest.raises(ConfigError, match=r"found: .*401"):
        loaded(server, PLAIN, key="wrong")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(ConfigError, match="/v1/models"):
            asyncio.run(Client(f"http://127.0.0.1:{port}", None, 1, 2.0).open())


def test_the_key_reaches_no_message(server: Server) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(server, PLAIN, key="secret-that-is-wrong")
    assert "secret" not in str(caught.value)
