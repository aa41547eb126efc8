# SPDX-License-Identifier: Apache-2.0
"""When to look whether a step is done: steps of one kind take nearly the same time, so a sleep until about the expected
end and a look or two are enough.

    launch or end of the step in front | start .................... look . look | end
                                       | <--- usual time of the kind --->       |

A sleep ends late by the slack of the system's timers, about 60 us. So around the expected end of a step that somebody
waits for, the processor is yielded instead; one that others follow may be noticed late, for the device has work.

What follows a sleep runs from cold caches. So while steps of one kind follow each other, the end of several is waited
for at once: the longer it has been so, the more, for where a sequence ends among them the others are in vain.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable
from itertools import islice

FOLLOWED_S = 1e-4
"""Least time between two looks at a step that others follow."""

URGENT_S, MOST_URGENT_S = 2e-5, 1e-4
"""Least and most time between two looks at a step that somebody waits for and that should have ended."""

BEFORE_S, AFTER_S = 1e-4, 2e-4
"""Around the expected end of a step that somebody waits for: between these there are no sleeps."""

TOGETHER, TOGETHER_S = 8, 8e-3
"""Most steps whose end is waited for at once, and the most time that they usually take: half a frame of a display."""

EARLY_S = 3e-5
"""Most that an end is taken to have come too early: less than the slack, so that most sleeps end behind their step."""

RUN = 16
"""Steps of one kind in a row for each step more that is waited for at once."""

CHECK_S = 1e-2
"""Waiting time after which the device is to be asked whether it has failed; no sleep is longer."""


class Waiting:
    """The steps in flight that tell when they are done, oldest first; `clock` gives seconds that only rise.

    What a step calls is short, for it runs once a token, after a sleep, from cold caches.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._usual: dict[Hashable, float] = {}
        self._flight: deque[tuple[Hashable, float, bool]] = deque()
        """Kind (None: steps like this tell nothing of each other), when the launch began, whether it is a prompt."""
        self._kind: Hashable = None
        self._run = 0
        """Steps in a row up to the newest that are of its kind; a prompt is of none."""
        self._missed: float | None = None
        self._ended = self._checked = clock()
        self._is_behind_silent = False

    def launched(self, kind: Hashable, begun: float, *, is_prompt: bool = False) -> None:
        """A step has been launched, from the time `begun` on. What follows a prompt is waited for."""
        if self._is_behind_silent:
            kind, self._is_behind_silent = None, False
        self._flight.append((kind, begun, is_prompt))
        kind = None if is_prompt else kind
        self._run = self._run + 1 if kind == self._kind else 1
        self._kind = kind

    def launched_silent(self) -> None:
        """A step has been launched that does not tell when it is done, and so when the next one starts."""
        self._is_behind_silent = True
        self._run = 0

    @property
    def ahead(self) -> int:
        """How many more steps are to be in flight than if each were waited for by itself."""
        usual = self._usual.get(self._kind)
        if not usual or not self._is_steady:
            return 0
        return max(0, min(TOGETHER - 1, self._run // RUN, int(TOGETHER_S / usual) - 1))

    @property
    def together(self) -> int:
        """How many of the oldest steps are to be waited for at once: all of one kind, with another one behind them."""
        return max(1, min(self.ahead + 1, len(self._flight) - 1))

    @property
    def _is_steady(self) -> bool:
        """Whether all steps in flight are of one kind, and none a prompt."""
        return self._kind is not None and self._run >= len(self._flight)

    def pause(self, count: int) -> float | None:
        """Seconds to sleep now that a look has found the `count` oldest steps, all of one kind, not all done; 0: yield
        the processor. None: it has been so long since the device was known to be sound that it is to be asked first."""
        now = self._missed = self._clock()
        if now >= self._checked + CHECK_S:
            self._checked = now
            return None
        kind, _, is_prompt = self._flight[0]
        usual = count * self._usual.get(kind, 0.0)
        rest = self._expected(count) - now
        if len(self._flight) > count and not is_prompt:
            return min(CHECK_S, rest if rest > _early(usual) else max(FOLLOWED_S, -rest / 32))
        if rest > BEFORE_S:  # from shortly before the end on by halves, for some end earlier than others
            return min(CHECK_S, max(rest - max(usual / 16, BEFORE_S), rest / 2))
        if usual and rest > -AFTER_S:
            return 0.0
        return min(MOST_URGENT_S, max(URGENT_S, -rest / 32))

    def done(self, complete: int) -> int:
        """A look has found the `complete` oldest steps done; how many of them are noted: all if every step in flight is
        of one kind, else the oldest."""
        now, missed = self._clock(), self._missed
        count = complete if self._is_steady else 1
        expected, is_followed = self._expected(count), len(self._flight) > count
        kind, _, is_prompt = self._flight[0]
        for _ in range(count):
            self._flight.popleft()
        usual = self._usual.get(kind, 0.0)
        early = expected - _early(count * usual)
        if missed is not None and (not usual or missed >= early or is_prompt or not is_followed):
            end = (missed + now) / 2
        else:  # slept through; taken to have come a little early, so that ever earlier looks meet it again
            end = min(now, early) if usual else now
        if kind is not None and (missed is not None or (usual and end < early)):
            self._usual[kind] = _learned(usual, usual + (end - expected) / count)
        self._ended, self._checked, self._missed = end, now, None
        return count

    def _expected(self, count: int) -> float:
        """When the `count` oldest steps, all of one kind, should be done."""
        usual, end = self._usual.get(self._flight[0][0], 0.0), self._ended
        for _, begun, _ in islice(self._flight, count):
            end = max(end, begun) + usual
        return end


def rounded(count: int) -> int:
    """A number of tokens as a kind of step: rounded up by an eighth at most."""
    unit = 1 << max(0, count.bit_length() - 4)
    return -(-count // unit) * unit


def _early(usual: float) -> float:
    """How much too early an end that was slept through is taken to have come."""
    return min(usual / 128, EARLY_S)


def _learned(usual: float, seen: float) -> float:
    """What is usual after one more step: too little costs a few looks and too much makes ends late, so less is believed
    faster than more."""
    return seen if not usual else usual + (seen - usual) / (2 if seen < usual else 4)
