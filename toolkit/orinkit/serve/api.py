# SPDX-License-Identifier: Apache-2.0
"""Routes, who may use them, and how errors are told."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from orinkit.errors import ServiceError
from orinkit.serve.connection import Exchange
from orinkit.serve.http import Response
from orinkit.serve.metrics import Metrics
from orinkit.serve.supervisor import Log

Answer = Callable[["Call"], Coroutine[Any, Any, Response]]
_NAMES = ("localhost", "localhost.localdomain")


@dataclass(frozen=True)
class Call:
    """A request that has passed the door: what its route needs to know."""

    exchange: Exchange
    client: str
    """Who asks: a key, a user of the socket, or anybody on this machine."""
    id: str


@dataclass(frozen=True)
class Route:
    """What answers at a path. Every route asks for a key, unless it says that it does not."""

    method: str
    answer: Answer
    needs_key: bool = True


class Api:
    """Everything between a parsed request and its route, for the routes of one socket.

    A path that ends with / in the table stands for all that begin with it.
    """

    def __init__(
        self,
        routes: Mapping[str, Route],
        keys: Sequence[str],
        allowed_hosts: Sequence[str],
        metrics: Metrics,
        log: Log,
    ) -> None:
        self.routes = dict(routes)
        self._keys = [_digest(key) for key in keys]
        self._hosts = frozenset((*_NAMES, *(host.lower() for host in allowed_hosts)))
        self._metrics = metrics
        self._log = log

    async def handle(self, exchange: Exchange) -> Response:
        """Answer one request, whatever happens."""
        identity = secrets.token_hex(12)
        try:
            self._check_origin(exchange.head.headers)
            route = self._find(exchange.head.path)
            client = self._client(exchange, route)
            if route is None:
                raise ServiceError("no such path; see /openapi.json", 404, "not_found")
            _check_method(exchange, route)
            return await route.answer(Call(exchange, client, identity))
        except ServiceError as error:
            self._metrics.add("orin_requests_refused_total", code=error.code)
            if error.status not in (401, 403, 404):
                self._log("refused", id=identity, status=error.status, code=error.code, param=error.param)
            return refuse(error, identity)
        except Exception as error:  # noqa: BLE001  (a mistake of ours must not end the connection without a word)
            self._log("mistake", id=identity, error=type(error).__name__, place=place(error))
            return refuse(ServiceError("the server made a mistake", 500, "internal"), identity)

    def _find(self, path: str) -> Route | None:
        if path in self.routes:
            return self.routes[path]
        above = f"{path.rpartition('/')[0]}/"
        return self.routes.get(above) if above != "/" else None

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        """Refuse names that a hostile page could have made point here, and pages of other servers."""
        host = _hostname(headers["host"])
        if not _is_address(host) and host not in self._hosts:
            raise ServiceError("this Host is not one of this server; see allowed_hosts", 403, "host")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != headers["host"]:
            raise ServiceError("pages of other servers may not use this one", 403, "origin")

    def _client(self, exchange: Exchange, route: Route | None) -> str:
        """Who asks. Raises ServiceError 401: nobody whom we know, on a route, known or not, that needs a key."""
        if not self._keys or (route is not None and not route.needs_key):
            return exchange.client
        scheme, _, key = exchange.head.headers.get("authorization", "").partition(" ")
        digest = _digest(key.strip())
        # All keys are compared, so that the time tells nothing.
        matches = [hmac.compare_digest(digest, known) for known in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise ServiceError("expected the header Authorization: Bearer KEY with a known key", 401, "invalid_api_key")
        return f"key {matches.index(True)}"


def refuse(error: ServiceError, identity: str = "") -> Response:
    """An error as OpenAI's clients read it."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response.json({"error": describe(error, identity)}, error.status, headers)


def describe(error: ServiceError, identity: str) -> dict[str, Any]:
    """The body of an error, of an answer or of an event in a stream."""
    return {
        "message": str(error),
        "type": _kind(error),
        "param": error.param,
        "code": error.code,
        "retryable": error.status in (408, 429, 503),
        "request_id": identity,
    }


def _kind(error: ServiceError) -> str:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "engine_fault"}
    return kinds.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")


def _check_method(exchange: Exchange, route: Route) -> None:
    head = exchange.head
    if head.method != route.method:
        raise ServiceError(f"expected the method {route.method}", 405, "method_not_allowed")
    if head.headers.get("content-encoding", "identity").lower() != "identity":
        raise ServiceError("expected a body without Content-Encoding", 415, "content_encoding")
    if route.method == "POST":
        kind = head.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ServiceError("expected the content type application/json", 415, "content_type")


def _hostname(host: str) -> str:
    """Without the port, in lower case; nothing if there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    """An address cannot be made to point here by anybody."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def place(error: Exception) -> str:
    """Where it happened: module and line, for the log."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_globals.get('__name__', '')}:{trace.tb_lineno}"
