# SPDX-License-Identifier: Apache-2.0
"""A device and a clock that are made up, and a host that drives steps on them as the pipeline does."""

from __future__ import annotations

from dataclasses import dataclass, field

from orinkit.engines.waiting import Waiting

SLACK_S = 6e-5
"""How late the system ends a sleep."""
YIELD_S = 2e-6
LAUNCH_S = 1e-5
RUN_AHEAD = 2


@dataclass
class Seen:
    """What it cost the host to notice steps that it waited for at once."""

    steps: int = 0
    sleeps: int = 0
    yields: int = 0
    checks: int = 0
    late: float = 0.0
    """Seconds from the end of the last one to the look that found it."""


@dataclass
class Host:
    """Drives steps as the pipeline does."""

    now: float = 0.0
    free: float = 0.0
    """When the device has done all that it was given."""
    ends: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waiting = Waiting(lambda: self.now)

    def launch(self, seconds: float, kind: str = "step", *, is_prompt: bool = False) -> None:
        self.waiting.launched(kind, self.now, is_prompt=is_prompt)
        self._enqueue(seconds)
        self.ends.append(self.free)

    def launch_silent(self, seconds: float) -> None:
        self.waiting.launched_silent()
        self._enqueue(seconds)

    def _enqueue(self, seconds: float) -> None:
        self.now += LAUNCH_S
        self.free = max(self.free, self.now) + seconds

    def wait(self) -> Seen:
        """Until the oldest steps are found done, as many as are to be waited for at once."""
        count, seen = self.waiting.together, Seen()
        while self.now < self.ends[count - 1]:
            pause = self.waiting.pause(count)
            if pause is None:
                seen.checks += 1
                continue
            seen.sleeps, seen.yields = seen.sleeps + (pause > 0), seen.yields + (pause == 0)
            self.now += pause + SLACK_S if pause else YIELD_S
        seen.late = self.now - self.ends[count - 1]
        seen.steps = self.waiting.done(sum(end <= self.now for end in self.ends))
        del self.ends[: seen.steps]
        return seen

    def alone(self, *steps: float, is_prompt: bool = False) -> list[Seen]:
        """Steps each of which is waited for before the next is launched."""
        found = []
        for seconds in steps:
            self.launch(seconds, is_prompt=is_prompt)
            found.append(self.wait())
        return found

    def ahead(self, *steps: float) -> list[Seen]:
        """Steps of which some are in flight behind those that are waited for."""
        found = []
        for seconds in steps:
            self.launch(seconds)
            if len(self.ends) > RUN_AHEAD + self.waiting.ahead:
                found.append(self.wait())
        return found
