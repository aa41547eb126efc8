# SPDX-License-Identifier: Apache-2.0
"""Which pipeline serves an engine: its own, where tokens are chosen on the device, or `HostPipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orinkit.engines.base import Capturing, Chosen, Engine, Float32, Limits, Pipeline, Seat, StepInputs
from orinkit.errors import NumericError
from orinkit.recipe import Shapes
from orinkit.runtime.batch import Row
from orinkit.runtime.sampling import MAX_BIASES, MAX_LOGPROBS, History, Sampling, UInt32, sample
from orinkit.runtime.steps import Stepper

RUN_AHEAD = 2
"""Least steps in flight while the next is launched: enough to hide the host."""

MAX_STOP_IDS = 32
"""Stop tokens of a request and of the model together."""


def open_pipeline(engine: Engine, shapes: Shapes) -> Pipeline:
    """Allocate everything that serving takes. Raises EngineError."""
    if isinstance(engine, Capturing):
        limits = Limits(
            biases=MAX_BIASES,
            stops=MAX_STOP_IDS,
            logprobs=MAX_LOGPROBS,
            run_ahead=RUN_AHEAD,
            snapshots=shapes.snapshots,
        )
        return engine.pipeline(shapes.slots, shapes.capacity, shapes.chunk, limits)
    return HostPipeline(Stepper(engine, shapes))


@dataclass
class _Seated:
    """A sequence whose tokens are chosen here."""

    seat: Seat
    sampling: Sampling
    history: History
    length: int = 0
    """Tokens in the caches."""
    last: int = -1
    """The token that the caches still lack."""
    mask: UInt32 | None = None


class HostPipeline:
    """The pipeline of engines that give logits: each step is done when its launch returns."""

    run_ahead = 0
    degraded = None

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self.spare = stepper.spare
        self._seated: dict[int, _Seated] = {}
        self._done: list[tuple[Chosen, ...]] = []

    @property
    def in_flight(self) -> int:
        return len(self._done)

    def seat(self, slot: int, seat: Seat) -> None:
        values: dict[str, Any] = dict(seat.settings)
        sampling = Sampling(**values, logit_bias=seat.biases)
        self._seated[slot] = _Seated(seat, sampling, History.of(seat.prompt))

    def constrain(self, slot: int, mask: UInt32) -> None:
        self._seated[slot].mask = mask

    def leave(self, slot: int) -> None:
        del self._seated[slot]

    def prefill(self, inputs: StepInputs) -> None:
        logits = self._stepper.run_prefill(inputs)
        chosen = []
        for index, slot in enumerate(inputs.slots):
            sequence = self._seated[int(slot)]
            sequence.length = int(inputs.past_lens[index] + np.diff(inputs.cu_seqlens)[index])
            if inputs.logit_rows[index] >= 0:
                chosen.append(_choose(int(slot), sequence, logits[index]))
        self._done.append(tuple(chosen))

    def decode(self, slots: Sequence[int], longest: int) -> None:  # noqa: ARG002  (the engine checks lengths itself)
        rows = [Row(slot, self._seated[slot].length, (self._seated[slot].last,)) for slot in slots]
        logits = self._stepper.decode(rows)
        chosen = []
        for slot, row in zip(slots, logits, strict=False):
            self._seated[slot].length += 1
            chosen.append(_choose(slot, self._seated[slot], row))
        self._done.append(tuple(chosen))

    def collect(self, most: int) -> list[tuple[Chosen, ...]]:  # noqa: ARG002  (nothing is ever in flight)
        done, self._done = self._done, []
        return done


def _choose(slot: int, sequence: _Seated, logits: Float32) -> Chosen:
    seat, mask = sequence.seat, sequence.mask if sequence.seat.is_constrained else None
    try:
        choice = sample(
            logits, sequence.history, sequence.sampling, sequence.length, num_logprobs=seat.num_logprobs, mask=mask
        )
    except NumericError:
        return Chosen(slot, None)
    sequence.last = choice.token
    sequence.history.add(choice.token)
    return Chosen(slot, choice.token, choice.logprob, choice.top)
