# SPDX-License-Identifier: Apache-2.0
"""What supervisor and worker say to each other: 4 bytes of length, big-endian, then one JSON array in UTF-8.

    to the worker      ["submit", id, request]    a request is to be served; its fields as in `Request`
                       ["cancel", id]             it is no longer wanted
                       ["check"]                  run the golden self-test beside whatever is running
    to the supervisor  ["ready", seconds, degraded]   the self-test has passed in this time; why steps are slow
                       ["stepped", seconds, tokens, ends]   a step, or some quick ones: the slowest, what they brought
                       ["checked"]                the self-test asked for has passed
                       ["fault", code, message, exit]       the worker is about to leave with this exit code

The end of the stream ends the worker. A frame is at most MAX_FRAME bytes; every field is checked on receipt, and one
that is wrong is an EngineError: neither side guesses. There is no pickle and no other kind of code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from orinkit.errors import EngineError, NumericError, OrinError, RequestError
from orinkit.runtime.grammar import Grammar
from orinkit.runtime.request import Finished, Reason, Request, Timings, Token
from orinkit.runtime.sampling import Sampling

MAX_FRAME = 16 << 20
"""Bytes of the longest frame: a prompt of 2^20 tokens fits."""
_MAX_TEXT = 1 << 20
_HEADER = 4


@dataclass(frozen=True)
class Submit:
    id: int
    request: Request


@dataclass(frozen=True)
class Cancel:
    id: int


@dataclass(frozen=True)
class Check:
    """Run the golden self-test."""


@dataclass(frozen=True)
class Ready:
    seconds: float
    """Time of the self-test."""
    degraded: str | None = None
    """Why steps run slower than they should."""


@dataclass(frozen=True)
class Stepped:
    seconds: float
    tokens: tuple[Token, ...]
    ends: tuple[Finished, ...]


@dataclass(frozen=True)
class Checked:
    """The self-test that was asked for has passed."""


@dataclass(frozen=True)
class Fault:
    code: str
    message: str
    exit: int
    """70, 75 or 78."""


Order = Submit | Cancel | Check
Report = Ready | Stepped | Checked | Fault


def encode(frame: Order | Report) -> bytes:
    """The bytes of a frame. Raises EngineError: longer than MAX_FRAME."""
    payload = json.dumps(_plain(frame), separators=(",", ":"), allow_nan=False).encode()
    if len(payload) > MAX_FRAME:
        raise EngineError(f"frame: expected at most {MAX_FRAME} bytes, found {len(payload)}")
    return len(payload).to_bytes(_HEADER, "big") + payload


class Splitter:
    """Cuts a stream of bytes into payloads."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that are complete with `data`. Raises EngineError: a length beyond MAX_FRAME."""
        self._held += data
        while len(self._held) >= _HEADER:
            size = int.from_bytes(self._held[:_HEADER], "big")
            if size > MAX_FRAME:
                raise EngineError(f"frame: expected at most {MAX_FRAME} bytes, found {size}")
            if len(self._held) < _HEADER + size:
                return
            payload = bytes(self._held[_HEADER : _HEADER + size])
            del self._held[: _HEADER + size]
            yield payload


def decode_order(payload: bytes) -> Order:
    """A frame to the worker. Raises EngineError, and RequestError: a request out of bounds."""
    match _array(payload):
        case ["submit", id_, dict(request)]:
            return Submit(_whole(id_), _request(request))
        case ["cancel", id_]:
            return Cancel(_whole(id_))
        case ["check"]:
            return Check()
    raise EngineError("frame: expected an order to the worker, found something else")


def decode_report(payload: bytes) -> Report:
    """A frame to the supervisor. Raises EngineError."""
    match _array(payload):
        case ["stepped", seconds, list(tokens), list(ends)]:
            return Stepped(_number(seconds, 0), tuple(map(_token, tokens)), tuple(map(_end, ends)))
        case ["ready", seconds, degraded]:
            return Ready(_number(seconds, 0), None if degraded is None else _text(degraded))
        case ["checked"]:
            return Checked()
        case ["fault", code, message, (70 | 75 | 78) as exit_]:
            return Fault(_text(code), _text(message), exit_)
    raise EngineError("frame: expected a report of the worker, found something else")


