# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orinkit.engines.base import Profile
from orinkit.errors import EngineError
from orinkit.runtime.batch import Batch, Row, Sizes

PROFILE = Profile("prefill", tokens=16, sequences=4)
ROWS = (Row(2, 7, (10, 11, 12)), Row(0, 12, (20,)))


def test_the_drawing_at_the_head_of_the_module() -> None:
    inputs = Batch.of(ROWS, PROFILE, Sizes(tokens=6, sequences=4, logit_rows=4)).inputs()
    expected = {
        "input_ids": [10, 11, 12, 20, -1, -1],
        "cu_seqlens": [0, 3, 4, 4, 4],
        "past_lens": [7, 12, 0, 0],
        "slots": [2, 0, -1, -1],
        "logit_rows": [2, 3, -1, -1],
    }
    assert {name: array.tolist() for name, array in vars(inputs).items()} == expected
    assert all(array.dtype == np.int32 for array in vars(inputs).values())


def test_without_padded_sizes_a_batch_has_its_own() -> None:
    batch = Batch.of(ROWS, PROFILE)
    inputs = batch.inputs()
    assert (batch.num_tokens, batch.num_sequences) == (4, 2)
    assert (len(inputs.input_ids), len(inputs.slots), len(inputs.logit_rows)) == (4, 2, 2)


def test_a_row_that_wants_no_logits_keeps_its_place() -> None:
    rows = (Row(0, 0, (1, 2), wants_logits=False), Row(1, 0, (3,)))
    assert Batch.of(rows, PROFILE).inputs().logit_rows.tolist() == [-1, 2]


def test_a_batch_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Batch.of(ROWS, PROFILE).sizes = Sizes(1, 1, 1)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("rows", "padded", "message"),
    [
        ((), None, "at least one row"),
        ((Row(0, 0, ()),), None, "at least one token for slot 0"),
        ((Row(1, 0, (5,)), Row(1, 0, (6,))), None, r"each slot once, found slots \[1, 1\]"),
        ((Row(-1, 0, (5,)),), None, "-1 is for padding"),
        ((Row(0, -1, (5,)),), None, "past length -1"),
        ((Row(0, 0, (5, -1)),), None, "smallest id -1"),
        ((Row(0, 0, (5,) * 17),), None, "tokens .* found 17, 17, 16"),
        (tuple(Row(slot, 0, (5,)) for slot in range(5)), None, "sequences .* found 5, 5, 4"),
        (ROWS, Sizes(3, 2, 2), "tokens .* found 4, 3, 16"),
        (ROWS, Sizes(4, 1, 2), "sequences .* found 2, 1, 4"),
        (ROWS, Sizes(4, 2, 1), "logit rows .* found 2, 1, 4"),
        (ROWS, Sizes(17, 2, 2), "tokens .* found 4, 17, 16"),
        (ROWS, Sizes(4, 2, 5), "logit rows .* found 2, 5, 4"),
    ],
)
def test_refused(rows: tuple[Row, ...], padded: Sizes | None, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Batch.of(rows, PROFILE, padded)


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    extra=st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)),
)
def test_padding_changes_nothing_that_is_real(lengths: list[int], extra: tuple[int, int, int]) -> None:
    profile = Profile("any", tokens=24, sequences=8)
    rows = [Row(slot, slot, tuple(range(length)), slot % 2 == 0) for slot, length in enumerate(lengths)]
    exact = Batch.of(rows, profile).inputs()
    num = len(rows)
    padded = Batch.of(rows, profile, Sizes(sum(lengths) + extra[0], num + extra[1], num + extra[2])).inputs()
    for name, real in vars(exact).items():
        assert np.array_equal(getattr(padded, name)[: len(real)], real)
    assert set(padded.input_ids[sum(lengths) :]) | set(padded.slots[num:]) | set(padded.logit_rows[num:]) <= {-1}
    assert set(padded.cu_seqlens[num:]) == {sum(lengths)}
