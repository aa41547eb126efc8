# SPDX-License-Identifier: Apache-2.0
"""Listening sockets and the loop that accepts from them.

A Unix socket is made under a temporary name, given its mode and renamed, so that nobody meets it with another mode; a
stale one is replaced, and anything else at its path is refused. A socket that systemd has made is taken as it is.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import stat
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, NoReturn

from orinkit.errors import ConfigError, LockedError

_BACKLOG = 128
_FIRST_PASSED = 3
"""Number of the first descriptor that systemd passes (sd_listen_fds(3))."""
_RESERVED = 48
"""Descriptors that are kept for the worker, files and the other sockets."""
_LEAST = 8
Serve = Callable[[socket.socket], Coroutine[Any, Any, None]]


def tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises ConfigError: the address is not ours; LockedError: the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise LockedError(f"port: expected a free one, found {port} taken; stop what listens there") from None
        raise ConfigError(f"host: expected an address of this machine, found {host}: {error.strerror}") from None
    return _listening(listening)


def folder(path: Path) -> Path:
    """The folder of the Unix sockets, made with mode 0750 if it is missing. Raises ConfigError."""
    try:
        if not path.exists():
            path.mkdir(mode=0o700)
            path.chmod(0o750)
    except OSError as error:
        raise ConfigError(f"sockets: expected a folder, found {path}: {error.strerror}") from None
    if stat.S_IMODE(path.stat().st_mode) & 0o027:
        raise ConfigError(f"sockets: expected a folder closed to others, found {path}; run chmod 0750")
    return path


def unix(path: Path, mode: int) -> socket.socket:
    """A listening Unix socket with this mode.

    Raises ConfigError: something else is in its place; LockedError: another server answers there.
    """
    _check_place(path)
    made = path.with_name(f".{path.name}.{os.getpid()}")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(made))
        made.chmod(mode)
        _listening(listening)
        made.rename(path)
    except OSError as error:
        listening.close()
        made.unlink(missing_ok=True)
        raise ConfigError(f"sockets: expected a place for {path.name}, found: {error.strerror or error}") from None
    return listening


def _check_place(path: Path) -> None:
    try:
        found = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found):
        raise ConfigError(f"{path}: expected nothing or a stale socket, found another file; remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
        except OSError:
            pass
    raise LockedError(f"{path}: expected no other server, found one that answers; stop it")


def passed(environment: Mapping[str, str]) -> dict[str, socket.socket]:
    """The sockets that systemd has made for us, by name (FileDescriptorName=)."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    return {name: socket.socket(fileno=_FIRST_PASSED + index) for index, name in enumerate(names)}


def _listening(bound: socket.socket) -> socket.socket:
    bound.listen(_BACKLOG)
    return bound


def affordable(connections: int) -> int:
    """At most `connections`, and no more than descriptors allow; their soft limit is raised for it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _RESERVED
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(_LEAST, soft - _RESERVED)


class Door:
    """Accepts connections, at most so many at a time over all its sockets; the others wait in the kernel's queue."""

    def __init__(self, limit: int, serve: Serve) -> None:
        self._room = asyncio.Semaphore(limit)
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def num_open(self) -> int:
        return len(self._tasks)

    async def accept(self, listening: socket.socket) -> NoReturn:
        """Accept from one socket until cancelled."""
        listening.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError:
                # No descriptor left, or the client has gone again: the next one may fare better, but not at once.
                self._room.release()
                await asyncio.sleep(0.1)
                continue
            except asyncio.CancelledError:
                self._room.release()
                raise
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = loop.create_task(self._serve(accepted))
            self._tasks.add(task)
            task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()

    async def close(self) -> None:
        """Cut off every connection."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
