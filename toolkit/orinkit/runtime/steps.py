# SPDX-License-Identifier: Apache-2.0
"""`Stepper`: the contexts of an engine, made once, and the two kinds of step that they run."""

from __future__ import annotations

from collections.abc import Sequence

from orinkit.engines.base import Engine, Float32, Profile, StepInputs
from orinkit.errors import EngineError
from orinkit.recipe import Shapes
from orinkit.runtime.batch import Batch, Row, prefill_profile


class Stepper:
    """One set of caches and one context per profile, bound to it for life; nothing switches a context's profile.

    prefill  up to `shapes.chunk` tokens of as many sequences as fit
    decode   one token of each of up to `shapes.slots` sequences
    """

    def __init__(self, engine: Engine, shapes: Shapes) -> None:
        """Allocate the caches and make both contexts. Raises EngineError."""
        self.shapes = shapes
        self.caches = engine.caches(shapes.slots, shapes.capacity, shapes.chunk)
        self.spare = self.caches.spare(shapes.snapshots)
        self._prefill = engine.context(prefill_profile(shapes), self.caches)
        self._decode = engine.context(Profile("decode", shapes.slots, shapes.slots), self.caches)

    def prefill(self, rows: Sequence[Row]) -> Float32:
        """Run a chunk of each row's prompt: logits float32 [rows, V], unspecified for rows that want none.

        The logits are the engine's own memory, good until the next step. Raises EngineError.
        """
        self._check(rows)
        return self.run_prefill(Batch.of(rows, self._prefill.profile).inputs())

    def run_prefill(self, inputs: StepInputs) -> Float32:
        """As `prefill`, of inputs that are made already."""
        return self._prefill.run(inputs)

    def decode(self, rows: Sequence[Row]) -> Float32:
        """Run one token of each row; as `prefill` otherwise. Raises EngineError."""
        for row in rows:
            if len(row.tokens) != 1:
                raise EngineError(f"decode refused: expected one token for slot {row.slot}, found {len(row.tokens)}")
        self._check(rows)
        return self._decode.run(Batch.of(rows, self._decode.profile).inputs())

    def _check(self, rows: Sequence[Row]) -> None:
        for row in rows:
            end = row.past_len + len(row.tokens)
            if row.slot >= self.shapes.slots or end > self.shapes.capacity:
                raise EngineError(
                    f"step refused: expected a slot below {self.shapes.slots} and at most {self.shapes.capacity} "
                    f"tokens in it, found slot {row.slot} with {end} tokens"
                )
