# SPDX-License-Identifier: Apache-2.0
"""From logits to one token. The order of the steps is part of the meaning and is the same on every engine:

    mask -> logit_bias -> repetition penalty -> presence and frequency penalties -> temperature -> top-k -> top-p
    -> min-p -> draw by the Gumbel-max rule with Philox numbers (greedy at temperature 0)

Arithmetic is float64, equal values are ordered by token id (lowest first), and a random number depends on seed,
position and token id alone. So the same request draws the same tokens whatever runs beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from orinkit.engines.base import Float32
from orinkit.errors import NumericError, RequestError
from orinkit.runtime.philox import gumbel

Float64 = NDArray[np.float64]
Ids = NDArray[np.intp]
UInt32 = NDArray[np.uint32]

MAX_BIASES = 300
"""Most token ids of a `logit_bias`."""
MAX_LOGPROBS = 20
"""Most alternatives that are told of a token."""
MIN_TEMPERATURE = 0.01
"""Least temperature that is not greedy; below it the scaled logits say nothing more."""
_NUCLEUS_START = 1024
"""Tokens that top-p sorts at first; sixteen times as many each time that they are not enough."""


def check_number(name: str, value: object, low: float, high: float, whole: bool = False) -> None:
    """Raise RequestError unless `value` is a number (a whole one) from `low` to `high`."""
    kinds: tuple[type[int | float], ...] = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise RequestError(f"{name}: expected {kind} from {low} to {high}, found {value!r}")


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The default is greedy: the token with the highest logit.

    Raises RequestError for a value out of bounds.
    """

    temperature: float = 0.0
    """0 = greedy, else 0.01 to 2."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 = all."""
    top_p: float = 1.0
    """Keep the fewest tokens, most likely first, whose probabilities reach this sum."""
    min_p: float = 0.0
    """Keep tokens that are at least this times as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Logits of tokens of prompt and output: positive ones are divided by it, negative ones multiplied."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens of the output."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a token once for each time it stands in the output."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids; at most 300."""
    seed: int = 0
    """64 bits; the same seed draws the same tokens."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, 2)
        if 0 < self.temperature < MIN_TEMPERATURE:
            raise RequestError(f"temperature: expected 0 or {MIN_TEMPERATURE} to 2, found {self.temperature!r}")
        check_number("top_k", self.top_k, 0, 2**31 - 1, whole=True)
        check_number("top_p", self.top_p, 0, 1)
        check_number("min_p", self.min_p, 0, 1)
        check_number("repetition_penalty", self.repetition_penalty, 0.1, 10)
        check_number("presence_penalty", self.presence_penalty, -2, 2)
        check_number("frequency_penalty", self.frequency_penalty, -2, 2)
        check_number("seed", self.seed, 0, 2**64 - 1, whole=True)
        if len(self.logit_bias) > MAX_BIASES:
            raise RequestError(f"logit_bias: expected at most {MAX_BIASES} token ids, found {len(self.logit_bias)}")
        for token, bias in self.logit_bias.items():
            check_number("logit_bias: token id", token, 0, 2**31 - 1, whole=True)
            check_number(f"logit_bias: {token}", bias, -100, 100)


def settings_of(sampling: Sampling) -> dict[str, float]:
    """All of it but the biases, by name."""
    return {each.name: getattr(sampling, each.name) for each in fields(sampling) if each.name != "logit_bias"}


@dataclass
class History:
    """Tokens that the penalties look at."""

    seen: set[int]
    """Ids of prompt and output."""
    output: Counter[int] = field(default_factory=Counter)
    """How often each id stands in the output."""

    @classmethod
    def of(cls, prompt: Iterable[int]) -> History:
        return cls(set(prompt))

    def add(self, token: int) -> None:
        """Note a token of the output."""
        self.seen.add(token)
        self.output[token] += 1


@dataclass(frozen=True)
class Choice:
    """A chosen token. Log-probabilities are natural, and under the model itself: before mask, bias, penalties,
    temperature and cuts."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens with theirs, most likely first."""


