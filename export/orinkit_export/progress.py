# SPDX-License-Identifier: Apache-2.0
"""Progress of long steps on standard error: bars with rate and remaining time on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Advance = Callable[[int], None]
"""Called with the amount done since the last call."""

LINE_SECONDS = 5.0
"""Least time between two plain lines of one step."""


@contextmanager
def progress(label: str, total: int, unit: str, scale: float = 1.0) -> Iterator[Advance]:
    """Show a step of `total`, printed in `unit` after division by `scale`. Yields the function that advances it."""
    if sys.stderr.isatty():
        with _bar(label, total, unit, scale) as advance:
            yield advance
        return
    lines = _Lines(label, total, unit, scale)
    yield lines.advance
    lines.finish()


def say(text: str) -> None:
    """One line about what is happening."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@contextmanager
def _bar(label: str, total: int, unit: str, scale: float) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(label, total=total, rate="")

        def advance(amount: int) -> None:
            bars.advance(task, amount)
            speed = bars.tasks[0].speed or 0.0
            bars.update(task, rate=f"{speed / scale:.3g} {unit}/s")

        yield advance


@dataclass
class _Lines:
    label: str
    total: int
    unit: str
    scale: float
    done: int = 0

    def __post_init__(self) -> None:
        self.start = self.last = time.monotonic()

    def advance(self, amount: int) -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.last >= LINE_SECONDS:
            self.last = now
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate if rate else 0.0
            percent = 100 * self.done / max(1, self.total)
            say(f"{self.label}: {percent:.0f} %, {rate / self.scale:.3g} {self.unit}/s, {left:.0f} s left")

    def finish(self) -> None:
        seconds = time.monotonic() - self.start
        say(f"{self.label}: {self.done / self.scale:.4g} {self.unit} in {seconds:.1f} s")
