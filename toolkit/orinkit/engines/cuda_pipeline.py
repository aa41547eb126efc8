# SPDX-License-Identifier: Apache-2.0
"""The pipeline of engines whose steps are captured (captures.py): tokens are chosen on the device.

What varies between steps lies in device memory, so that the host launches ahead of what it has read; per token it
launches one graph and reads one entry of a ring.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from orinkit.engines.base import Caches, Chosen, Limits, Seat, StepInputs
from orinkit.engines.bound import shape_of
from orinkit.engines.captures import Captures, Contexts, Device, Warm
from orinkit.engines.choosing import RING_STEPS
from orinkit.engines.waiting import Waiting, rounded
from orinkit.errors import EngineError


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
        self._flight: deque[int] = deque()
        """Rows of each step; 0: it chooses and tells nothing."""
        self._waiting = Waiting()
        self._next = self._noticed = 0
        """Number of the oldest step in flight that tells something, and how many from it on are known to have told."""
        self._fault: EngineError | None = None

    @property
    def run_ahead(self) -> int:
        return self._limits.run_ahead + self._waiting.ahead

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
        begun = time.perf_counter()
        if step:
            step.launch()
            self._note(("prefill", step.size), 1, begun)
            return
        self._contexts.prefill.enqueue(shape)
        is_wanted = bool((inputs.logit_rows >= 0).any())
        if is_wanted:
            self._contexts.after_prefill[shape.sequences]()
        self._note(("chunk", rounded(shape.tokens)) if is_wanted else None, shape.sequences, begun)

    def decode(self, slots: Sequence[int], longest: int) -> None:
        self._check()
        step = self._captures.pick(max(slots) + 1, longest)
        begun = time.perf_counter()
        step.launch()
        self._note(("decode", step.size), step.size, begun)

    def collect(self, most: int) -> list[tuple[Chosen, ...]]:
        done: list[tuple[Chosen, ...]] = []
        while len(self._flight) > most:
            if not self._flight[0]:
                self._flight.popleft()
                done.append(())
                continue
            if not self._noticed:
                self._noticed = self._notice()
            done.append(self._choosing.ring.read(self._next, self._flight.popleft(), self._logprobs))
            self._next, self._noticed = self._next + 1, self._noticed - 1
        return done

    def _note(self, kind: tuple[str, int] | None, rows: int, begun: float) -> None:
        """A step of `rows` rows is on its way, whose launch began then; one of kind None chooses and tells nothing."""
        if kind is None:
            self._flight.append(0)
            self._waiting.launched_silent()
        else:
            self._flight.append(rows)
            self._waiting.launched(kind, begun, is_prompt=kind[0] != "decode")
        if len(self._flight) >= RING_STEPS:
            raise EngineError(f"expected fewer than {RING_STEPS} steps in flight; collect before launching more")

    def _notice(self) -> int:
        """Wait for as many of the oldest steps as are to be waited for at once: how many have told. Raises EngineError:
        the device failed."""
        count = self._waiting.together
        while not self._choosing.has_told(self._next + count - 1):
            pause_s = self._waiting.pause(count)
            if pause_s is None:
                self._look()
            elif pause_s:
                time.sleep(pause_s)
            else:
                os.sched_yield()  # a sleep of 0 ends late like any other from Python 3.11 on
        return self._waiting.done(self._choosing.num_complete() - self._next)

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
