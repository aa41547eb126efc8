# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orinkit.errors import ServiceError
from orinkit.serve import fields, strictjson

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "a", "text"]), inner),
    max_leaves=8,
)


@given(VALUES)
def test_json_comes_back(data: Any) -> None:
    assert strictjson.read(json.dumps(data).encode()) == data


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"a": {"b": 1, "b": 2}}', "b: expected this key once"),
        (b'{"a": -Infinity}', "finite"),
        (b"[1e999]", "finite"),
        (b"[" * 33 + b"]" * 33, "32 levels"),
        (b"{", "expected JSON"),
        (b'{"a": 1} x', "expected JSON"),
        (b"\xff\xfe", "expected JSON"),
        (b"9" * 5000, "expected JSON"),
        (b"", "expected JSON"),
    ],
)
def test_json_that_means_two_things_or_nothing_is_refused(text: bytes, says: str) -> None:
    with pytest.raises(ServiceError, match=says) as refused:
        strictjson.read(text)
    assert refused.value.status == 400


def test_a19_brackets_in_texts_are_no_levels() -> None:
    assert strictjson.read(b'["' + b"[" * 100 + b'\\"[["]') == ["[" * 100 + '"[[']


@pytest.mark.parametrize("text", [b"[" * 1_000_000, b'"' + b"\\" * 1_000_000, b'"a' * 300_000, b'{"a":' * 200_000])
def test_a19_hostile_json_is_refused_soon(text: bytes) -> None:
    begin = time.monotonic()
    with pytest.raises(ServiceError):
        strictjson.read(text)
    assert time.monotonic() - begin < 5


def verdict(data: Any, schema: Any) -> bool:
    try:
        strictjson.check(data, schema)
    except ServiceError:
        return False
    return True


SCHEMAS = [fields.MESSAGE, *(fields.COMPLETION["properties"][name] for name in ("stop", "n", "prompt"))]
IDS = st.lists(st.integers(-1, 3) | st.sampled_from([2**31, 2**63, 1.0, 1.5, True, None]), max_size=4)


@given(VALUES | IDS, st.sampled_from(SCHEMAS))
def test_a_schema_means_what_json_schema_means(data: Any, schema: Any) -> None:
    assert verdict(data, schema) == jsonschema.Draft202012Validator(schema).is_valid(data)


@given(st.dictionaries(st.sampled_from(sorted(fields.COMPLETION["properties"])), VALUES))
def test_bodies_are_judged_as_json_schema_judges(body: Any) -> None:
    full = {"model": "demo", "prompt": "x", **body}
    assert verdict(full, fields.COMPLETION) == jsonschema.Draft202012Validator(fields.COMPLETION).is_valid(full)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "a"}, "messages"),
        ({"model": "a", "messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"model": "a", "messages": [{"role": "nobody", "content": ""}]}, "messages[0].role"),
        ({"model": "a", "messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
        ({"model": "a", "messages": [], "n": 1}, "messages"),
        ({"model": "a", "messages": [{"role": "user"}], "response_format": {"type": "xml"}}, "response_format"),
        ({"model": "a", "messages": [{"role": "user"}], "tools": [{"type": "x"}]}, "tools[0].type"),
    ],
)
def test_a_refusal_names_the_field(body: Any, param: str) -> None:
    with pytest.raises(ServiceError) as refused:
        strictjson.check(body, fields.CHAT)
    assert refused.value.param == param
    assert str(refused.value).startswith(f"{param}: ")
