# SPDX-License-Identifier: Apache-2.0
"""`Snapshots`: beginnings of prompts whose state is kept, so that they are not computed again.

A snapshot is what a slot held where a prompt was cut. It serves a request of the same client whose prompt begins with
the same tokens and is cut at the same places, so its tokens are those that it gets without. The one that was used least
recently makes room for the next.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

from orinkit.engines.base import Spare
from orinkit.runtime.request import Request


@dataclass(frozen=True)
class _Snapshot:
    client: str | None
    tokens: tuple[int, ...]
    ends: tuple[int, ...]
    """Where prefill was cut on the way."""


def cut_places(request: Request, chunk: int) -> tuple[int, ...]:
    """Every place where the prefill of a request ends a step: its cuts, its end, and chunks from one to the next.

    So what follows a beginning that is kept is one step if it fits into a chunk.
    """
    edges = pairwise((0, *request.cuts, len(request.prompt)))
    return tuple(place for start, end in edges for place in (*range(start + chunk, end, chunk), end))


class Snapshots:
    """What the places of a `Spare` hold."""

    def __init__(self, spare: Spare, count: int, chunk: int) -> None:
        self._spare, self._chunk = spare, chunk
        self._free = list(range(count))
        self._kept: OrderedDict[int, _Snapshot] = OrderedDict()
        self._rows: dict[int, set[int]] = {}
        """Places whose snapshots the rows of each slot begin with: they were made of it, or brought to it."""

    def restore(self, request: Request, slot: int) -> int:
        """Bring the longest beginning of a request that is kept to a slot: its tokens, 0 if there is none.

        Call it for every sequence that begins in a slot.
        """
        rows = self._rows.pop(slot, set())
        fitting = [place for place, kept in self._kept.items() if self._begins(request, kept)]
        if not fitting:
            return 0
        place = max(fitting, key=lambda place: len(self._kept[place].tokens))
        length = len(self._kept[place].tokens)
        self._kept.move_to_end(place)
        has_rows = place in rows
        self._spare.restore(place, slot, length, has_rows)
        self._rows[slot] = {each for each in rows if len(self._kept[each].tokens) <= length} if has_rows else {place}
        return length

    def save(self, request: Request, slot: int, length: int) -> None:
        """Keep the first `length` tokens of a request, all that its slot holds, where that is of use."""
        marks = request.cuts or range(self._chunk, len(request.prompt), self._chunk)
        if length not in {*marks[:1], *marks[-1:]}:
            return
        ends = tuple(end for end in cut_places(request, self._chunk) if end <= length)
        snapshot = _Snapshot(request.client, request.prompt[:length], ends)
        if snapshot in self._kept.values() or not (self._free or self._kept):
            return
        place = self._free.pop() if self._free else self._kept.popitem(last=False)[0]
        self._spare.save(slot, place, length)
        self._kept[place] = snapshot
        for rows in self._rows.values():
            rows.discard(place)  # the same tokens from another slot may differ in the last bits
        self._rows.setdefault(slot, set()).add(place)

    def forget(self) -> None:
        """Keep nothing: what a slot held may be damaged."""
        self._free += self._kept
        self._kept.clear()
        self._rows.clear()

    def _begins(self, request: Request, kept: _Snapshot) -> bool:
        length = len(kept.tokens)
        return (
            kept.client == request.client
            and length < len(request.prompt)
            and request.prompt[:length] == kept.tokens
            and tuple(end for end in cut_places(request, self._chunk) if end <= length) == kept.ends
        )
