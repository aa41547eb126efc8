# SPDX-License-Identifier: Apache-2.0
"""Memory that CPU and GPU share, as the kernel tells it; on a Jetson its figures are a guess, so a floor is held.

The floor is a tenth of the memory, at least 512 MiB: below it nothing new is started, what runs may end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orinkit.errors import ConfigError

_SHARE = 0.1
_LEAST = 512 << 20


@dataclass(frozen=True)
class Figures:
    """Bytes, named as in /proc/meminfo; nvmap_used is 0 where there is no NvMap."""

    total: int
    available: int
    free: int
    swap_free: int
    nvmap_used: int = 0

    @classmethod
    def parse(cls, text: str) -> Figures:
        """The figures of a /proc/meminfo. Raises ConfigError: some are missing."""
        found = {name: _bytes(rest) for name, _, rest in (line.partition(":") for line in text.splitlines())}
        try:
            return cls(
                found["MemTotal"], found["MemAvailable"], found["MemFree"], found["SwapFree"],
                found.get("NvMapMemUsed", 0),
            )  # fmt: skip
        except KeyError as error:
            raise ConfigError(f"meminfo: expected the line {error} as in /proc/meminfo, found none") from None

    @property
    def floor(self) -> int:
        return max(int(_SHARE * self.total), _LEAST)

    @property
    def allocatable(self) -> int:
        """What the GPU can get. Source: NVIDIA's CUDA for Tegra application note, "Estimating total allocatable"."""
        host = self.total - self.free - self.nvmap_used
        if host < self.swap_free:
            return self.total - self.nvmap_used
        return self.total - (host - self.swap_free)


class Memory:
    """Reads the figures of one file."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def read(self) -> Figures:
        """Raises ConfigError: not a /proc/meminfo."""
        try:
            return Figures.parse(self._path.read_text(encoding="ascii"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"meminfo: expected a file like /proc/meminfo, found: {error}") from None

    def lacks(self, need: int = 0) -> Mapping[str, int] | None:
        """None if `need` bytes can be taken and the floor still holds, else what is needed and what there is."""
        figures = self.read()
        if figures.available >= need + figures.floor:
            return None
        return {"need": need + figures.floor, "have": figures.available}


def _bytes(rest: str) -> int:
    number, _, unit = rest.strip().partition(" ")
    return (int(number) if number.isdigit() else 0) * (1024 if unit == "kB" else 1)
