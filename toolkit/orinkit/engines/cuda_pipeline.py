# SPDX-License-Identifier: Apache-2.0
"""The pipeline of engines whose steps are captured (captures.py): tokens are chosen on the device.

What varies between steps lies in device memory, so that the host launches ahead of what it has read; per token it
launches one graph and reads one entry of a ring.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from orinkit.engines.base import Caches, Chosen, Limits, Seat, StepInputs
from orinkit.engines.bound import shape_of
from orinkit.engines.captures import Captures, Contexts, Device, Warm
from orinkit.engines.choosing import RING_STEPS
from orinkit.errors import EngineError

POLL_S = 2e-4
"""Time between two looks at the ring; the steps in flight take longer."""

PROMPT_POLL_S = 2e-5
"""The same for a step of prefill, whose token somebody waits for."""


class CudaPipeline:
    """The pipeline of the `cuda` engine; see `engines.base.Pipeline`."""

    def __init__(self, engine: Device, caches: Caches, chunk: int, limits: Limits) -> None:
        """Make contexts and captures for `caches`. Raises EngineError."""
        self._captures = Captures(Warm(Contexts(engine, caches, chunk, limits)))
        contexts = self._captures.contexts
        self._gpu, self._choosing, self._contexts = engine.gpu, contexts.choosing, contexts
        self._limits = limits
        self.spare = caches.spare(limits.snapshots)
        self._logprobs: dict[int, int] = {}
        self._flight: deque[tuple[int | None, float]] = deque()
        self._launched = 0
        self._fault: EngineError | None = None

    @property
    def run_ahead(self) -> int:
        return self._limits.run_ahead

    @property
    def in_flight(self) -> int:
        return len(self._flight)

    @property
    def degraded(self) -> str | None:
        return self._captures.degraded

    def seat(self, slot: int, seat: Seat) -> None:
        self._choosing.seats.put(slot, seat)
        self._logprobs[slot] = seat.num_logprobs

    def constrain(self, slot: int, mask: np.ndarray[tuple[int], np.dtype[np.uint32]]) -> None:
        masks = self._choosing.seats.masks
        masks.row(slot)[:] = mask
        masks.send(slot)

    def leave(self, slot: int) -> None:
        self._check()
        self._choosing.pad(slot)

    def prefill(self, inputs: StepInputs) -> None:
        self._check()
        shape, capacity = shape_of(inputs), self._contexts.caches.capacity
        if shape.max_length > capacity:
            raise EngineError(f"expected at most {capacity} tokens in a slot, found {shape.max_length}")
        step = self._captures.short(shape)
        self._contexts.send(inputs, step.size if step else shape.tokens)
        if step:
            step.launch()
            self._note(True, PROMPT_POLL_S)
            return
        self._contexts.prefill.enqueue(shape)
        is_wanted = bool((inputs.logit_rows >= 0).any())
        if is_wanted:
            self._contexts.after_prefill[shape.sequences]()
        self._note(is_wanted, PROMPT_POLL_S)

    def decode(self, slots: Sequence[int], longest: int) -> None:
        self._check()
        self._captures.pick(max(slots) + 1, longest).launch()
        self._note(True)

    def collect(self, most: int) -> list[tuple[Chosen, ...]]:
        done = []
        while self._flight:
            step, poll_s = self._flight[0]
            if step is not None and not self._is_complete(step, poll_s if len(self._flight) > most else None):
                break
            done.append(() if step is None else self._choosing.ring.read(step, self._logprobs))
            self._flight.popleft()
        return done

    def _note(self, tells: bool, poll_s: float = POLL_S) -> None:
        """A step is on its way; one that chooses nothing tells nothing."""
        self._flight.append((self._launched if tells else None, poll_s))
        self._launched += tells
        if len(self._flight) >= RING_STEPS:
            raise EngineError(f"expected fewer than {RING_STEPS} steps in flight; collect before launching more")

    def _is_complete(self, step: int, poll_s: float | None) -> bool:
        """Whether the entries of a step can be read, after a wait with looks that far apart, or None for no wait.

        Raises EngineError: the device failed.
        """
        while not self._choosing.has_told(step):
            if poll_s is None:
                return False
            self._look()
            time.sleep(poll_s)
        return True

    def _look(self) -> None:
        """Raises EngineError: the device has failed."""
        try:
            self._gpu.look()
        except EngineError as error:
            self._fault = error
        self._check()

    def _check(self) -> None:
        """Raises EngineError: the device is known to have failed."""
        if self._fault is not None:
            raise self._fault
