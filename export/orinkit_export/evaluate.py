# SPDX-License-Identifier: Apache-2.0
"""How far an export is from the float model: perplexity, KL divergence and agreement on the evaluation text.

Logits of a large vocabulary do not fit in memory for all positions, nor the float head at all. So positions come
`STEP` at a time, and for each of them the vocabulary block by block; what is kept of a block are sums.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orinkit import config
from orinkit.engines import open_engine
from orinkit.engines.base import Engine
from orinkit.errors import VerificationError
from orinkit_export import baseline, verify
from orinkit_export.disk import writing
from orinkit_export.plan import Plan
from orinkit_export.progress import progress

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

STEP = 256
"""Positions whose logits are in memory at a time: a quarter of a gigabyte for a vocabulary of 250,000."""

EDGES = 10.0 ** (np.arange(-24, 9) / 4)
"""Edges of the histogram of KL divergences in nats, four to the decade; the outer bins are open."""

QUALITY = "quality.json"


@dataclass(frozen=True)
class Quality:
    """An export against its float model, over all positions that have a next token."""

    positions: int
    perplexity_float: float
    perplexity: float
    perplexity_increase: float
    """Per cent."""
    kl_mean: float
    """Mean KL(float || export) in nats."""
    kl_p99: float
    """99 of 100 positions are below it."""
    top1: float
    """Share of positions at which both have the same best token."""
    histogram: tuple[int, ...]
    """Positions by their KL divergence: below EDGES[0], between each two edges, from the last one on."""

    def report(self) -> dict[str, float]:
        """The numbers that a manifest keeps, rounded so far that the order of sums does not show."""
        numbers = {f"quality_{name}": value for name, value in vars(self).items() if name != "histogram"}
        return {name: float(f"{value:.3g}" if isinstance(value, float) else value) for name, value in numbers.items()}


class _Softmax:
    """Sums of exp over a vocabulary that comes in blocks, relative to the largest logit so far."""

    def __init__(self, rows: int) -> None:
        self.largest = np.full(rows, -np.inf)
        self.total = np.zeros(rows)
        self.best = np.zeros(rows, np.intp)
        self.label = np.zeros(rows)

    def add(self, logits: Float64, start: int, labels: NDArray[np.int32]) -> tuple[Float64, Float64]:
        """Exponentials [R, n] of a block, and the factor [R] by which sums of earlier ones shrink."""
        rows = np.arange(len(logits))
        best = logits.argmax(axis=1)
        largest = np.maximum(self.largest, logits[rows, best])
        shrink = np.exp(self.largest - largest)
        self.best = np.where(logits[rows, best] > self.largest, start + best, self.best)
        exponentials = np.exp(logits - largest[:, None])
        self.largest, self.total = largest, self.total * shrink + exponentials.sum(axis=1)
        inside = (labels >= start) & (labels < start + logits.shape[1])
        self.label[inside] = logits[inside, labels[inside] - start]
        return exponentials, shrink

    @property
    def log_total(self) -> Float64:
        return np.asarray(self.largest + np.log(self.total))


class Comparison:
    """Two models' logits at the same positions."""

    def __init__(self, labels: NDArray[np.int32]) -> None:
        """`labels` [R] are the tokens that come next."""
        self._labels = labels
        self._seen = 0
        self._expected, self._found = _Softmax(len(labels)), _Softmax(len(labels))
        self._difference = np.zeros(len(labels))

    def add(self, expected: Float32, found: Float32) -> None:
        """The next block [R, n] of the vocabulary of either model's logits: the float model's and the export's."""
        p, q = expected.astype(np.float64), found.astype(np.float64)
        exponentials, shrink = self._expected.add(p, self._seen, self._labels)
        self._found.add(q, self._seen, self._labels)
        self._difference = self._difference * shrink + (exponentials * (p - q)).sum(axis=1)
        self._seen += expected.shape[1]

    @property
    def kl(self) -> Float64:
        """KL(expected || found) in nats [R]: the mean of p - q under softmax(p), less the difference of log sums."""
        mean = self._difference / self._expected.total
        return np.asarray(mean - (self._expected.log_total - self._found.log_total))

    @property
    def same(self) -> NDArray[np.bool_]:
        """Where the best token is the same one [R]."""
        return np.asarray(self._expected.best == self._found.best)

    @property
    def losses(self) -> tuple[Float64, Float64]:
        """Negative log likelihood of the labels [R] by either model."""
        first, second = (side.log_total - side.label for side in (self._expected, self._found))
        return first, second


def run(plan: Plan, model: Path, hidden: Path, folder: Path) -> None:
    """Compare the graph `model` with the float model's rows in `hidden`; the numbers go to `folder`.

    Raises VerificationError: logits that are not finite.
    """
    engine = open_engine("onnxruntime", model, plan.spec)
    ids, rows = plan.evaluation_ids, baseline.rows(plan, hidden)
    done = []
    with progress("evaluate", rows.shape[0] * rows.shape[1], "tokens") as advance:
        for sequence, normed in zip(ids, rows, strict=True):
            for comparison in compared(plan, engine, sequence, normed):
                done.append(comparison)
                advance(len(comparison.kl))
    quality = summary(done)
    with writing(folder):
        (folder / QUALITY).write_text(json.dumps(config.dump(quality)) + "\n", encoding="utf-8")


def compared(plan: Plan, engine: Engine, sequence: NDArray[np.int32], normed: Float32) -> Iterator[Comparison]:
    """A sequence [T] and its float rows [T-1, H], in steps of at most `STEP` positions. Raises VerificationError."""
    step = min(STEP, plan.recipe.shapes.chunk)
    starts = range(0, len(normed), step)
    for start, found in zip(starts, verify.engine_logits(engine, sequence[:-1], step), strict=True):
        if not np.isfinite(found).all():
            raise VerificationError(
                "evaluation: expected finite logits, found others: a value between two ops does not fit into "
                f"{plan.recipe.activations}; this model needs another activation type"
            )
        end = start + len(found)
        comparison = Comparison(sequence[start + 1 : end + 1])
        seen = 0
        for block in baseline.logits(plan, normed[start:end]):
            comparison.add(block, found[:, seen : seen + block.shape[1]])
            seen += block.shape[1]
        yield comparison


def summary(parts: Sequence[Comparison]) -> Quality:
    """The numbers over all positions of all `parts`."""
    kl, same = (np.concatenate([getattr(part, name) for part in parts]) for name in ("kl", "same"))
    losses = np.concatenate([part.losses for part in parts], axis=1)
    before, after = np.exp(losses.mean(axis=1)).tolist()
    bins = np.bincount(np.searchsorted(EDGES, kl, side="right"), minlength=len(EDGES) + 1)
    return Quality(
        positions=len(kl),
        perplexity_float=before,
        perplexity=after,
        perplexity_increase=100 * (after / before - 1),
        kl_mean=float(kl.mean()),
        kl_p99=float(np.quantile(kl, 0.99)),
        top1=float(same.mean()),
        histogram=tuple(bins.tolist()),
    )


def read(folder: Path) -> Quality:
    """What `run` found."""
    return config.parse(json.loads((folder / QUALITY).read_text(encoding="utf-8")), Quality, QUALITY)
