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

FOLLOWED_S = 1e-4
"""Least time between two looks at a step that others follow."""

URGENT_S, MOST_URGENT_S = 2e-5, 1e-4
"""Least and most time between two looks at a step that somebody waits for and that should have ended."""

BEFORE_S, AFTER_S = 1e-4, 2e-4
"""Around the expected end of a step that somebody waits for: between these there are no sleeps."""

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
        self._missed: float | None = None
        self._ended = self._checked = clock()
        self._is_behind_silent = False

    def launched(self, kind: Hashable, begun: float, *, is_prompt: bool = False) -> None:
        """A step has been launched, from the time `begun` on. What follows a prompt is waited for."""
        self._flight.append((None if self._is_behind_silent else kind, begun, is_prompt))
        self._is_behind_silent = False

    def launched_silent(self) -> None:
        """A step has been launched that does not tell when it is done, and so when the next one starts."""
        self._is_behind_silent = True

    def pause(self) -> float | None:
        """Seconds to sleep now that a look has found the oldest step not done; 0: yield the processor. None: it has
        been so long since the device was known to be sound that it is to be asked first."""
        now = self._missed = self._clock()
        if now >= self._checked + CHECK_S:
            self._checked = now
            return None
        kind, begun, is_prompt = self._flight[0]
        usual = self._usual.get(kind, 0.0)
        rest = max(begun, self._ended) + usual - now
        if len(self._flight) > 1 and not is_prompt:
            return min(CHECK_S, rest if rest > _early(usual) else max(FOLLOWED_S, -rest / 32))
        if rest > BEFORE_S:  # from shortly before the end on by halves, for some end earlier than others
            return min(CHECK_S, max(rest - max(usual / 16, BEFORE_S), rest / 2))
        if usual and rest > -AFTER_S:
            return 0.0
        return min(MOST_URGENT_S, max(URGENT_S, -rest / 32))

    def done(self) -> None:
        """A look has found the oldest step done."""
        now, missed = self._clock(), self._missed
        is_followed = len(self._flight) > 1
        kind, begun, is_prompt = self._flight.popleft()
        start, usual = max(begun, self._ended), self._usual.get(kind)
        early = None if usual is None else start + usual - _early(usual)
        if missed is None:
            end = now if early is None else min(now, early)
        elif early is None or missed >= early or is_prompt or not is_followed:
            end = (missed + now) / 2
        else:  # slept through; taken to have come a little early, so that ever earlier looks meet it again
            end = min(now, early)
        if kind is not None and (missed is not None or (early is not None and end < early)):
            self._usual[kind] = _learned(usual, end - start)
        self._ended, self._checked, self._missed = end, now, None


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
