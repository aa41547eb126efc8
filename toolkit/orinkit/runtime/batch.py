# SPDX-License-Identifier: Apache-2.0
"""`Batch`: the one object that knows which sequences and tokens of a step are real and which are padding.

Two rows of 3 and 1 tokens, padded to 6 tokens, 4 sequences and 4 logit rows:

    input_ids   a0 a1 a2 b0 -1 -1     padding tokens follow the real ones and belong to no sequence
    cu_seqlens  0 3 4 4 4             a padded sequence has no tokens
    past_lens   7 12 0 0
    slots       2 0 -1 -1             -1 reads and writes nothing
    logit_rows  2 3 -1 -1             row i of the logits belongs to sequence i; -1 = not wanted
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from orinkit.engines.base import Int32, Profile, StepInputs
from orinkit.errors import EngineError
from orinkit.recipe import Shapes


@dataclass(frozen=True)
class Row:
    """What one sequence brings to a step."""

    slot: int
    past_len: int
    """Tokens of the sequence that the caches already hold."""
    tokens: tuple[int, ...]
    wants_logits: bool = True
    """Whether the logits after the last of `tokens` are needed."""


@dataclass(frozen=True)
class Sizes:
    """Padded sizes of a step: tokens (T), sequences (B) and logit rows (R)."""

    tokens: int
    sequences: int
    logit_rows: int


@dataclass(frozen=True)
class Batch:
    """The rows of one step and its padded sizes; everything an op sees derives from these two."""

    rows: tuple[Row, ...]
    sizes: Sizes

    @classmethod
    def of(cls, rows: Iterable[Row], profile: Profile, padded: Sizes | None = None) -> Batch:
        """Rows as a step of `profile`, of exactly their own size unless `padded` gives larger ones.

        Raises EngineError: no rows, an empty row, a negative slot, length or token id, a slot that comes twice,
        more rows or tokens than `padded`, or `padded` beyond the profile.
        """
        rows = tuple(rows)
        num_tokens = sum(len(row.tokens) for row in rows)
        sizes = padded or Sizes(num_tokens, len(rows), len(rows))
        _check_rows(rows)
        _check_size("tokens", num_tokens, sizes.tokens, profile.tokens)
        _check_size("sequences", len(rows), sizes.sequences, profile.sequences)
        _check_size("logit rows", len(rows), sizes.logit_rows, profile.sequences)
        return cls(rows, sizes)

    @property
    def num_tokens(self) -> int:
        """Real tokens."""
        return sum(len(row.tokens) for row in self.rows)

    @property
    def num_sequences(self) -> int:
        """Real sequences."""
        return len(self.rows)

    def inputs(self) -> StepInputs:
        """The graph inputs of this step; shapes and padding as drawn at the head of this module."""
        ends = list(accumulate(len(row.tokens) for row in self.rows))
        wanted = [end - 1 if row.wants_logits else -1 for row, end in zip(self.rows, ends, strict=True)]
        return StepInputs(
            input_ids=_filled((token for row in self.rows for token in row.tokens), self.sizes.tokens, -1),
            cu_seqlens=_filled([0, *ends], self.sizes.sequences + 1, ends[-1]),
            past_lens=_filled((row.past_len for row in self.rows), self.sizes.sequences, 0),
            slots=_filled((row.slot for row in self.rows), self.sizes.sequences, -1),
            logit_rows=_filled(wanted, self.sizes.logit_rows, -1),
        )


def prefill_profile(shapes: Shapes) -> Profile:
    """The largest prefill step: a chunk of as many sequences as fit."""
    return Profile("prefill", shapes.chunk, min(shapes.slots, shapes.chunk))


def _check_rows(rows: Sequence[Row]) -> None:
    if not rows:
        raise EngineError("step refused: expected at least one row, found none")
    for row in rows:
        if not row.tokens:
            raise EngineError(f"step refused: expected at least one token for slot {row.slot}, found none")
        if min(row.slot, row.past_len, *row.tokens) < 0:
            raise EngineError(
                f"step refused: expected slot, past length and token ids of 0 or more, found slot {row.slot}, "
                f"past length {row.past_len}, smallest id {min(row.tokens)}; -1 is for padding"
            )
    slots = [row.slot for row in rows]
    if len(set(slots)) != len(slots):
        raise EngineError(f"step refused: expected each slot once, found slots {slots}")


def _check_size(what: str, found: int, padded: int, limit: int) -> None:
    if not found <= padded <= limit:
        raise EngineError(
            f"step refused: expected {what} <= padded size <= size of the profile, found {found}, {padded}, {limit}"
        )


def _filled(values: Iterable[int], size: int, padding: int) -> Int32:
    """`values` as int32 [size], the rest `padding`."""
    array = np.full(size, padding, dtype=np.int32)
    known = np.fromiter(values, dtype=np.int32)
    array[: known.size] = known
    return array
