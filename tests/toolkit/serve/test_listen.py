# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from orinkit.errors import ConfigError, LockedError
from orinkit.serve import listen
from toolkit.serve.servers import Server


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path: that of a Unix socket has at most 107 bytes."""
    with TemporaryDirectory() as folder:
        yield Path(folder) / "api.sock"


def test_a3_a_socket_never_has_another_mode(place: Path) -> None:
    with closing(listen.unix(place, 0o660)):
        assert stat.S_IMODE(place.stat().st_mode) == 0o660
    assert sorted(path.name for path in place.parent.iterdir()) == ["api.sock"]


def test_a3_the_folder_is_closed_to_others(place: Path) -> None:
    folder = listen.folder(place.parent / "run")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    folder.chmod(0o755)
    with pytest.raises(ConfigError, match="closed to others"):
        listen.folder(folder)
    with pytest.raises(ConfigError, match="expected a folder"):
        listen.folder(place.parent / "missing" / "run")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_a3_a45_another_user_cannot_connect(server: Server) -> None:
    for name in ("api", "admin"):
        code = f"import socket; socket.socket(socket.AF_UNIX).connect({f'{server.sockets}/{name}.sock'!r})"
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-I", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "PermissionError" in done.stderr


def test_a4_a_stale_socket_is_replaced(place: Path) -> None:
    listen.unix(place, 0o660).close()
    with closing(listen.unix(place, 0o600)):
        assert stat.S_IMODE(place.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_a4_anything_else_in_its_place_is_refused_and_kept(place: Path, kind: str) -> None:
    other = place.with_name("other")
    other.write_text("precious")
    if kind == "file":
        place.write_text("precious")
    elif kind == "link":
        place.symlink_to(other)
    else:
        place.mkdir()
    before = place.lstat()
    with pytest.raises(ConfigError, match="found another file"):
        listen.unix(place, 0o660)
    assert place.lstat().st_ino == before.st_ino
    assert other.read_text() == "precious"


def test_a4_a_socket_that_somebody_answers_is_left_alone(place: Path) -> None:
    with closing(listen.unix(place, 0o660)), pytest.raises(LockedError, match="no other server"):
        listen.unix(place, 0o660)


def test_a1_tcp_listens_at_one_address_only() -> None:
    with closing(listen.tcp("127.0.0.1", 0)) as listening:
        address, port = listening.getsockname()
        assert address == "127.0.0.1"
        with pytest.raises(LockedError, match=f"found {port} taken"):
            listen.tcp("127.0.0.1", port)
    with pytest.raises(ConfigError, match="address of this machine"):
        listen.tcp("203.0.113.5", 0)


def test_sockets_of_systemd_are_for_the_process_that_they_are_meant_for() -> None:
    assert listen.passed({"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "api"}) == {}
    code = """
import os, socket
from orinkit.serve import listen
made = socket.socketpair()[0]
os.dup2(made.fileno(), 3)
found = listen.passed({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "api"})
print({name: sock.fileno() for name, sock in found.items()})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'api': 3}"


def test_a17_connections_are_at_most_what_descriptors_allow() -> None:
    code = "from orinkit.serve import listen; print(listen.affordable(1024), listen.affordable(10))"
    found = [
        subprocess.run([*limit, sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for limit in (["prlimit", "--nofile=64:64"], ["prlimit", "--nofile=64:5000"])
    ]
    assert found == [["16", "10"], ["1024", "10"]]


def test_a_socket_made_by_hand_is_one_of_unix(place: Path) -> None:
    with closing(listen.unix(place, 0o660)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(place))
