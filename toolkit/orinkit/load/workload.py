# SPDX-License-Identifier: Apache-2.0
"""What is asked of a server, and when: drawn from a seed before anything is sent, so that a run can be repeated."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from orinkit.errors import ConfigError

MAX_REQUESTS = 1_000_000
MAX_LENGTH = 1 << 20
MAX_TOKENS = 50_000_000
"""Most tokens of a run: the time of each one is kept."""
_RANGE = re.compile(r"([0-9]{1,7})(?:-([0-9]{1,7}))?")
_IDS = range(3, 256)
"""Token ids of prompts: vocabularies begin with up to three special tokens and have single bytes or letters then."""


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths in tokens: one of the ranges, each as likely, then uniform in it."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """From text such as 128, 32-512, or 16-64,16-64,2048. Raises ConfigError."""
        matches = [_RANGE.fullmatch(part.strip()) for part in text.split(",")]
        ranges = [(int(match[1]), int(match[2] or match[1])) for match in matches if match is not None]
        if len(ranges) < len(matches) or any(not 1 <= low <= high <= MAX_LENGTH for low, high in ranges):
            raise ConfigError(f"expected lengths such as 128, 32-512 or 16-64,2048, found {text[:80]!r}")
        return cls(tuple(ranges))

    @property
    def most(self) -> int:
        return max(high for _, high in self.ranges)

    def draw(self, source: random.Random) -> int:
        return source.randint(*source.choice(self.ranges))


@dataclass(frozen=True)
class Shot:
    """One request."""

    at: float
    """Seconds after the beginning at which it is sent; 0 in a closed loop, where a free client sends it."""
    prompt: tuple[int, ...]
    """Token ids."""
    max_tokens: int
    cancel_after: int | None
    """Events of the answer after which the client leaves; None: it stays."""


@dataclass(frozen=True)
class Workload:
    """A run. With `rate` an open loop: requests come whether or not others are done; without, a closed one."""

    requests: int
    concurrency: int
    """Closed loop: clients, each with one request at a time. Open loop: most requests at a time, more are not sent."""
    rate: float | None
    """Requests per second on average, as a Poisson process."""
    prompt: Lengths
    answer: Lengths
    prefix: int
    """Tokens with which all prompts begin alike; at least one of each prompt is its own."""
    cancel: float
    """Share of requests that are left at a random place of the answer."""
    warmup: int
    """Requests at the beginning that do not count."""
    seed: int

    def validate(self) -> None:
        """Raises ConfigError: a value out of bounds."""
        bounds = (
            ("requests", self.requests, 1, MAX_REQUESTS),
            ("concurrency", self.concurrency, 1, 4096),
            ("rate", 1.0 if self.rate is None else self.rate, 0.001, 10_000.0),
            ("prefix", self.prefix, 0, MAX_LENGTH),
            ("cancel", self.cancel, 0.0, 1.0),
            ("warmup", self.warmup, 0, MAX_REQUESTS),
        )
        for name, value, low, high in bounds:
            if not low <= value <= high:
                raise ConfigError(f"{name}: expected {low} to {high}, found {value}")
        if (self.requests + self.warmup) * self.answer.most > MAX_TOKENS:
            raise ConfigError(f"expected at most {MAX_TOKENS} tokens in all; take fewer requests or shorter answers")

    def shots(self) -> Iterator[Shot]:
        """The warm-up and then the requests that count, one after the other."""
        times, contents = (random.Random(f"{self.seed} {use}") for use in ("times", "contents"))  # noqa: S311
        common = contents.choices(_IDS, k=self.prefix)
        total = self.warmup + self.requests
        gaps = (0.0 if self.rate is None else times.expovariate(self.rate) for _ in range(total))
        for at in accumulate(gaps):
            size, answer = self.prompt.draw(contents), self.answer.draw(contents)
            shared = common[: size - 1]
            prompt = (*shared, *contents.choices(_IDS, k=size - len(shared)))
            leaves = contents.random() < self.cancel
            yield Shot(at, prompt, answer, contents.randrange(answer) if leaves else None)
