# SPDX-License-Identifier: Apache-2.0
"""How a daemon is to run: one dataclass, filled from flags, then a YAML file with the same names, then defaults."""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from orinkit import config
from orinkit.errors import ConfigError

_MIN_KEY = 16
"""Characters of the shortest key: fewer can be guessed."""


@dataclass(frozen=True)
class Settings:
    """Everything that can be chosen; each field is a flag of `orin-run serve` and a key of its file."""

    bundle: str
    """Folder of the bundle."""
    keys: str | None = None
    """Folder of trusted keys; the bundle's signature is checked."""
    engine: str = "onnxruntime"
    """What runs the graph."""
    name: str | None = None
    """Name of the model in the API; without it that of the bundle."""
    host: str = "127.0.0.1"
    """Address to listen at; any but a loopback one needs api_keys and allow_remote."""
    port: int = 8000
    """TCP port; 0 = any free one; -1 = no TCP."""
    sockets: str | None = None
    """Folder for the Unix sockets api.sock and live.sock (mode 0660) and admin.sock (0600)."""
    api_keys: str | None = None
    """File with one key a line, readable by nobody else; every route but /livez then asks for one."""
    allow_remote: bool = False
    """Listen at an address that other machines reach."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that a Host or Origin header may have, beside localhost and the addresses of this machine's loopback."""
    queue: int = 16
    """Most requests that wait for a slot; one more is answered 429."""
    client_limit: int = 16
    """Most answers for one client (one key, or one user of the socket) at a time, waiting ones too; `n` counts."""
    connections: int = 1024
    """Most open connections; more wait to be accepted."""
    deadline: float = 300.0
    """Seconds that a request may take, queueing included; it may ask for less."""
    drain: float = 30.0
    """Seconds that running answers get after SIGTERM."""
    load: float = 900.0
    """Seconds that a worker may take to load, self-test included."""
    step: float = 2.0
    """Least seconds of a step's deadline, which is ten times the 99th percentile of the steps so far."""
    restart: float = 1.0
    """Seconds before the first restart after a fault; doubled with each further one within ten minutes."""
    restart_limit: float = 60.0
    """Most seconds before a restart."""
    fault_limit: int = 5
    """Faults within ten minutes after which no further worker is started."""
    farewell: float = 30.0
    """Seconds for which /readyz tells the reason before the daemon gives up."""
    check: float = 60.0
    """Seconds of idleness after which the golden self-test runs again."""
    root: str = "/"
    """Folder below which /proc/meminfo and /sys are read."""

    def validate(self) -> None:
        for name, low, high in _BOUNDS:
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}: expected {low} to {high}, found {getattr(self, name)}")
        if self.name is not None:
            config.check_name("name", self.name)
        if self.port < 0 and self.sockets is None:
            raise ConfigError("port: expected a port or a folder for sockets, found neither; set port or sockets")
        self._check_host()

    def _check_host(self) -> None:
        try:
            is_loopback = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            raise ConfigError(f"host: expected an IP address such as 127.0.0.1, found {self.host[:80]!r}") from None
        if not is_loopback and not (self.api_keys and self.allow_remote):
            raise ConfigError(
                f"host: expected a loopback address, or api_keys and allow_remote with it, found {self.host}; "
                "whoever reaches the port can use the model"
            )


_BOUNDS = (
    ("port", -1, 65535),
    ("queue", 1, 4096),
    ("client_limit", 1, 65536),
    ("connections", 1, 65536),
    ("deadline", 0.1, 86400.0),
    ("drain", 0.0, 3600.0),
    ("load", 1.0, 86400.0),
    ("step", 0.1, 3600.0),
    ("restart", 0.01, 60.0),
    ("restart_limit", 0.01, 3600.0),
    ("fault_limit", 1, 1_000_000),
    ("farewell", 0.0, 3600.0),
    ("check", 0.1, 86400.0),
)


def resolve(flags: Mapping[str, Any], file: Path | None) -> tuple[Settings, dict[str, str]]:
    """The settings, and where each value came from: a flag, the file, or the default. Raises ConfigError."""
    read = {} if file is None else config.load_yaml(file)
    if not isinstance(read, dict):
        raise ConfigError(f"{file}: expected names and values, found something else")
    if file is not None:
        _check_names(read, file)
    given = {name: _plain(value) for name, value in flags.items() if value not in (None, ())}
    settings = config.parse({**read, **given}, Settings, "settings" if file is None else str(file))
    origins = {
        field.name: "flag" if field.name in given else str(file) if field.name in read else "default"
        for field in fields(Settings)
    }
    return settings, origins


def _check_names(read: Mapping[Any, Any], file: Path) -> None:
    known = {field.name for field in fields(Settings)}
    for key in read:
        if key not in known:
            raise ConfigError(f"{file}: unknown key {str(key)[:80]!r}; {config.nearest(str(key), known)}")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def read_api_keys(path: str) -> tuple[str, ...]:
    """The keys in a file. Raises ConfigError: none, a short one, or a file that others can read."""
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            lines = file.read(1 << 16).decode("ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_keys: expected a file with one key a line, found {path}: {error}") from None
    if not stat.S_ISREG(mode) or mode & 0o077:
        raise ConfigError(f"api_keys: expected a file that only its owner can read, found {path}; run chmod 400")
    if not lines or min(map(len, lines)) < _MIN_KEY:
        raise ConfigError(f"api_keys: expected keys of at least {_MIN_KEY} characters in {path}, one a line")
    return tuple(lines)
