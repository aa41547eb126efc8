# SPDX-License-Identifier: Apache-2.0
"""`Queue`: requests that wait for a slot. Clients take turns; within one, first come, first served.

Grammars are compiled meanwhile, in a thread, so that they do not stop what is running; a request whose grammar is not
ready yet lets others go first.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from orinkit.errors import OrinError
from orinkit.model import ModelSpec
from orinkit.runtime.grammar import Constraint, Grammar, Grammars
from orinkit.runtime.sequence import Sequence
from orinkit.runtime.tokenizer import Tokenizer


class Queue:
    """Sequences without a slot, in the order in which they came."""

    def __init__(self, tokenizer: Tokenizer, spec: ModelSpec) -> None:
        self._tokenizer, self._spec = tokenizer, spec
        self._waiting: dict[int, Sequence] = {}
        self._compiling: dict[int, Future[Constraint]] = {}
        self._turns: dict[str | None, int] = {}
        self._num_turns = 0
        self._grammars: Grammars | None = None
        self._compiler = ThreadPoolExecutor(1, "grammar")

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(tuple(self._waiting.values()))

    def put(self, sequence: Sequence) -> None:
        """Let a sequence wait."""
        self._waiting[sequence.id] = sequence
        if sequence.request.grammar is not None:
            self._compiling[sequence.id] = self._compiler.submit(self._compile, sequence.request.grammar)

    def take(self) -> Sequence | None:
        """The sequence whose turn it is, no longer waiting; None where none is ready."""
        ready = [s for s in self if s.id not in self._compiling or self._compiling[s.id].done()]
        if not ready:
            return None
        sequence = min(ready, key=lambda each: self._turns.get(each.request.client, 0))
        if sequence.id in self._compiling:
            try:
                sequence.constraint = self._compiling[sequence.id].result()
            except OrinError as error:
                sequence.failure = error
        self.discard(sequence)
        clients = {each.request.client for each in self}
        self._turns = {client: turn for client, turn in self._turns.items() if client in clients}
        self._num_turns += 1
        self._turns[sequence.request.client] = self._num_turns
        return sequence

    def discard(self, sequence: Sequence) -> None:
        """Let a sequence wait no longer, if it does."""
        self._waiting.pop(sequence.id, None)
        self._compiling.pop(sequence.id, None)

    def _compile(self, grammar: Grammar) -> Constraint:
        if self._grammars is None:
            self._grammars = Grammars(self._tokenizer, self._spec.vocab, self._spec.eos)
        return self._grammars.compile(grammar)
