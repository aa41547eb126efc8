# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from typing import Any

import pytest

from orinkit.errors import RequestError
from orinkit.runtime.request import Request, Timings
from orinkit.runtime.sampling import Sampling


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("max_tokens", value) for value in (-1, 0, 2**31, 2**63, 1.5, "10", True)),
        *(("deadline", value) for value in (-1.0, math.nan, "soon")),
        ("prompt", ()),
        ("stop", ("",)),
        ("stop", ("x" * 65,)),
        ("stop", ("x",) * 9),
        ("stop", (5,)),
        ("stop_tokens", (1,) * 9),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(field: str, value: Any) -> None:
    """Case A21."""
    with pytest.raises(RequestError, match=f"^{field}: expected"):
        Request(**{"prompt": (1,), field: value})


@pytest.mark.parametrize("field", ["prompt", "stop_tokens", "logit_bias"])
@pytest.mark.parametrize("token", [-1, 100, 2**31, 2**63])
def test_ids_beyond_the_vocabulary_are_refused(field: str, token: int) -> None:
    """Case A23: the last id passes."""

    def request(token: int) -> Request:
        if field == "logit_bias":
            return Request((1,), Sampling(logit_bias={token: 1.0}))
        return Request((token,)) if field == "prompt" else Request((1,), stop_tokens=(token,))

    request(99).check(vocab=100, capacity=8)
    with pytest.raises(RequestError, match=f"^{field}: token id: expected .*, found {token}"):
        request(token).check(vocab=100, capacity=8)


@pytest.mark.parametrize(("length", "max_tokens"), [(6, None), (7, None), (7, 1), (4, 4)])
def test_what_fits_passes(length: int, max_tokens: int | None) -> None:
    Request((1,) * length, max_tokens=max_tokens).check(vocab=2, capacity=8)


@pytest.mark.parametrize(("length", "max_tokens"), [(8, None), (9, None), (7, 2), (1, 8)])
def test_what_does_not_fit_is_refused_with_both_numbers(length: int, max_tokens: int | None) -> None:
    """Case A25."""
    with pytest.raises(RequestError, match=rf"at most 8 tokens .* found {length} \+ {max_tokens or 1};"):
        Request((1,) * length, max_tokens=max_tokens).check(vocab=2, capacity=8)


def test_rates() -> None:
    timings = Timings(prompt_tokens=100, generated_tokens=11, queue_s=1.0, prefill_s=0.5, decode_s=2.0)
    assert (timings.prefill_rate, timings.decode_rate) == (200.0, 5.0)
    never_ran = Timings(prompt_tokens=100, generated_tokens=0, queue_s=1.0, prefill_s=0.0, decode_s=0.0)
    assert (never_ran.prefill_rate, never_ran.decode_rate) == (0.0, 0.0)
