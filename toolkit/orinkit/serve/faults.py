# SPDX-License-Identifier: Apache-2.0
"""What a fault means: which errors end the worker, when it is started again, which requests are suspects.

CUDA error numbers fall into three classes. Those of a request leave the context sound; those of a capture cannot come
while serving, for captures are made before; every other number, known or not, leaves the process in a state that only
its end repairs. Out of memory is one of them: everything is allocated at the start, so a step that lacks memory is the
fault of no request, and a new process has what this one had lost.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from orinkit.errors import DeviceError, NumericError, OrinError

EXIT_FAULT = 70
EXIT_MEMORY = 75
EXIT_ARTEFACT = 78
EXIT_FAULTED = 69

WINDOW = 600.0
"""Seconds for which a fault is remembered."""
_OF_A_REQUEST = frozenset({1, 9})
"""cudaErrorInvalidValue, InvalidConfiguration."""
OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation."""


def is_fatal(error: OrinError) -> bool:
    """Whether a process in which an engine raised this must end.

    Always, but for the numbers that a request causes, and for logits that are none: a self-test tells about those.
    """
    return not (isinstance(error, NumericError) or (isinstance(error, DeviceError) and error.code in _OF_A_REQUEST))


def code_of(error: BaseException) -> str:
    """A word for the cause, from a bounded set: it becomes the value of a label."""
    return f"cuda_{error.code}" if isinstance(error, DeviceError) else "engine"


@dataclass
class FaultLog:
    """The faults of the last ten minutes, and what was in flight when they came."""

    limit: int
    """So many faults within the window end all attempts."""
    delay: float
    """Seconds before the first restart; doubled with each fault within the window."""
    longest_delay: float
    clock: Callable[[], float]
    _faults: deque[float] = field(default_factory=deque)
    _suspects: dict[bytes, deque[float]] = field(default_factory=dict)
    _salt: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def add(self, prompts: Iterable[tuple[int, ...]]) -> None:
        """Note a fault and the prompts that were in flight."""
        now = self.clock()
        self._faults.append(now)
        self._forget(now)
        for prompt in set(prompts):
            self._suspects.setdefault(self._digest(prompt), deque()).append(now)

    @property
    def is_over(self) -> bool:
        """Whether there have been too many."""
        self._forget(self.clock())
        return len(self._faults) >= self.limit

    @property
    def next_delay(self) -> float:
        """Seconds to wait before the next start."""
        self._forget(self.clock())
        return min(self.longest_delay, self.delay * 2.0 ** max(0, len(self._faults) - 1)) if self._faults else 0.0

    def is_quarantined(self, prompt: tuple[int, ...]) -> bool:
        """Whether this prompt was in flight at two faults."""
        self._forget(self.clock())
        return len(self._suspects.get(self._digest(prompt), ())) >= 2 if self._suspects else False

    def _digest(self, prompt: tuple[int, ...]) -> bytes:
        return hashlib.blake2b(np.array(prompt, np.int32).tobytes(), key=self._salt, digest_size=16).digest()

    def _forget(self, now: float) -> None:
        for times in (self._faults, *self._suspects.values()):
            while times and times[0] <= now - WINDOW:
                times.popleft()
        self._suspects = {prompt: times for prompt, times in self._suspects.items() if times}
