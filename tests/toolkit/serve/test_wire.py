# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orinkit.errors import EngineError, RequestError
from orinkit.runtime.grammar import Grammar
from orinkit.runtime.request import Finished, Request, Timings, Token
from orinkit.runtime.sampling import Sampling
from orinkit.serve import wire

TIMINGS = Timings(3, 2, 0.1, 0.2, 0.3, 1)
REQUEST = Request(
    (1, 2, 3),
    Sampling(temperature=0.5, logit_bias={4: -1.5}, seed=2**64 - 1),
    max_tokens=9,
    stop_tokens=(5,),
    stop=("a", "\u2028"),
    deadline=12.5,
    top_logprobs=2,
    grammar=Grammar("regex", "a+"),
    cuts=(1, 2),
    client="key 1",
)
ORDERS = (wire.Submit(7, REQUEST), wire.Cancel(7), wire.Check())
REPORTS = (
    wire.Ready(0.25),
    wire.Ready(0.25, "no captures"),
    wire.Checked(),
    wire.Fault("cuda_700", "words", 70),
    wire.Stepped(
        0.01,
        (Token(1, 5, -0.5, "ü", ((5, -0.5), (9, -1.5))), Token(2, 6, -1.0, "")),
        (
            Finished(1, "stop", "x", TIMINGS),
            Finished(2, "error", "", TIMINGS, RequestError("prompt: words")),
        ),
    ),
)


def payloads(data: bytes) -> list[bytes]:
    return list(wire.Splitter().feed(data))


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: type(order).__name__)
def test_orders_come_back(order: wire.Order) -> None:
    (payload,) = payloads(wire.encode(order))
    assert wire.decode_order(payload) == order


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: type(report).__name__)
def test_reports_come_back(report: wire.Report) -> None:
    (payload,) = payloads(wire.encode(report))
    assert repr(wire.decode_report(payload)) == repr(report)


def test_a_stream_is_cut_into_frames_wherever_it_is_torn() -> None:
    data = b"".join(wire.encode(order) for order in ORDERS)
    splitter = wire.Splitter()
    found = [payload for index in range(len(data)) for payload in splitter.feed(data[index : index + 1])]
    assert found == payloads(data)
    assert len(found) == len(ORDERS)


def test_a47_a_length_beyond_the_bound_is_refused_before_anything_is_held() -> None:
    with pytest.raises(EngineError, match="at most"):
        payloads((wire.MAX_FRAME + 1).to_bytes(4, "big"))


WRONG: tuple[Any, ...] = (
    {},
    [],
    ["submit"],
    ["unknown", 1],
    ["submit", 1, {}],
    ["submit", -1, {}],
    ["submit", True, {}],
    ["submit", 1, {"prompt": [1], "sampling": {}}],
    ["submit", 1, {"prompt": [1], "sampling": {"logit_bias": {}}, "unknown": 1}],
    ["cancel", "1"],
    ["cancel", 1 << 63],
    ["ready"],
    ["ready", 1],
    ["ready", -1, None],
    ["ready", "1", None],
    ["ready", True, None],
    ["ready", 1, 2],
    ["fault", "a", "b", 0],
    ["fault", 1, "b", 70],
    ["stepped", 0, [[1, 2, 3]], []],
    ["stepped", 0, [[1, 2, "3", "x"]], []],
    ["stepped", 0, [], [[1, "unknown", "", [0] * 6, None]]],
    ["stepped", 0, [], [[1, "stop", "", [0] * 2, None]]],
    ["stepped", 0, [], [[1, "stop", "", [-1] * 6, None]]],
    ["stepped", 0, [], [[1, "stop", "", [0] * 6, "error"]]],
)


@pytest.mark.parametrize("data", WRONG, ids=lambda data: json.dumps(data)[:60])
def test_a47_a_frame_that_is_wrong_is_refused(data: Any) -> None:
    for decode in (wire.decode_order, wire.decode_report):
        with pytest.raises(EngineError, match="frame: expected"):
            decode(json.dumps(data).encode())


@pytest.mark.parametrize(
    "payload", [b"", b"\xff", b"[" * 100_000, b"NaN", b'["ready",NaN,null]', b'["ready",1e999,null]']
)
def test_a47_bytes_that_are_no_frame_are_refused(payload: bytes) -> None:
    with pytest.raises(EngineError):
        wire.decode_report(payload)


def test_a47_a_pickle_is_refused_and_no_module_of_the_daemon_could_read_one() -> None:
    with pytest.raises(EngineError):
        wire.decode_report(b"cos\nsystem\n(S'touch marker'\ntR.")
    for path in Path(wire.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not names & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "multiprocessing"}, path


@given(st.binary(max_size=200))
def test_a47_no_bytes_do_anything_but_decode_or_be_refused(data: bytes) -> None:
    for decode in (wire.decode_order, wire.decode_report):
        with contextlib.suppress(EngineError, RequestError):
            decode(data)


def test_a47_altered_frames_do_nothing_but_decode_or_be_refused() -> None:
    draw = random.Random(7)
    for report in REPORTS * 100:
        (payload,) = payloads(wire.encode(report))
        altered = bytearray(payload)
        altered[draw.randrange(len(altered))] = draw.randrange(256)
        try:
            wire.decode_report(bytes(altered))
        except EngineError:
            continue


def test_a_request_out_of_bounds_is_refused_by_its_own_checks() -> None:
    (payload,) = payloads(wire.encode(wire.Submit(1, REQUEST)))
    with pytest.raises(RequestError, match="temperature"):
        wire.decode_order(payload.replace(b'"temperature":0.5', b'"temperature":7'))


def test_a_frame_that_is_too_long_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_FRAME", 1000)
    with pytest.raises(EngineError, match="at most 1000 bytes"):
        wire.encode(wire.Submit(1, Request(tuple(range(1000)))))
