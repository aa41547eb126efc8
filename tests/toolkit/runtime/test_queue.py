# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time

from orinkit.errors import RequestError
from orinkit.runtime.grammar import Grammar
from orinkit.runtime.queue import Queue
from orinkit.runtime.request import Request
from orinkit.runtime.sequence import Sequence
from toolkit.runtime.serving import SPEC, TOKENIZER


def sequence(number: int, client: str | None = None, grammar: Grammar | None = None) -> Sequence:
    return Sequence.of(number, Request((1,), client=client, grammar=grammar), 5, TOKENIZER, (), 0.0)


def order(queue: Queue) -> list[int]:
    found = []
    while (taken := queue.take()) is not None:
        found.append(taken.id)
    return found


def test_one_client_is_served_in_the_order_of_arrival() -> None:
    queue = Queue(TOKENIZER, SPEC)
    for number in (3, 1, 2):
        queue.put(sequence(number))
    assert [each.id for each in queue] == [3, 1, 2]
    assert order(queue) == [3, 1, 2]
    assert len(queue) == 0


def test_clients_take_turns() -> None:
    """Case A38: one that floods the queue does not keep others waiting."""
    queue = Queue(TOKENIZER, SPEC)
    for number in range(5):
        queue.put(sequence(number, "many"))
    queue.put(sequence(10, "few"))
    queue.put(sequence(11, "few"))
    assert order(queue) == [0, 10, 1, 11, 2, 3, 4]


def test_who_gives_up_waits_no_longer() -> None:
    queue = Queue(TOKENIZER, SPEC)
    first, second = sequence(1), sequence(2)
    queue.put(first)
    queue.put(second)
    queue.discard(first)
    queue.discard(first)
    assert order(queue) == [2]


def test_a_grammar_is_compiled_while_its_request_waits() -> None:
    queue = Queue(TOKENIZER, SPEC)
    queue.put(sequence(1, grammar=Grammar("regex", "[a-z]+")))
    queue.put(sequence(2))
    taken: list[Sequence] = []
    while len(taken) < 2:
        found = queue.take()
        taken += [found] if found is not None else []
        time.sleep(0.001)
    (first,) = (each for each in taken if each.id == 1)
    assert first.constraint is not None
    assert first.failure is None


def test_a_grammar_that_cannot_be_compiled_is_the_failure_of_its_request() -> None:
    queue = Queue(TOKENIZER, SPEC)
    queue.put(sequence(1, grammar=Grammar("regex", "(")))
    while (found := queue.take()) is None:
        time.sleep(0.001)
    assert isinstance(found.failure, RequestError)
    assert len(queue) == 0
