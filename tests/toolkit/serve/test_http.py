# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orinkit.errors import ServiceError
from orinkit.serve import http
from orinkit.serve.http import Response


def head(*lines: bytes) -> http.Head:
    return http.parse_head(b"\r\n".join([b"POST /v1/x?y=1 HTTP/1.1", b"Host: a", *lines, b"", b""]))


def body(headers: dict[str, str], data: bytes) -> bytes:
    async def run() -> bytes:
        reader = asyncio.StreamReader(limit=http.MAX_HEAD)
        reader.feed_data(data)
        reader.feed_eof()
        return await http.read_body(reader, headers)

    return asyncio.run(run())


def test_a_head_is_read() -> None:
    found = head(b"X-Name:  some value\t", b"CONNECTION: Close")
    assert (found.method, found.target, found.path) == ("POST", "/v1/x?y=1", "/v1/x")
    assert found.headers == {"host": "a", "x-name": "some value", "connection": "Close"}
    assert found.wants_close


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"X: a\x00b", 400),
        (b"X: a\x1bb", 400),
        (b"X: a\nY: b", 400),
        (b"X: a\rY: b", 400),
        (b" X: a", 400),
        (b"X : a", 400),
        (b"X", 400),
        (b": a", 400),
        (b"host: b", 400),
        (b"Content-Length: 1, 1", 400),
        (b"Content-Length: -1", 400),
        (b"Content-Length: 0x10", 400),
        (b"Content-Length: ", 400),
        (b"Content-Length: 99999999999999999999", 400),
        (b"Content-Length: 1048577", 413),
        (b"Transfer-Encoding: chunked, identity", 501),
        (b"Transfer-Encoding: xchunked", 501),
    ],
)
def test_a_line_that_leaves_doubt_is_refused(line: bytes, status: int) -> None:
    with pytest.raises(ServiceError) as refused:
        head(line)
    assert refused.value.status == status


@given(st.binary(max_size=300))
def test_a46_any_bytes_are_a_head_or_refused(data: bytes) -> None:
    with contextlib.suppress(ServiceError):
        assert http.parse_head(data + b"\r\n\r\n").path.startswith("/")


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5))
def test_chunks_are_put_together(pieces: list[bytes]) -> None:
    data = b"".join(b"%X\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    assert body({"transfer-encoding": "chunked"}, data + b"GET / HTTP/1.1") == b"".join(pieces)


@pytest.mark.parametrize(
    "data", [b"g\r\n", b"\r\n", b"1\n", b"-1\r\n", b"1 \r\nx\r\n", b"2\r\nxyz\r\n", b"0" * 40 + b"\r\n"]
)
def test_chunks_that_leave_doubt_are_refused(data: bytes) -> None:
    with pytest.raises(ServiceError, match="expected"):
        body({"transfer-encoding": "chunked"}, data + b"0\r\n\r\n")


def test_a_body_has_its_length() -> None:
    assert body({"content-length": "3"}, b"abcdef") == b"abc"
    assert body({}, b"abc") == b""
    with pytest.raises(asyncio.IncompleteReadError):
        body({"content-length": "3"}, b"ab")


def test_an_answer_has_its_length_or_is_chunked() -> None:
    async def pieces() -> AsyncGenerator[bytes, None]:
        yield b"x"

    whole = Response.json({"a": 1}, 429, {"Retry-After": "1"})
    assert whole.head().startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\nContent-Length: 7\r\n" in whole.head()
    assert b"\r\nRetry-After: 1\r\n" in whole.head()
    assert b"\r\nTransfer-Encoding: chunked\r\n" in Response(200, pieces()).head()
    assert b"\r\nConnection: close\r\n" in Response(200, b"", closes=True).head()