def _plain(frame: Order | Report) -> list[Any]:
    match frame:
        case Stepped():
            tokens = [[token.request, token.token, token.logprob, token.text, token.top] for token in frame.tokens]
            ends = [
                [end.request, end.reason, end.text, list(vars(end.timings).values()), _told(end.error)]
                for end in frame.ends
            ]
            return ["stepped", frame.seconds, tokens, ends]
        case Submit():
            return ["submit", frame.id, _fields(frame.request)]
        case Cancel():
            return ["cancel", frame.id]
        case Ready():
            return ["ready", frame.seconds, frame.degraded]
        case Fault():
            return ["fault", frame.code, frame.message[:2000], frame.exit]
    return ["check" if isinstance(frame, Check) else "checked"]


def _fields(request: Request) -> dict[str, Any]:
    """As `asdict`, which would copy each token of the prompt."""
    grammar = None if request.grammar is None else vars(request.grammar)
    return {**vars(request), "sampling": vars(request.sampling), "grammar": grammar}


def _told(error: OrinError | None) -> list[str] | None:
    return None if error is None else [type(error).__name__, str(error)[:2000]]


def _array(payload: bytes) -> list[Any]:
    try:
        data = json.loads(payload.decode())
    except (ValueError, RecursionError) as error:
        raise EngineError(f"frame: expected JSON, found: {str(error)[:200]}") from None
    if not isinstance(data, list):
        raise EngineError(f"frame: expected an array, found {type(data).__name__}")
    return data


def _request(data: Mapping[str, Any]) -> Request:
    """The request of these fields. Raises EngineError: other fields; RequestError: a value out of bounds."""
    try:
        sampling = dict(data["sampling"])
        sampling["logit_bias"] = {int(token): bias for token, bias in sampling["logit_bias"].items()}
        listed = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
        grammar = None if data["grammar"] is None else Grammar(**data["grammar"])
        return Request(**{**data, **listed, "sampling": Sampling(**sampling), "grammar": grammar})
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise EngineError(f"frame: expected the fields of a request, found: {str(error)[:200]}") from None


def _token(data: Any) -> Token:
    match data:
        case [request, token, logprob, text, list(top)]:
            others = tuple(map(_scored, top))
            return Token(_whole(request), _whole(token), _number(logprob, -math.inf), _text(text), others)
    raise EngineError("frame: expected a token, found something else")


def _scored(data: Any) -> tuple[int, float]:
    match data:
        case [token, logprob]:
            return _whole(token), _number(logprob, -math.inf)
    raise EngineError("frame: expected a token and its log-probability, found something else")


_ERRORS: dict[str, type[OrinError]] = {"RequestError": RequestError, "NumericError": NumericError}
_REASONS = get_args(Reason)


def _end(data: Any) -> Finished:
    match data:
        case [request, reason, text, [*times], error] if reason in _REASONS and len(times) == len(fields(Timings)):
            return Finished(_whole(request), reason, _text(text), _timings(times), _error(error))
    raise EngineError("frame: expected the end of a request, found something else")


def _timings(times: list[Any]) -> Timings:
    pairs = zip(fields(Timings), times, strict=True)
    checked: list[Any] = [_whole(time) if field.type == "int" else _number(time, 0) for field, time in pairs]
    return Timings(*checked)


def _error(data: Any) -> OrinError | None:
    match data:
        case None:
            return None
        case [str(name), message]:
            return _ERRORS.get(name, EngineError)(_text(message))
    raise EngineError("frame: expected an error, found something else")


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise EngineError(f"frame: expected a whole number of at least 0, found {str(value)[:40]!r}")
    return value


def _number(value: Any, low: float) -> float:
    if type(value) not in (int, float) or not low <= value < math.inf:
        raise EngineError(f"frame: expected a number of at least {low}, found {str(value)[:40]!r}")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT:
        raise EngineError(f"frame: expected at most {_MAX_TEXT} characters of text, found {type(value).__name__}")
    return value
