# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from orinkit.runtime.request import Request
from orinkit.runtime.sampling import Sampling
from orinkit.runtime.sequence import Sequence
from toolkit.runtime.serving import TOKENIZER


def sequence(request: Request, max_tokens: int = 3) -> Sequence:
    return Sequence.of(1, request, max_tokens, TOKENIZER, (99,), now=10.0)


def test_a_seat_says_how_tokens_are_chosen_and_when_to_end() -> None:
    request = Request((4, 5), Sampling(top_k=7, logit_bias={3: 1.5}), stop_tokens=(8, 6), top_logprobs=2)
    seat = sequence(request).seat()
    assert (seat.prompt, seat.stops, seat.max_length, seat.num_logprobs) == ((4, 5), (6, 8, 99), 5, 2)
    assert seat.settings["top_k"] == 7
    assert seat.biases == {3: 1.5}
    assert not seat.is_constrained


def test_an_answer_ends_by_length_by_stop_token_and_by_stop_string() -> None:
    (a,), (b,) = TOKENIZER.encode("a", 9), TOKENIZER.encode("b", 9)
    assert [sequence(Request((4,)), 2).accept(token, 11.0)[1] for token in (99,)] == ["stop"]
    each = sequence(Request((4,)), 2)
    assert [each.accept(token, 11.0) for token in (a, b)] == [("a", None), ("b", "length")]
    each = sequence(Request((4,), stop=("ab",)))
    assert [each.accept(token, 11.0)[1] for token in (a, b)] == [None, "stop"]


def test_timings_run_from_submission_over_the_slot_to_the_last_token() -> None:
    each = sequence(Request((4, 5, 6)), 9)
    each.admitted = 12.0
    for now in (13.0, 15.0):
        each.accept(1, now)
    timings = each.timings(now=20.0)
    assert (timings.prompt_tokens, timings.generated_tokens) == (3, 2)
    assert (timings.queue_s, timings.prefill_s, timings.decode_s) == (2.0, 1.0, 2.0)
