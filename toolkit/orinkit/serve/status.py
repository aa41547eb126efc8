# SPDX-License-Identifier: Apache-2.0
"""What `orin-run status` asks of a running server."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import closing
from pathlib import Path

from orinkit.errors import ConfigError
from orinkit.serve.settings import Settings, read_api_keys

_SECONDS = 2.0


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_SECONDS)
        self.sock.connect(str(self._path))


def ask(settings: Settings) -> tuple[str, int]:
    """What /readyz says in one line, and the exit code: 0 ready, 1 not ready or not there."""
    try:
        with closing(_connection(settings)) as connection:
            connection.request("GET", "/readyz", headers=_headers(settings))
            answer = connection.getresponse()
            told = json.loads(answer.read(1 << 16))
    except (OSError, ValueError, http.client.HTTPException):
        return "no answer", 1
    if answer.status == 401:
        return "running; its state is for who has a key", 1
    reason = f": {told['reason']}" if told.get("reason") else ""
    return f"{told.get('status', 'unknown')}{reason}", 0 if answer.status == 200 else 1


def _connection(settings: Settings) -> http.client.HTTPConnection:
    if settings.sockets is not None:
        return _UnixConnection(Path(settings.sockets) / "api.sock")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104  (looked up, not bound)
    return http.client.HTTPConnection(host, settings.port, timeout=_SECONDS)


def _headers(settings: Settings) -> dict[str, str]:
    """A key, where this user may read one."""
    try:
        keys = read_api_keys(settings.api_keys) if settings.api_keys else ()
    except ConfigError:
        keys = ()
    return {"Authorization": f"Bearer {keys[0]}"} if keys else {}
