# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from orinkit.serve import status
from orinkit.serve.settings import Settings
from toolkit.serve.servers import Server


def test_a_server_is_asked_by_socket_or_by_port(server: Server) -> None:
    by_port = Settings("b", port=server.port)
    assert status.ask(by_port) == ("ready", 0)
    assert status.ask(replace(by_port, sockets=server.sockets)) == ("ready", 0)


def test_nobody_there_is_said_so(tmp_path: Path) -> None:
    assert status.ask(Settings("b", sockets=str(tmp_path))) == ("no answer", 1)
