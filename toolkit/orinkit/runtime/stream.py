# SPDX-License-Identifier: Apache-2.0
"""From tokens to text as they come: no broken characters, nothing of a stop string, nothing lost.

The pieces of a stream, put together, are exactly `tokenizer.decode` of all its tokens, up to the first stop string.
"""

from __future__ import annotations

from orinkit.runtime.tokenizer import Tokenizer

_BROKEN = "�"
"""What decoding puts in the place of bytes that are no character (yet)."""


class TextStream:
    """Text of one sequence's output. After `stopped` nothing more comes."""

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...] = ()) -> None:
        self._decoder = _Decoder(tokenizer)
        self._stops = _Stops(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._stops.found

    def feed(self, token: int) -> str:
        """Text that is certain after `token`; often one token's, sometimes none. Raises BundleError."""
        return self._stops.feed(self._decoder.feed(token))

    def finish(self) -> str:
        """What was held back and may now come out, as no more tokens follow."""
        return self._stops.feed(self._decoder.finish()) + self._stops.finish()


class _Decoder:
    """Decodes a growing list of tokens piece by piece.

    A token's text can depend on the token before it (leading spaces) and on the one after it (a character in several
    tokens). So a window is decoded twice, without and with the new tokens, and the difference is the new text:

        tokens  ... | start ... known | ... end          text = decode(start:end) - decode(start:known)

    Nothing comes out while the window ends in an unfinished character, or where a run of byte tokens may go on, since
    such a run is decoded as a whole. The window moves on only past text: a known part that decodes
    to nothing could take the next token's leading space for the beginning of the text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._known = 0

    def feed(self, token: int) -> str:
        self._window.append(token)
        if token in self._tokenizer.open_ended:
            return ""
        piece = self._piece()
        if not piece or piece.endswith(_BROKEN):
            return ""
        self._window = self._window[self._known :]
        self._known = len(self._window)
        return piece

    def finish(self) -> str:
        piece = self._piece()
        self._window, self._known = [], 0
        return piece

    def _piece(self) -> str:
        known = self._tokenizer.decode(self._window[: self._known])
        return self._tokenizer.decode(self._window)[len(known) :]


class _Stops:
    """Holds text back while it may be the beginning of a stop string.

    Of several stop strings the one that is complete first counts, so the result does not depend on how the text was
    cut into pieces.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def feed(self, piece: str) -> str:
        if self.found:
            return ""
        self._held += piece
        complete = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if complete:
            self.found = True
            return self._release(min(complete)[1])
        return self._release(len(self._held) - self._beginning())

    def finish(self) -> str:
        return "" if self.found else self._release(len(self._held))

    def _release(self, size: int) -> str:
        text, self._held = self._held[:size], self._held[size:]
        return text

    def _beginning(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = min(max(map(len, self._stops), default=1) - 1, len(self._held))
        ends = range(longest, 0, -1)
        return next((n for n in ends if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)
