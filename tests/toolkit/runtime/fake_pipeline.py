# SPDX-License-Identifier: Apache-2.0
"""A pipeline that behaves as the device's does, over the fake engine, and is as late as it may be.

Steps run when they are launched, each size in a context of its own that is bound for life; what they chose is seen only
when somebody waits for it. A row is decoded as long as the device holds it for running, whoever the host thinks runs.
After a fault everything is refused: a poisoned process stays poisoned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orinkit.engines.base import Chosen, Profile, Seat, StepInputs
from orinkit.errors import DeviceError, EngineError, NumericError
from orinkit.memory.needs import decode_sizes
from orinkit.recipe import Shapes
from orinkit.runtime.batch import Batch, Row, Sizes, prefill_profile
from orinkit.runtime.sampling import History, Sampling, sample
from toolkit.runtime.fake_engine import FakeEngine


@dataclass
class DeviceRow:
    """What the device knows of a slot."""

    seat: Seat
    history: History = field(default_factory=lambda: History(set()))
    length: int = 0
    token: int | None = None
    """The next step's input; None: a padded row."""
    mask: NDArray[np.uint32] | None = None


class FakePipeline:
    """See the module's docstring."""

    degraded = None

    def __init__(self, engine: FakeEngine, shapes: Shapes, run_ahead: int = 2) -> None:
        self.run_ahead, self._shapes = run_ahead, shapes
        caches = engine.caches(shapes.slots, shapes.capacity, shapes.chunk)
        self._prefill = engine.context(prefill_profile(shapes), caches)
        self._decode = {
            size: engine.context(Profile(f"decode {size}", size, size), caches) for size in decode_sizes(shapes.slots)
        }
        self.spare = caches.spare(shapes.snapshots)
        self._rows: dict[int, DeviceRow] = {}
        self._flight: deque[tuple[Chosen, ...]] = deque()
        self._fault: EngineError | None = None

    @property
    def in_flight(self) -> int:
        return len(self._flight)

    def seat(self, slot: int, seat: Seat) -> None:
        self._check()
        self._rows[slot] = DeviceRow(seat, History.of(seat.prompt))

    def constrain(self, slot: int, mask: NDArray[np.uint32]) -> None:
        chosen_for = {chosen.slot for step in self._flight for chosen in step}
        assert slot not in chosen_for, "a mask must not change under a step in flight that chooses from it"
        self._rows[slot].mask = mask

    def leave(self, slot: int) -> None:
        self._check()
        self._rows[slot].token = None

    def prefill(self, inputs: StepInputs) -> None:
        self._check()
        logits = self._run(self._prefill, inputs)
        chosen = []
        ends = inputs.past_lens + np.diff(inputs.cu_seqlens)
        for index, slot in enumerate(inputs.slots.tolist()):
            row = self._rows[slot]
            row.length = int(ends[index])
            if logits is not None and inputs.logit_rows[index] >= 0:
                chosen.append(self._advance(slot, row, logits[index]))
        self._flight.append(tuple(chosen))

    def decode(self, slots: Sequence[int], longest: int) -> None:
        self._check()
        size = min(size for size in self._decode if size > max(slots))
        active = {slot: row for slot, row in sorted(self._rows.items()) if row.token is not None and slot < size}
        chosen = []
        if active:
            assert longest <= self._shapes.capacity
            rows = [Row(slot, row.length, (row.token or 0,)) for slot, row in active.items()]
            context = self._decode[size]
            logits = self._run(context, Batch.of(rows, context.profile, Sizes(len(rows), size, size)).inputs())
            for index, (slot, row) in enumerate(active.items()):
                row.length += 1
                if logits is not None:
                    chosen.append(self._advance(slot, row, logits[index]))
        self._flight.append(tuple(chosen))

    def collect(self, most: int) -> list[tuple[Chosen, ...]]:
        done = []
        while len(self._flight) > most:
            done.append(self._flight.popleft())
        if done:
            self._check()
        return done

    def _run(self, context: Any, inputs: StepInputs) -> Any:
        """Logits; a fault shows only later, to whoever asks next."""
        try:
            return context.run(inputs)
        except EngineError as error:
            self._fault = DeviceError(f"CUDA error 700, {error}", 700)
            return None

    def _advance(self, slot: int, row: DeviceRow, logits: Any) -> Chosen:
        seat, values = row.seat, dict(row.seat.settings)
        sampling: Any = Sampling(**values, logit_bias=seat.biases)  # type: ignore[arg-type]
        mask = row.mask if seat.is_constrained else None
        try:
            choice = sample(logits, row.history, sampling, row.length, num_logprobs=seat.num_logprobs, mask=mask)
        except NumericError:
            row.token = None
            return Chosen(slot, None)
        row.history.add(choice.token)
        has_ended = choice.token in seat.stops or row.length + 1 >= seat.max_length
        row.token = None if has_ended else choice.token
        return Chosen(slot, choice.token, choice.logprob, choice.top)

    def _check(self) -> None:
        if self._fault is not None:
            raise self._fault
