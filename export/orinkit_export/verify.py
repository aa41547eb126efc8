# SPDX-License-Identifier: Apache-2.0
"""Numbers and tokens of an exported graph: agreement with the reference, and the golden continuations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from orinkit.bundle import GoldenCase
from orinkit.engines.base import Engine, Float32, Int32, Profile, StepInputs
from orinkit.errors import VerificationError
from orinkit.recipe import Recipe
from orinkit.runtime.batch import Row
from orinkit.runtime.steps import Stepper
from orinkit.runtime.tokenizer import Tokenizer
from orinkit_export.reference import ReferenceGraph

MAX_KL = 1e-4
"""Largest mean KL divergence (nats) of an engine from the reference that an export passes."""

MIN_MARGIN = 0.02
"""A golden continuation ends where the two best logits come closer: another engine may round the other way."""


@dataclass(frozen=True)
class Agreement:
    """An engine's logits against the reference's, over all positions of some sequences."""

    kl_mean: float
    """Mean KL(reference || engine) in nats."""
    kl_max: float
    top1: float
    """Share of positions with the same best token."""
    largest_activation: float
    """Largest magnitude between ops; float16 ends at 65504."""
    positions: int

    def report(self) -> dict[str, float]:
        """The numbers that a manifest keeps, rounded so that they read well."""
        return {name: float(f"{float(value):.4g}") for name, value in vars(self).items()}


def golden_cases(stepper: Stepper, tokenizer: Tokenizer, recipe: Recipe, eos: Sequence[int]) -> tuple[GoldenCase, ...]:
    """Greedy continuations of the recipe's prompts, each cut before it ends, becomes ambiguous, or is long enough.

    Raises VerificationError when nothing is left of any of them.
    """
    cases = []
    for prompt in recipe.golden.prompts:
        ids = tokenizer.encode(prompt, recipe.shapes.capacity)
        tokens, margin = _continue(stepper, ids, recipe.golden.tokens, frozenset(eos))
        if tokens:
            cases.append(GoldenCase(prompt, ids, tuple(tokens), float(f"{margin:.4g}")))
    if not cases:
        raise VerificationError(
            f"golden prompts: expected a clear first token (margin of at least {MIN_MARGIN}) for one of them, "
            "found none; choose other prompts in the recipe"
        )
    return tuple(cases)


def _continue(stepper: Stepper, ids: tuple[int, ...], count: int, eos: frozenset[int]) -> tuple[list[int], float]:
    chunk = stepper.shapes.chunk
    for start in range(0, len(ids), chunk):
        logits = stepper.prefill([Row(0, start, ids[start : start + chunk])])
    tokens: list[int] = []
    least = np.inf
    while True:
        second, best = np.partition(logits[0], -2)[-2:]
        token = int(logits[0].argmax())
        if best - second < MIN_MARGIN or token in eos:
            return tokens, least
        tokens.append(token)
        least = min(least, float(best - second))
        if len(tokens) == count:
            return tokens, least
        logits = stepper.decode([Row(0, len(ids) + len(tokens) - 1, (token,))])


def agreement(graph: Path, engine: Engine, sequences: Sequence[Sequence[int]], chunk: int) -> Agreement:
    """Run every sequence through the references and through the engine. Raises VerificationError."""
    if not sequences:
        raise VerificationError("expected golden prompts to compare on, found none; export again with some")
    reference = ReferenceGraph(ir.load(graph))
    expected = reference.logits(sequences)
    found = np.concatenate([part for sequence in sequences for part in engine_logits(engine, sequence, chunk)])
    divergence = kl_divergence(expected, found)
    return Agreement(
        kl_mean=float(divergence.mean()),
        kl_max=float(divergence.max()),
        top1=float((expected.argmax(axis=-1) == found.argmax(axis=-1)).mean()),
        largest_activation=reference.largest,
        positions=len(expected),
    )


def check(found: Agreement) -> None:
    """The numerical gate of an export. Raises VerificationError."""
    if not found.kl_mean < MAX_KL:
        raise VerificationError(
            f"graph against its reference: expected a mean KL below {MAX_KL}, found {found.kl_mean:.3g} over "
            f"{found.positions} positions; do not use this export, and report the model and the onnxruntime version"
        )


def engine_logits(engine: Engine, sequence: Sequence[int] | Int32, chunk: int) -> Iterator[Float32]:
    """Logits [T, V] of all positions of a sequence, at most `chunk` positions at a time."""
    caches = engine.caches(1, len(sequence), chunk)
    context = engine.context(Profile("verify", chunk, 1), caches)
    for start in range(0, len(sequence), chunk):
        ids = np.array(sequence[start : start + chunk], np.int32)
        count = len(ids)
        step = StepInputs(ids, _ints(0, count), _ints(start), _ints(0), np.arange(count, dtype=np.int32))
        yield context.run(step).copy()


def _ints(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def kl_divergence(expected: Float32, found: Float32) -> NDArray[np.float64]:
    """KL(expected || found) in nats of every row of two arrays of logits [T, V]."""
    p, q = _log_softmax(expected), _log_softmax(found)
    return np.asarray((np.exp(p) * (p - q)).sum(axis=-1))


def _log_softmax(logits: Float32) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide
