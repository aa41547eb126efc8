# SPDX-License-Identifier: Apache-2.0
"""Captured decode of the `cuda` engine: graph, choice of tokens and advance are one CUDA graph for each size.

Start-up goes through three types, each made of the one before, so that no order but the right one can be written:

    Contexts   every step bound to caches and arena, largest first
    Warm       every size has run eagerly, on padding
    Captures   each size as a CUDA graph that has been launched once and has reported back

After that nothing is allocated. What varies between steps lies in device memory, so that the host launches ahead of
what it has read; per token it launches one graph and reads one entry of a ring.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from orinkit.engines.base import Caches, Chosen, Limits, Profile, Seat, StepInputs
from orinkit.engines.bound import StepArrays, shape_of
from orinkit.engines.choosing import RING_STEPS, Choosing
from orinkit.engines.gpu import Gpu
from orinkit.engines.kernels import KernelLibrary
from orinkit.engines.launches import StepShape
from orinkit.errors import DeviceError, EngineError
from orinkit.memory.needs import decode_sizes

POLL_S = 2e-4
"""Time between two looks at the ring; the steps in flight take longer."""

CAPTURE_ERRORS = range(900, 909)
"""CUDA errors that end a capture and nothing else."""


class Step(Protocol):
    """A step with every address fixed."""

    def enqueue(self, shape: StepShape) -> None: ...


class Device(Protocol):
    """What a pipeline takes of an engine whose steps are enqueued on a stream."""

    gpu: Gpu
    library: KernelLibrary

    @property
    def vocab(self) -> int: ...

    def bind(self, profile: Profile, caches: Any, addresses: Mapping[str, int]) -> Step: ...


class Contexts:
    """All steps over one set of caches. The prefill step comes first: it needs the largest arena."""

    def __init__(self, engine: Device, caches: Caches, chunk: int, limits: Limits) -> None:
        """Raises EngineError."""
        slots, capacity, vocab = caches.slots, caches.capacity, engine.vocab
        self.engine, self.caches = engine, caches
        self.logits = engine.gpu.allocate(4 * slots * vocab)
        fixed = {"logits": self.logits.address}
        profile = Profile("prefill", chunk, min(slots, chunk))
        self.inputs = StepArrays(engine.gpu, profile, "destinations")
        self.prefill = engine.bind(profile, caches, self.inputs.addresses | fixed)
        self.choosing = Choosing(engine.gpu, engine.library, slots, capacity, vocab, self.logits.address, limits)
        self.decode = {
            size: engine.bind(Profile(f"decode {size}", size, size), caches, self.choosing.next | fixed)
            for size in reversed(decode_sizes(slots))
        }

    def decode_step(self, size: int) -> Callable[[], None]:
        """The function that enqueues a whole decode step of `size` rows, which may be as long as the caches."""
        shape = StepShape(size, size, size, 1, self.caches.capacity)
        end = self.choosing.bind(self.choosing.next, size, None)

        def enqueue() -> None:
            self.decode[size].enqueue(shape)
            end()

        return enqueue


class Warm:
    """Contexts that have run: whatever is made lazily at the first launch exists."""

    def __init__(self, contexts: Contexts) -> None:
        """Raises EngineError."""
        self.contexts = contexts
        self.steps = {size: contexts.decode_step(size) for size in contexts.decode}
        for step in self.steps.values():
            step()
        contexts.engine.gpu.synchronise()


@dataclass(frozen=True)
class Captured:
    """A decode step as one CUDA graph, and for what it is valid."""

    size: int
    capacity: int
    launch: Callable[[], None]


class Captures:
    """The decode step of every size: captured and checked, or, where a capture failed, eager and said so."""

    def __init__(self, warm: Warm) -> None:
        """Raises EngineError: an error that leaves the device unusable, or a capture that does not report back."""
        self.contexts, self.degraded = warm.contexts, None
        gpu, choosing = warm.contexts.engine.gpu, warm.contexts.choosing
        self.steps: dict[int, Captured] = {}
        for size, step in warm.steps.items():
            launch = step
            try:
                launch = gpu.capture(step)
            except DeviceError as error:
                if error.code not in CAPTURE_ERRORS:
                    raise
                self.degraded = f"decode steps of {size} sequences are not captured: {error}"
            self.steps[size] = Captured(size, warm.contexts.caches.capacity, launch)
        for each in self.steps.values():
            before = choosing.num_complete()
            each.launch()
            gpu.synchronise()
            if choosing.num_complete() != before + 1:
                raise EngineError(f"decode step of {each.size} sequences: expected it to report back, found nothing")
        choosing.ring.restart()
        gpu.synchronise()

    def pick(self, rows: int, longest: int) -> Captured:
        """The smallest step for `rows` rows of at most `longest` tokens. Raises EngineError: none is valid for them."""
        fitting = [size for size in self.steps if size >= rows]
        if not fitting or longest > self.contexts.caches.capacity:
            raise EngineError(
                f"decode refused: expected at most {max(self.steps)} rows of {self.contexts.caches.capacity} tokens, "
                f"found {rows} of {longest}"
            )
        return self.steps[min(fitting)]


class CudaPipeline:
    """The pipeline of the `cuda` engine; see `engines.base.Pipeline`."""

    def __init__(self, engine: Device, caches: Caches, chunk: int, limits: Limits) -> None:
        """Make contexts and captures for `caches`. Raises EngineError."""
        self._captures = Captures(Warm(Contexts(engine, caches, chunk, limits)))
        contexts = self._captures.contexts
        self._gpu, self._choosing, self._contexts = engine.gpu, contexts.choosing, contexts
        self._limits = limits
        self.spare = caches.spare(limits.snapshots)
        self._after_prefill = {
            rows: self._choosing.bind(contexts.inputs.addresses, rows, contexts.inputs.addresses["destinations"])
            for rows in range(1, min(caches.slots, chunk) + 1)
        }
        self._logprobs: dict[int, int] = {}
        self._flight: deque[int | None] = deque()
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
        wanted = inputs.logit_rows >= 0
        self._contexts.inputs.send(inputs, destinations=np.where(wanted, inputs.slots, -1).astype(np.int32))
        self._contexts.prefill.enqueue(shape)
        if wanted.any():
            self._after_prefill[shape.sequences]()
        self._note(bool(wanted.any()))

    def decode(self, slots: Sequence[int], longest: int) -> None:
        self._check()
        self._captures.pick(max(slots) + 1, longest).launch()
        self._note(True)

    def collect(self, most: int) -> list[tuple[Chosen, ...]]:
        done = []
        while self._flight:
            step = self._flight[0]
            if step is not None and not self._is_complete(step, wait=len(self._flight) > most):
                break
            done.append(() if step is None else self._choosing.ring.read(step, self._logprobs))
            self._flight.popleft()
        return done

    def _note(self, tells: bool) -> None:
        """A step is on its way; one that chooses nothing tells nothing."""
        self._flight.append(self._launched if tells else None)
        self._launched += tells
        if len(self._flight) >= RING_STEPS:
            raise EngineError(f"expected fewer than {RING_STEPS} steps in flight; collect before launching more")

    def _is_complete(self, step: int, wait: bool) -> bool:
        """Whether the entries of a step can be read. Raises EngineError: the device failed."""
        while not self._choosing.has_told(step):
            if not wait:
                return False
            self._look()
            time.sleep(POLL_S)
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
