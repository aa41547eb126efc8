# SPDX-License-Identifier: Apache-2.0
"""What a worker is told on its command line; nothing of it is secret."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orinkit.errors import ConfigError


@dataclass(frozen=True)
class Handover:
    """Which bundle to serve, with which engine, to whom."""

    bundle: Path
    engine: str
    keys: Path | None
    socket: int = -1
    supervisor: int = 0
    """Number of the process that must be its parent."""

    def arguments(self) -> list[str]:
        return [str(self.bundle), self.engine, str(self.keys or ""), str(self.socket), str(self.supervisor)]

    @classmethod
    def of(cls, arguments: Sequence[str]) -> Handover:
        """Raises ConfigError: not started by a supervisor."""
        try:
            bundle, engine, keys, number, supervisor = arguments
            return cls(Path(bundle), engine, Path(keys) if keys else None, int(number), int(supervisor))
        except ValueError:
            raise ConfigError("worker: expected to be started by orin-run serve; use that") from None
