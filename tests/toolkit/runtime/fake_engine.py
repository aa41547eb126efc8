# SPDX-License-Identifier: Apache-2.0
"""An engine for tests that forgives nothing: its logits are a hash of all that a slot has been fed, step by step.

A mixed-up slot, a wrong past length, a lost token or another cut of the chunks gives other logits, and inputs that the
contract forbids are refused. `faults` makes single steps fail: step number -> "raise" or "nan".
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from orinkit.engines.base import Caches, Float32, Profile, StepInputs
from orinkit.errors import EngineError


@dataclass
class FakeCaches:
    """Per slot the list of what each step has added."""

    slots: int
    capacity: int
    chunk: int
    steps: list[list[tuple[int, ...]]]
    nbytes: int = 0

    def length(self, slot: int) -> int:
        return sum(map(len, self.steps[slot]))

    def spare(self, count: int) -> FakeSpare:
        return FakeSpare(self, [[] for _ in range(count)])


@dataclass
class FakeSpare:
    """Copies of slots."""

    caches: FakeCaches
    places: list[list[tuple[int, ...]]]
    num_left: int = 0
    """Restorations that left rows as they were."""

    def save(self, slot: int, place: int, length: int) -> None:
        assert length == sum(map(len, self.caches.steps[slot]))
        self.places[place] = list(self.caches.steps[slot])

    def restore(self, place: int, slot: int, length: int, has_rows: bool = False) -> None:
        assert length == sum(map(len, self.places[place]))
        if has_rows:
            self.num_left += 1
            assert self.caches.steps[slot][: len(self.places[place])] == self.places[place]
        self.caches.steps[slot] = list(self.places[place])


@dataclass
class FakeEngine:
    vocab: int
    faults: Mapping[int, str] = field(default_factory=dict)
    name: str = "fake"
    can_capture: bool = False
    num_steps: int = 0
    seen: list[tuple[str, StepInputs]] = field(default_factory=list)
    contexts: list[FakeContext] = field(default_factory=list)

    def caches(self, slots: int, capacity: int, chunk: int) -> FakeCaches:
        return FakeCaches(slots, capacity, chunk, [[] for _ in range(slots)])

    def context(self, profile: Profile, caches: Caches) -> FakeContext:
        assert isinstance(caches, FakeCaches)
        self.contexts.append(FakeContext(self, profile, caches))
        return self.contexts[-1]


class FakeContext:
    def __init__(self, engine: FakeEngine, profile: Profile, caches: FakeCaches) -> None:
        self.engine, self.profile, self.caches = engine, profile, caches
        # One buffer for all steps: whoever keeps logits over a step finds those of the next one.
        self._logits = np.zeros((profile.sequences, engine.vocab), np.float32)

    def run(self, inputs: StepInputs) -> Float32:
        self.engine.num_steps += 1
        self.engine.seen.append((self.profile.name, inputs))
        fault = self.engine.faults.get(self.engine.num_steps)
        self._check(inputs)
        self._feed(inputs, is_torn=fault == "raise")
        if fault == "raise":
            raise EngineError("an injected fault")
        for index, row in enumerate(inputs.logit_rows):
            self._logits[index] = np.nan if fault == "nan" else self._row(inputs, int(row))
        return self._logits[: len(inputs.logit_rows)]

    def _check(self, inputs: StepInputs) -> None:
        caches, bounds = self.caches, inputs.cu_seqlens
        num_sequences = len(inputs.slots)
        real = [slot for slot in inputs.slots if slot >= 0]
        promises = {
            "int32": all(array.dtype == np.int32 and array.ndim == 1 for array in vars(inputs).values()),
            "profile": len(inputs.input_ids) <= self.profile.tokens and num_sequences <= self.profile.sequences,
            "lengths": len(bounds) == num_sequences + 1 == len(inputs.past_lens) + 1,
            "cu_seqlens": bounds[0] == 0 and bool((np.diff(bounds) >= 0).all()),
            "distinct slots": len(set(real)) == len(real) and all(slot < caches.slots for slot in real),
            "tokens": bool((inputs.input_ids[: bounds[-1]] >= 0).all()) and max(inputs.input_ids) < self.engine.vocab,
            "padding tokens": bool((inputs.input_ids[bounds[-1] :] == -1).all()),
            "logit rows": bool((inputs.logit_rows < bounds[-1]).all()),
        }
        broken = [name for name, kept in promises.items() if not kept]
        if broken:
            raise EngineError(f"broken promises: {broken}")

    def _feed(self, inputs: StepInputs, is_torn: bool) -> None:
        for index, slot in enumerate(inputs.slots):
            start, end = inputs.cu_seqlens[index], inputs.cu_seqlens[index + 1]
            tokens = tuple(int(token) for token in inputs.input_ids[start:end])
            if slot < 0:
                if tokens or inputs.past_lens[index]:
                    raise EngineError("a padded row with tokens")
                continue
            past_len = int(inputs.past_lens[index])
            if past_len == 0:
                self.caches.steps[slot] = []
            if past_len != self.caches.length(slot):
                raise EngineError(f"slot {slot} holds {self.caches.length(slot)} tokens, not {past_len}")
            if not 0 < len(tokens) <= self.caches.chunk or past_len + len(tokens) > self.caches.capacity:
                raise EngineError(f"{len(tokens)} tokens behind {past_len}")
            self.caches.steps[slot].append(tokens[: len(tokens) // 2] if is_torn else tokens)

    def _row(self, inputs: StepInputs, row: int) -> Float32:
        if row < 0:
            return np.full(self.engine.vocab, 1e4, np.float32)
        index = int(np.searchsorted(inputs.cu_seqlens, row, side="right")) - 1
        if row != inputs.cu_seqlens[index + 1] - 1:
            raise EngineError("logits wanted inside a sequence")
        return logits_of(self.caches.steps[inputs.slots[index]], self.engine.vocab)


def logits_of(steps: list[tuple[int, ...]], vocab: int) -> Float32:
    """What the fake engine answers after these steps of one sequence."""
    seed = zlib.crc32(repr(steps).encode())
    return (4 * np.random.default_rng(seed).standard_normal(vocab)).astype(np.float32)
