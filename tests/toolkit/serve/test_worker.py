# SPDX-License-Identifier: Apache-2.0
"""The worker's own process: what it refuses, and what it leaves behind when it goes."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from orinkit.runtime.request import Request
from orinkit.serve import wire
from orinkit.serve.child import WORKER, Child, Ending
from orinkit.serve.handover import Handover
from toolkit.serve import servers
from toolkit.serve.servers import golden_case, wait_for


def lived(
    bundle: Path, *orders: wire.Order, command: tuple[str, ...] = servers.WORKER, **environment: str
) -> tuple[Ending, list[wire.Report]]:
    """A worker that gets these orders once it is ready, and is left alone when all is answered."""

    async def run() -> tuple[Ending, list[wire.Report]]:
        told: list[wire.Report] = []
        ended = asyncio.Event()

        def report(frame: wire.Report) -> None:
            told.append(frame)
            if isinstance(frame, wire.Ready):
                for order in orders:
                    child.send(order)
            if isinstance(frame, wire.Checked) or (isinstance(frame, wire.Stepped) and frame.ends):
                ended.set()

        child = await Child.start(command, Handover(bundle, "fake", None), report)
        ending = asyncio.ensure_future(child.ending())
        await asyncio.wait({ending, asyncio.ensure_future(ended.wait())}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            child.kill("enough")
        return await ending, told

    before = {name: os.environ.get(name) for name in ("PYTHONPATH", *environment)}
    os.environ.update({"PYTHONPATH": os.pathsep.join(sys.path), **environment})
    try:
        return asyncio.run(run())
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def test_a_request_is_computed_step_by_step(bundle: Path) -> None:
    case = golden_case("ROMEO:", 6)
    _, told = lived(bundle, wire.Submit(41, Request(case.prompt_tokens, max_tokens=6)))
    steps = [frame for frame in told if isinstance(frame, wire.Stepped)]
    assert isinstance(told[0], wire.Ready)
    assert tuple(token.token for frame in steps for token in frame.tokens) == case.tokens
    assert {token.request for frame in steps for token in frame.tokens} == {41}
    assert [end.reason for frame in steps for end in frame.ends] == ["length"]


def test_a_check_is_the_self_test_again(bundle: Path) -> None:
    _, told = lived(bundle, wire.Check())
    assert isinstance(told[-1], wire.Checked)
    assert not [frame for frame in told if isinstance(frame, wire.Stepped) and (frame.tokens or frame.ends)]


def test_a_request_that_should_have_been_refused_is_a_fault(bundle: Path) -> None:
    _, told = lived(bundle, wire.Submit(1, Request((10**6,))))
    (end,) = [end for frame in told if isinstance(frame, wire.Stepped) for end in frame.ends]
    assert (end.reason, type(end.error).__name__) == ("error", "RequestError")


def test_m9_no_memory_at_the_start_is_a_clean_exit(bundle: Path) -> None:
    ending, told = lived(bundle, ORIN_FI="oom@alloc:1")
    assert (ending.code, ending.exit) == ("memory", 75)
    assert [frame for frame in told if isinstance(frame, wire.Ready)] == []


def test_f20_an_altered_bundle_is_a_clean_exit(bundle: Path, tmp_path: Path) -> None:
    broken = servers.fake_bundle(tmp_path / "broken")
    (broken / "tokenizer/chat_template.jinja").write_text("altered")
    ending, _ = lived(broken)
    assert (ending.code, ending.exit) == ("artefact", 78)
    assert "expected" in ending.message


def test_fault_injection_is_refused_by_the_worker_that_is_shipped(bundle: Path) -> None:
    ending, _ = lived(bundle, command=WORKER, ORIN_FI="cuda700@step:1")
    assert (ending.code, ending.exit) == ("artefact", 78)
    assert "ORIN_FI" in ending.message


@pytest.mark.parametrize("order", [b"\xff" * 100, b"\0\0\0\x02[]"])
def test_a47_an_order_that_is_no_frame_ends_the_worker(
    bundle: Path, order: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "encode", lambda _: order)
    ending, _ = lived(bundle, wire.Check())
    assert (ending.code, ending.exit) == ("engine", 70)


def test_a_worker_is_the_first_to_go_when_memory_runs_out(server: servers.Server) -> None:
    wait_for(lambda: Path(f"/proc/{server.worker}/oom_score_adj").read_text() == "500\n")