def sample(
    logits: Float32,
    history: History,
    sampling: Sampling,
    position: int,
    *,
    num_logprobs: int = 0,
    mask: UInt32 | None = None,
) -> Choice:
    """Choose the token that stands at `position` of its sequence (prompt included), from float32 logits [V].

    `mask` uint32 [ceil(V/32)]: only ids whose bit id % 32 of word id / 32 is set may be chosen. Raises NumericError:
    a logit is not finite, so nothing is drawn; or the mask allows no token.
    """
    if not np.isfinite(logits).all():
        bad = int(np.flatnonzero(~np.isfinite(logits))[0])
        raise NumericError(
            f"logits: expected finite numbers, found {logits[bad]} for token id {bad}; "
            "the engine's numbers overflow or its state is damaged: run the self-test"
        )
    scores = _penalised(logits, history, sampling)
    if mask is not None:
        scores[~allowed(mask, len(scores))] = -np.inf
    token = int(np.argmax(scores))
    if scores[token] == -np.inf:
        raise NumericError("logits: expected a token that the grammar allows, found none; ask without the grammar")
    if sampling.temperature > 0:
        scores = (scores - scores[token]) / sampling.temperature
        ids = _kept(scores, sampling)
        token = int(ids[np.argmax(scores[ids] + gumbel(ids, position, sampling.seed))])
    top = _highest(logits.astype(np.float64), num_logprobs) if num_logprobs else ()
    return Choice(token, _logprob(logits, token), tuple((int(id_), _logprob(logits, id_)) for id_ in top))


def allowed(mask: UInt32, vocab: int) -> NDArray[np.bool_]:
    """The bits of a mask as bool [vocab]."""
    return np.unpackbits(mask.view(np.uint8), count=vocab, bitorder="little").astype(np.bool_)


def _penalised(logits: Float32, history: History, sampling: Sampling) -> Float64:
    """Logits after bias and penalties, float64 [V].

    Sources: repetition penalty as in transformers' RepetitionPenaltyLogitsProcessor (Keskar et al. 2019, CTRL);
    presence and frequency penalties as in OpenAI's API reference.
    """
    scores = logits.astype(np.float64)
    if sampling.logit_bias:
        ids = np.fromiter(sampling.logit_bias, dtype=np.intp)
        scores[ids] += np.fromiter(sampling.logit_bias.values(), dtype=np.float64)
    if sampling.repetition_penalty != 1 and history.seen:
        ids = np.fromiter(history.seen, dtype=np.intp)
        found = scores[ids]
        scores[ids] = np.where(found < 0, found * sampling.repetition_penalty, found / sampling.repetition_penalty)
    if (sampling.presence_penalty or sampling.frequency_penalty) and history.output:
        ids = np.fromiter(history.output, dtype=np.intp)
        counts = np.fromiter(history.output.values(), dtype=np.float64)
        scores[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return scores


def _kept(scores: Float64, sampling: Sampling) -> Ids:
    """Token ids that top-k, top-p and min-p leave; at least the best. `scores` have their highest at 0."""
    ids = np.arange(len(scores))
    if 0 < sampling.top_k < len(scores):
        ids = _highest(scores, sampling.top_k)
    if sampling.top_p < 1:
        ids = ids[_nucleus(scores[ids], sampling.top_p)]
    if sampling.min_p > 0:
        ids = ids[scores[ids] >= math.log(sampling.min_p)]
    return ids


def _highest(scores: Float64, count: int) -> Ids:
    """Indices of the `count` highest scores, highest first; of equal ones the lower index first.

    A partition finds the last score that is kept, and only the kept ones are sorted.
    """
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > last)
    equal = np.flatnonzero(scores == last)[: count - len(above)]
    kept = np.concatenate([above, equal])
    return kept[np.argsort(-scores[kept], kind="stable")]


def _nucleus(scores: Float64, mass: float) -> Ids:
    """Indices of the fewest highest scores whose probabilities reach `mass`; at least one."""
    wanted = mass * np.exp(scores).sum()
    size = min(len(scores), _NUCLEUS_START)
    while True:
        ids = _highest(scores, size)
        sums = np.cumsum(np.exp(scores[ids]))
        if sums[-1] >= wanted or size == len(scores):
            return ids[: int(np.searchsorted(sums, wanted)) + 1]
        size = min(len(scores), 16 * size)


def _logprob(logits: Float32, token: int) -> float:
    """log softmax(logits)[token]."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    return float(scores[token]) - math.log(np.exp(scores).sum())
