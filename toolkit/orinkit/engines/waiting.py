# SPDX-License-Identifier: Apache-2.0
"""When to look whether a step is done: steps of one kind take nearly the same time, so a sleep until about the expected
end and a look or two are enough.

    launch or end of the step in front | start .................... look . look | end
                                       | <--- usual time of the kind --->       |

A sleep ends late by the slack of the system's timers, about 60 us. So around the expected end of a step that somebody
waits for, the processor is yielded instead; one that others follow may be noticed late, for the device has work.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import NamedTuple

FOLLOWED_S = 1e-4
"""Least time between two looks at a step that others follow."""

URGENT_S, MOST_URGENT_S = 2e-5, 1e-4
"""Least and most time between two looks at a step that somebody waits for and that should have ended."""

BEFORE_S, AFTER_S = 1e-4, 2e-4
"""Around the expected end of a step that somebody waits for: between these there are no sleeps."""

CHECK_S = 1e-2
"""Waiting time after which the device is to be asked whether it has failed; no sleep is longer."""


class _Step(NamedTuple):
    kind: Hashable
    """None: steps like this tell nothing of each other."""
    begun: float
    """When its launch began."""
    is_prompt: bool


class Waiting:
    """The steps in flight that tell when they are done, oldest first; `clock` gives seconds that only rise."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._usual: dict[Hashable, float] = {}
        self._flight: deque[_Step] = deque()
        self._missed: float | None = None
        self._ended = self._checked = clock()
        self._is_behind_silent = False

    def launched(self, kind: Hashable, begun: float, *, is_prompt: bool = False) -> None:
        """A step has been launched, from the time `begun` on. What follows a prompt is waited for."""
        self._flight.append(_Step(None if self._is_behind_silent else kind, begun, is_prompt))
        self._is_behind_silent = False

    def launched_silent(self) -> None:
        """A step has been launched that does not tell when it is done, and so when the next one starts."""
        self._is_behind_silent = True

    def pause(self) -> float:
        """Seconds to sleep now that a look has found the oldest step not done; 0: yield the processor."""
        now = self._missed = self._clock()
        step = self._flight[0]
        usual = self._usual.get(step.kind, 0.0)
        rest = self._start(step) + usual - now
        if not self._is_urgent:
            return min(CHECK_S, rest if rest > _early(usual) else max(FOLLOWED_S, -rest / 32))
        if rest > BEFORE_S:  # from shortly before the end on by halves, for some end earlier than others
            return min(CHECK_S, max(rest - max(usual / 16, BEFORE_S), rest / 2))
        if usual and rest > -AFTER_S:
            return 0.0
        return min(MOST_URGENT_S, max(URGENT_S, -rest / 32))

    def is_check_due(self) -> bool:
        """Whether the last look came so long after the device was known to be sound that it has to be asked now."""
        is_due = self._missed is not None and self._missed >= self._checked + CHECK_S
        if is_due:
            self._checked = self._clock()
        return is_due

    def done(self) -> None:
        """A look has found the oldest step done."""
        now, missed = self._clock(), self._missed
        is_urgent, step = self._is_urgent, self._flight.popleft()
        start, usual = self._start(step), self._usual.get(step.kind)
        early = None if usual is None else start + usual - _early(usual)
        if missed is None:
            end = now if early is None else min(now, early)
        elif is_urgent or early is None or missed >= early:
            end = (missed + now) / 2
        else:  # slept through; taken to have come a little early, so that ever earlier looks meet it again
            end = min(now, early)
        if step.kind is not None and (missed is not None or (early is not None and end < early)):
            self._usual[step.kind] = _learned(usual, end - start)
        self._ended, self._checked, self._missed = end, now, None

    @property
    def _is_urgent(self) -> bool:
        return len(self._flight) == 1 or self._flight[0].is_prompt

    def _start(self, step: _Step) -> float:
        return max(step.begun, self._ended)


def rounded(count: int) -> int:
    """A number of tokens as a kind of step: rounded up by an eighth at most."""
    unit = 1 << max(0, count.bit_length() - 4)
    return -(-count // unit) * unit


def _early(usual: float) -> float:
    """How much too early an end that was slept through is taken to have come."""
    return usual / 128


def _learned(usual: float | None, seen: float) -> float:
    """What is usual after one more step: too little costs a few looks and too much makes ends late, so less is believed
    faster than more."""
    return seen if usual is None else usual + (seen - usual) / (2 if seen < usual else 4)
