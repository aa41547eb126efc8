# SPDX-License-Identifier: Apache-2.0
"""One connection: reads requests within their time, runs the handler, writes answers, and notices that the client left.

A client that has closed its sending side may still be waiting for the answer, or be gone: TCP shows the same in both
cases until something is sent. So an interim answer, 100 (Continue), which every client passes over, is sent then; a
client that is gone resets the connection, and its request is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from orinkit.errors import ServiceError
from orinkit.serve import http
from orinkit.serve.http import Head, Response

_T = TypeVar("_T")

HEAD_SECONDS = 5.0
BODY_SECONDS = 10.0
IDLE_SECONDS = 30.0
STALL_SECONDS = 10.0
"""Time that a client may take none of an answer."""
_BUFFER = 1 << 16
_PROBE_SECONDS = 0.005
"""Time after which a client that sends no more is first asked whether it has gone; until then its request counts."""
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 4 << 20
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True)
class Exchange:
    """A request as a handler sees it."""

    head: Head
    client: str
    """Who is on the other side: `uid N` of a Unix socket, else `tcp`."""
    body: Callable[[], Coroutine[Any, Any, bytes]]
    """Reads the body. Raises ServiceError 400, 408 and 413."""


Handler = Callable[[Exchange], Coroutine[Any, Any, Response]]
Refuse = Callable[[ServiceError], Response]
"""How an error is told."""


class _Protocol(asyncio.StreamReaderProtocol):
    """Tells when the other side has stopped sending, or is gone."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        super().__init__(reader)
        self.ended = asyncio.Event()
        self.lost = asyncio.Event()

    def eof_received(self) -> bool | None:
        self.ended.set()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()
        self.lost.set()
        super().connection_lost(exc)


class Connection:
    """Serves one accepted socket until it is closed."""

    def __init__(self, handle: Handler, refuse: Refuse) -> None:
        self._handle = handle
        self._refuse = refuse
        self._has_begun = False
        """Whether something of the answer has been sent."""

    async def serve(self, accepted: socket.socket) -> None:
        """Serve requests one after the other."""
        self._reader = asyncio.StreamReader(limit=http.MAX_HEAD)
        self._protocol = _Protocol(self._reader)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(lambda: self._protocol, accepted)
        transport.set_write_buffer_limits(high=_BUFFER)
        self._writer = asyncio.StreamWriter(transport, self._protocol, self._reader, loop)
        self._socket = accepted
        self._client = _client(accepted)
        try:
            is_first = True
            while await self._serve_one(is_first):
                is_first = False
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            transport.abort()

    async def _serve_one(self, is_first: bool) -> bool:
        """One request; False: the connection is to be closed."""
        self._has_begun = False
        try:
            head = await self._head(is_first)
        except ServiceError as error:
            await self._write(replace(self._refuse(error), closes=True))
            await self._linger()
            return False
        if head is None:
            return False
        body = _Body(self._reader, self._writer, head)
        response = await self._answer(Exchange(head, self._client, body.read))
        is_last = head.wants_close or not body.is_read or response.closes or self._protocol.ended.is_set()
        await self._while_present(self._write(replace(response, closes=is_last)))
        if is_last:
            await self._linger()
        return not is_last

    async def _answer(self, exchange: Exchange) -> Response:
        try:
            return await self._while_present(self._handle(exchange))
        except ServiceError as error:
            return self._refuse(error)

    async def _head(self, is_first: bool) -> Head | None:
        """The next head, None if none comes. Raises ServiceError."""
        first = b""
        if not is_first:
            try:
                first = await asyncio.wait_for(self._reader.read(1), IDLE_SECONDS)
            except asyncio.TimeoutError:
                return None
        try:
            rest = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), HEAD_SECONDS)
        except asyncio.TimeoutError:
            raise ServiceError(f"expected a request within {HEAD_SECONDS:g} s", 408, "head_timeout") from None
        except asyncio.LimitOverrunError:
            raise await self._too_long(first) from None
        return http.parse_head(first + rest)

    async def _too_long(self, first: bytes) -> ServiceError:
        held = first + await self._reader.read(http.MAX_TARGET)
        if b"\n" not in held:
            return ServiceError(f"expected a target of at most {http.MAX_TARGET} bytes", 414, "target_too_long")
        return ServiceError(f"expected headers of at most {http.MAX_HEAD} bytes", 431, "headers_too_large")

    async def _while_present(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`, which is cancelled if the client goes. Raises ConnectionResetError."""
        working, gone = asyncio.ensure_future(work), asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ConnectionResetError("the client has gone")
            return working.result()
        finally:
            gone.cancel()
            working.cancel()
            await asyncio.wait({working})

    async def _gone(self) -> None:
        """Returns when the client is gone for sure."""
        await self._protocol.ended.wait()
        pause = _PROBE_SECONDS
        while not self._protocol.lost.is_set() and not _is_hung_up(self._socket):
            if not self._has_begun:
                self._writer.write(_CONTINUE)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)

    async def _write(self, response: Response) -> None:
        """Send an answer. Raises ConnectionResetError: the client has gone, or takes nothing."""
        self._has_begun = True
        if isinstance(response.body, bytes):
            self._writer.write(response.head() + response.body)
            return await self._drain()
        begin = response.head()
        async with contextlib.aclosing(response.body) as pieces:
            async for piece in pieces:
                if not piece:
                    # A chunk without bytes would end the answer.
                    continue
                self._writer.write(b"%b%x\r\n%b\r\n" % (begin, len(piece), piece))
                begin = b""
                await self._drain()
        self._writer.write(begin + b"0\r\n\r\n")
        return await self._drain()

    async def _drain(self) -> None:
        if self._writer.transport.is_closing():
            raise ConnectionResetError("the client has gone")
        if self._writer.transport.get_write_buffer_size() >= _BUFFER:
            try:
                await asyncio.wait_for(self._writer.drain(), STALL_SECONDS)
            except asyncio.TimeoutError:
                raise ConnectionResetError("the client takes nothing") from None

    async def _linger(self) -> None:
        """Close without a reset, which would take the answer away from a client that still sends: read and drop."""
        self._writer.write_eof()
        end = time.monotonic() + (STALL_SECONDS if self._writer.transport.get_write_buffer_size() else _LINGER_SECONDS)
        left = _LINGER_BYTES
        with contextlib.suppress(asyncio.TimeoutError):
            while left > 0 and (data := await asyncio.wait_for(self._reader.read(1 << 16), end - time.monotonic())):
                left -= len(data)


class _Body:
    """The body of one request, read once and only if somebody wants it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: Head) -> None:
        self._reader, self._writer, self._head = reader, writer, head
        self.is_read = head.headers.get("content-length", "0") == "0" and "transfer-encoding" not in head.headers

    async def read(self) -> bytes:
        if self._head.headers.get("expect", "").lower() == "100-continue":
            self._writer.write(_CONTINUE)
        try:
            body = await asyncio.wait_for(http.read_body(self._reader, self._head.headers), BODY_SECONDS)
        except asyncio.TimeoutError:
            raise ServiceError(f"expected the body within {BODY_SECONDS:g} s", 408, "body_timeout") from None
        except asyncio.IncompleteReadError:
            raise ServiceError("expected the body that was announced, found its end", 400, "bad_http") from None
        self.is_read = True
        return body


def _is_hung_up(connected: socket.socket) -> bool:
    if connected.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(connected, 0)
    return bool(poll.poll(0))


def _client(accepted: socket.socket) -> str:
    if accepted.family != socket.AF_UNIX:
        return "tcp"
    raw = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    return f"uid {uid}"
