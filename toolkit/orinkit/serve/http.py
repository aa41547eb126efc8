# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 as this server speaks it: a strict part of RFC 9112, with a bound on everything.

    request line   METHOD /target HTTP/1.1, one space between, target of at most 8 KiB in ASCII
    headers        at most 100 and 16 KiB in all; CR LF ends a line and nothing else does; no folding; a name once
    body           by Content-Length, or chunked without extensions and trailers; at most 1 MiB; never compressed
    keep-alive     until Connection: close, an error, or a framing that leaves doubt

What RFC 9112 does not allow is answered and the connection closed: there is no guess about where a request ends.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from orinkit.errors import ServiceError

MAX_TARGET = 8 << 10
MAX_HEAD = 16 << 10
"""Bytes of request line and headers together."""
MAX_HEADERS = 100
MAX_BODY = 1 << 20

_REQUEST_LINE = re.compile(r"([A-Z]{1,16}) (/[!-~]*) HTTP/(1\.[01])")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_STRAY = re.compile(rb"(?<!\r)\n|\r(?!\n)|\0")
_LENGTH = re.compile(r"[0-9]{1,12}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")


@dataclass(frozen=True)
class Head:
    """Request line and headers; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def wants_close(self) -> bool:
        return "close" in self.headers.get("connection", "").lower()


@dataclass(frozen=True)
class Response:
    """An answer: all of its body, or pieces that are sent as they come."""

    status: int
    body: bytes | AsyncGenerator[bytes, None]
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    closes: bool = False
    """Whether the connection ends with it."""

    @classmethod
    def json(cls, data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        return cls(status, json.dumps(data, separators=(",", ":")).encode(), headers=headers or {})

    def head(self) -> bytes:
        """Status line and headers."""
        length = f"Content-Length: {len(self.body)}" if isinstance(self.body, bytes) else "Transfer-Encoding: chunked"
        lines = [
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            f"Content-Type: {self.content_type}",
            length,
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            *(f"{name}: {value}" for name, value in self.headers.items()),
            *(["Connection: close"] if self.closes else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def parse_head(raw: bytes) -> Head:
    """Request line and headers, `raw` ends with the empty line. Raises ServiceError 400, 414, 431, 501 and 505."""
    if _STRAY.search(raw):
        raise _bad("expected lines that end with CR LF, found a stray CR, LF or zero byte")
    first, *lines = raw[:-4].decode("latin-1").split("\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise _bad("expected a request line such as GET /livez HTTP/1.1")
    method, target, version = line.groups()
    if len(target) > MAX_TARGET:
        raise ServiceError(f"expected a target of at most {MAX_TARGET} bytes", 414, "target_too_long")
    if version != "1.1":
        raise ServiceError("expected HTTP/1.1", 505, "http_version")
    if len(lines) > MAX_HEADERS:
        raise ServiceError(f"expected at most {MAX_HEADERS} headers, found {len(lines)}", 431, "headers_too_large")
    head = Head(method, target, _headers(lines))
    _check_framing(head.headers)
    return head


def _headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise _bad("expected headers such as Name: value")
        name = match[1].lower()
        if name in headers:
            raise _bad(f"expected the header {name[:40]} once")
        headers[name] = match[2]
    return headers


def _check_framing(headers: Mapping[str, str]) -> None:
    if "host" not in headers:
        raise _bad("expected a Host header")
    if "transfer-encoding" in headers:
        if "content-length" in headers:
            raise _bad("expected Content-Length or Transfer-Encoding, found both")
        if headers["transfer-encoding"].lower() != "chunked":
            raise ServiceError("expected no Transfer-Encoding but chunked", 501, "transfer_encoding")
    length = headers.get("content-length", "0")
    if not _LENGTH.fullmatch(length):
        raise _bad("expected a whole number as Content-Length")
    if int(length) > MAX_BODY:
        raise _too_large()


async def read_body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    """The body that `headers` announce. Raises ServiceError 400 and 413; IncompleteReadError: it ends too soon."""
    if "transfer-encoding" not in headers:
        return await reader.readexactly(int(headers.get("content-length", "0")))
    body = bytearray()
    while size := await _chunk_size(reader):
        if len(body) + size > MAX_BODY:
            raise _too_large()
        body += await reader.readexactly(size)
        await _expect_line_end(reader)
    await _expect_line_end(reader)
    return bytes(body)


async def _chunk_size(reader: asyncio.StreamReader) -> int:
    try:
        line = await reader.readuntil(b"\r\n")
    except asyncio.LimitOverrunError:
        line = b""
    match = _CHUNK.fullmatch(line)
    if match is None:
        raise _bad("expected the size of a chunk in hexadecimal, without extensions")
    return int(match[1], 16)


async def _expect_line_end(reader: asyncio.StreamReader) -> None:
    if await reader.readexactly(2) != b"\r\n":
        raise _bad("expected CR LF behind a chunk, and no trailers")


def _bad(message: str) -> ServiceError:
    return ServiceError(message, 400, "bad_http")


def _too_large() -> ServiceError:
    return ServiceError(f"expected a body of at most {MAX_BODY} bytes", 413, "body_too_large")
