# SPDX-License-Identifier: Apache-2.0
"""Requests that nobody would write: from our own OpenAPI document by Schemathesis, and JSON of any form.

ORIN_FUZZ multiplies the number of requests (make fuzz). After all of them the daemon is as it was (fixture `server`).
"""

from __future__ import annotations

import http.client
import json
import os
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from orinkit.serve import fields, health, openapi
from toolkit.serve.servers import MODEL, Server

pytestmark = pytest.mark.usefixtures("grammar")
FACTOR = int(os.environ.get("ORIN_FUZZ", "1"))
MIB = 1 << 20
SCHEMA = schemathesis.openapi.from_dict(openapi.document("test"))
OPERATIONS = {one.ok().label: one.ok() for one in SCHEMA.get_all_operations() if isinstance(one, Ok)}
CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance]
_PLAIN = hypothesis.settings(
    deadline=None,
    database=None,
    derandomize=FACTOR == 1,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=(hypothesis.Phase.generate,),
)


def served(body: Any) -> Any:
    """Name our model and keep answers short, so that a request that is right otherwise gets to the engine."""
    if not isinstance(body, dict):
        return body
    changed = dict(body)
    if isinstance(changed.get("model"), str):
        changed["model"] = MODEL
    names = ("max_tokens", "max_completion_tokens")
    for name in names:
        if type(changed.get(name)) is int:
            changed[name] = min(changed[name], 3)
    if not changed.keys() & set(names):
        changed["max_tokens"] = 3
    if isinstance(changed.get("timeout"), (int, float)) and changed["timeout"] > 0:
        changed["timeout"] = max(changed["timeout"], 5.0)
    return changed


def examples(count: int) -> hypothesis.settings:
    return hypothesis.settings(_PLAIN, max_examples=count * FACTOR)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("label", list(OPERATIONS))
def test_the_document_tells_what_the_server_does(server: Server, label: str, mode: GenerationMode) -> None:
    operation = OPERATIONS[label]
    is_generation = label.startswith("POST")
    if not is_generation and mode is GenerationMode.NEGATIVE:
        pytest.skip("has no input that could be wrong")
    reached = []

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    @examples(60 if is_generation else 3)
    def ask(case: schemathesis.Case[Any]) -> None:
        if mode is GenerationMode.POSITIVE:
            case.body = served(case.body)
        response = case.call(base_url=f"http://127.0.0.1:{server.port}", timeout=20)
        reached.append(response.status_code)
        case.validate_response(response, checks=CHECKS)
        if response.status_code != 503:
            case.validate_response(response, checks=[not_a_server_error])
        if mode is GenerationMode.NEGATIVE:
            assert 400 <= response.status_code < 500, case.body

    ask()
    assert reached
    if is_generation and mode is GenerationMode.POSITIVE:
        assert 200 in reached


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=20,
)
KNOWN = sorted({*fields.CHAT["properties"], *fields.COMPLETION["properties"]})
BODIES = st.builds(
    lambda base, more, raw: json.dumps({**base, **more}).encode() if raw is None else raw,
    st.sampled_from(
        [
            {"model": MODEL, "prompt": "a", "max_tokens": 3},
            {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "max_tokens": 3},
        ]
    ),
    st.dictionaries(st.sampled_from(KNOWN), JSON, max_size=3),
    st.none() | st.none() | st.none() | st.binary(max_size=200),
)


@hypothesis.given(body=BODIES, path=st.sampled_from(["/v1/completions", "/v1/chat/completions"]))
@examples(100)
def check_body(port: int, body: bytes, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        told = answer.read()
    finally:
        connection.close()
    assert answer.status < 500 or answer.status in (503, 504), told
    if answer.status >= 400:
        error = json.loads(told)["error"]
        assert error["code"]
        assert "Traceback" not in error["message"]


def test_any_json_is_answered_and_memory_stays(server: Server) -> None:
    """504 is what a request gets that asks for a timeout of nothing."""
    check_body(server.port)
    pids = (server.process.pid, server.worker)
    before = [health.resident(pid) for pid in pids]
    check_body(server.port)
    after = [health.resident(pid) for pid in pids]
    assert max(new - old for old, new in zip(before, after, strict=True)) < 8 * MIB
    assert server.events("mistake") == []
