# SPDX-License-Identifier: Apache-2.0
"""How long a step may take before the worker is held to hang."""

from __future__ import annotations

import math
from collections import deque

_FACTOR = 10
_USUAL_LOAD = 5.0
"""Seconds that a worker may need to load, as long as none was measured."""
_WINDOW = 512
"""Steps that the percentile looks at."""


class Pace:
    """Ten times the 99th percentile of the steps so far, at least `least` seconds.

    While a prompt is being read, a step has a chunk of it instead of one token each, and may take ten self-tests: a
    self-test reads prompts and takes dozens of steps.
    """

    def __init__(self, least: float) -> None:
        self._least = least
        self._selftest = 0.0
        self._steps: deque[float] = deque(maxlen=_WINDOW)
        self._slowest = 0.0

    def begin(self, selftest: float) -> None:
        """A worker has passed its self-test in so many seconds."""
        self._selftest = selftest
        self._steps.clear()
        self._slowest = 0.0

    def add(self, seconds: float) -> None:
        """Note a step."""
        self._steps.append(seconds)
        # Sorting at every token would cost more than the token; the true percentile is taken at each sixteenth.
        self._slowest = max(self._slowest, seconds)
        if len(self._steps) % 16 == 0:
            self._slowest = sorted(self._steps)[math.ceil(0.99 * len(self._steps)) - 1]

    def limit(self, is_reading: bool) -> float:
        """Seconds that the next step may take; `is_reading`: a prompt may be part of it."""
        known = len(self._steps) >= _WINDOW // 8
        longest = max(self._slowest, self._selftest) if is_reading or not known else self._slowest
        return max(self._least, _FACTOR * longest)


class Loads:
    """How long workers took to load: what a client is told to wait for the next one."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=20)

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    @property
    def usual(self) -> float:
        """The 95th percentile, in seconds."""
        known = sorted(self._seconds) or [_USUAL_LOAD]
        return known[math.ceil(0.95 * len(known)) - 1]
