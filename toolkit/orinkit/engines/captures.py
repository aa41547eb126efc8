# SPDX-License-Identifier: Apache-2.0
"""Captured steps: a decode step's graph, choice of tokens and advance are one CUDA graph for each size, and so is a
short prefill step of one sequence, padded to its size.

Start-up goes through three types, each made of the one before, so that no order but the right one can be written:

    Contexts   every step bound to caches and arena, largest first
    Warm       every size has run eagerly, on padding
    Captures   each size as a CUDA graph that has been launched once and has reported back

After that nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from orinkit.engines.base import Caches, Limits, Profile, StepInputs
from orinkit.engines.bound import StepArrays
from orinkit.engines.choosing import Choosing
from orinkit.engines.gpu import Gpu
from orinkit.engines.kernels import KernelLibrary
from orinkit.engines.launches import StepShape
from orinkit.errors import DeviceError, EngineError
from orinkit.memory.needs import decode_sizes, prefill_sizes

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
    """All steps over one set of caches. Prefill steps come first: the longest of them needs the largest arena."""

    def __init__(self, engine: Device, caches: Caches, chunk: int, limits: Limits) -> None:
        """Raises EngineError."""
        slots, capacity, vocab = caches.slots, caches.capacity, engine.vocab
        self.engine, self.caches = engine, caches
        self.logits = engine.gpu.allocate(4 * slots * vocab)
        fixed = {"logits": self.logits.address}
        profile = Profile("prefill", chunk, min(slots, chunk))
        self._inputs = StepArrays(engine.gpu, profile, "destinations")
        addresses = self._inputs.addresses
        self.prefill = engine.bind(profile, caches, addresses | fixed)
        self.short = {
            size: engine.bind(Profile(f"prefill {size}", size, 1), caches, addresses | fixed)
            for size in reversed(prefill_sizes(chunk))
        }
        self.choosing = Choosing(engine.gpu, engine.library, slots, capacity, vocab, self.logits.address, limits)
        self.after_prefill = {
            rows: self.choosing.bind(addresses, rows, addresses["destinations"])
            for rows in range(1, profile.sequences + 1)
        }
        self.decode = {
            size: engine.bind(Profile(f"decode {size}", size, size), caches, self.choosing.next | fixed)
            for size in reversed(decode_sizes(slots))
        }

    def send(self, inputs: StepInputs, tokens: int) -> None:
        """Enqueue the inputs of the next prefill step, with tokens of nobody behind them up to `tokens`."""
        destinations = np.where(inputs.logit_rows >= 0, inputs.slots, np.int32(-1))
        self._inputs.send(inputs, tokens, destinations=destinations)

    def short_step(self, size: int) -> Callable[[], None]:
        """The function that enqueues a whole prefill step of one sequence, of up to `size` tokens and any length."""
        return self._whole(self.short[size], StepShape(size, 1, 1, size, self.caches.capacity), self.after_prefill[1])

    def decode_step(self, size: int) -> Callable[[], None]:
        """The function that enqueues a whole decode step of `size` rows, which may be as long as the caches."""
        end = self.choosing.bind(self.choosing.next, size, None)
        return self._whole(self.decode[size], StepShape(size, size, size, 1, self.caches.capacity), end)

    def _whole(self, step: Step, shape: StepShape, end: Callable[[], None]) -> Callable[[], None]:
        def enqueue() -> None:
            step.enqueue(shape)
            end()

        return enqueue


class Warm:
    """Contexts that have run: whatever is made lazily at the first launch exists."""

    def __init__(self, contexts: Contexts) -> None:
        """Raises EngineError."""
        self.contexts = contexts
        self.prefills = {size: contexts.short_step(size) for size in contexts.short}
        self.steps = {size: contexts.decode_step(size) for size in contexts.decode}
        contexts.send(_PADDING, max(contexts.short, default=1))
        for step in (*self.prefills.values(), *self.steps.values()):
            step()
        contexts.engine.gpu.synchronise()


@dataclass(frozen=True)
class Captured:
    """A step as one CUDA graph, and for what it is valid."""

    size: int
    """Tokens of a prefill step, sequences of a decode step."""
    capacity: int
    launch: Callable[[], None]


class Captures:
    """The steps of every size: captured and checked, or, where a capture failed, eager and said so."""

    def __init__(self, warm: Warm) -> None:
        """Raises EngineError: an error that leaves the device unusable, or a capture that does not report back."""
        self.contexts = warm.contexts
        self._missing: list[str] = []
        self.prefills = self._capture(warm.prefills, "prefill steps of {} tokens")
        self.steps = self._capture(warm.steps, "decode steps of {} sequences")
        self._sizes = [min(size for size in self.steps if size >= rows) for rows in range(max(self.steps) + 1)]
        self.contexts.choosing.ring.restart()
        self.contexts.engine.gpu.synchronise()

    @property
    def degraded(self) -> str | None:
        """Which steps are not captured and why, None where all are."""
        return "; ".join(self._missing) or None

    def short(self, shape: StepShape) -> Captured | None:
        """The smallest prefill step that a step fits into; None: it is enqueued kernel by kernel."""
        fitting = [size for size in self.prefills if size >= shape.tokens]
        return self.prefills[min(fitting)] if fitting and shape.sequences == 1 else None

    def pick(self, rows: int, longest: int) -> Captured:
        """The smallest step for `rows` rows of at most `longest` tokens. Raises EngineError: none is valid for them."""
        step = self.steps[self._sizes[rows]] if rows < len(self._sizes) else None
        if step is None or longest > step.capacity:
            raise EngineError(
                f"decode refused: expected at most {max(self.steps)} rows of {self.contexts.caches.capacity} tokens, "
                f"found {rows} of {longest}"
            )
        return step

    def _capture(self, steps: Mapping[int, Callable[[], None]], names: str) -> dict[int, Captured]:
        """Steps by size, the largest first, all captured and then launched once on padding."""
        found = {}
        for size, step in steps.items():
            launch = step
            try:
                launch = self.contexts.engine.gpu.capture(step)
            except DeviceError as error:
                if error.code not in CAPTURE_ERRORS:
                    raise
                self._missing.append(f"{names.format(size)} are not captured: {error}")
            found[size] = Captured(size, self.contexts.caches.capacity, launch)
        for size, each in found.items():
            self._check(each, names.format(size))
        return found

    def _check(self, step: Captured, name: str) -> None:
        choosing = self.contexts.choosing
        before = choosing.num_complete()
        step.launch()
        self.contexts.engine.gpu.synchronise()
        if choosing.num_complete() != before + 1:
            raise EngineError(f"{name}: expected one to report back, found nothing")


_PADDING = StepInputs(
    input_ids=np.empty(0, np.int32),
    cu_seqlens=np.zeros(2, np.int32),
    past_lens=np.zeros(1, np.int32),
    slots=np.full(1, -1, np.int32),
    logit_rows=np.full(1, -1, np.int32),
)
"""A step of one row that belongs to no sequence."""
