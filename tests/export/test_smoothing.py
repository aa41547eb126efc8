# SPDX-License-Identifier: Apache-2.0
"""The search for fold vectors: its loss is the true one, it never loses, and it finds outlier channels again."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from orinkit import int4
from orinkit.memory.formats import Format
from orinkit_export import smoothing
from orinkit_export.folds import Fold
from orinkit_export.levels import levels_of
from orinkit_export.rounding import Rounder, loss
from orinkit_export.smoothing import LEAST_GAIN, MAX_ROWS, SHRINK, Smoothing, search

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
K, GROUP = 128, 32
STORED = Format("int4", GROUP)


def gauss(*shape: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def inputs(tokens: int = 600, k: int = K, seed: int = 0) -> Float32:
    """Rows whose channels depend on each other and differ in size a little, as behind a norm."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, k)) @ (np.eye(k) + rng.standard_normal((k, k)) / np.sqrt(k))
    return np.asarray(mixed * np.exp(0.2 * rng.standard_normal(k)), np.float32)


def fold(share: NDArray[np.intp] | None = None) -> Fold:
    return Fold("norm1", ("a.weight", "b.weight"), np.arange(K) if share is None else share, "norm1")


def found(x: Float32, *matrices: Float32, share: NDArray[np.intp] | None = None) -> Smoothing:
    gram = (x.T @ x / len(x)).astype(np.float32)
    return search(fold(share), [(matrix, STORED) for matrix in matrices], np.abs(x).mean(axis=0), gram)


def forward_loss(x: Float32, matrix: Float32, a: Float32) -> float:
    """Mean squared error of the outputs of the rounded matrix, computed by running it, in float64."""
    scaled = matrix * a
    power = ((x / a) ** 2).mean(axis=0)
    scales = levels_of(scaled, GROUP, power.astype(np.float32), shrink=SHRINK).scales
    stored = int4.dequantise(int4.pack(int4.quantise(scaled, scales)), scales).astype(np.float64)
    wide = x.astype(np.float64)
    difference = (wide / a) @ stored.T - wide @ matrix.T.astype(np.float64)
    return float((difference**2).sum(axis=1).mean())


def total(x: Float32, matrices: tuple[Float32, ...], a: Float32) -> float:
    return sum(forward_loss(x, matrix, a) for matrix in matrices)


def outliers(share: NDArray[np.intp], by: float, count: int = 3, seed: int = 9) -> Float32:
    """Factors: `by` in a few elements of the vector, 1 elsewhere."""
    factors = np.ones(int(share.max()) + 1, np.float32)
    factors[np.random.default_rng(seed).permutation(len(factors))[:count]] = by
    return factors


# The loss


@pytest.mark.parametrize("seed", range(3))
def test_the_gram_loss_is_the_forward_loss(seed: int) -> None:
    x, matrix = inputs(seed=seed), gauss(48, K, seed=seed)
    gram = (x.T.astype(np.float64) @ x / len(x)).astype(np.float32)
    a = np.exp(gauss(K, seed=seed + 10))
    assert smoothing._loss(matrix, STORED, gram, a) == pytest.approx(forward_loss(x, matrix, a), rel=1e-3)
    ones = np.ones(K, np.float32)
    assert smoothing._loss(matrix, STORED, gram, None) == pytest.approx(forward_loss(x, matrix, ones), rel=1e-3)


def test_the_loss_is_that_of_the_levels_that_will_be_stored() -> None:
    """Weights of one sign have twice as fine a step with zero points."""
    x, matrix = inputs(), np.abs(gauss(48, K))
    gram = (x.T @ x / len(x)).astype(np.float32)
    losses = [smoothing._loss(matrix, Format("int4", GROUP, zeros), gram, None) for zeros in (True, False)]
    assert losses[0] < 0.5 * losses[1]


def test_the_ratio_is_that_of_the_forward_losses() -> None:
    """Over both matrices that share the input."""
    x, matrices = inputs() * outliers(np.arange(K), 20), (gauss(32, K), gauss(16, K, seed=1))
    result = found(x, *matrices)
    assert result.kind != "identity"
    expected = total(x, matrices, result.a) / total(x, matrices, np.ones(K, np.float32))
    assert result.ratio == pytest.approx(expected, rel=1e-3)


# What is chosen


@pytest.mark.parametrize("seed", range(8))
def test_the_search_never_loses_to_the_identity(seed: int) -> None:
    """On inputs and weights with outliers of any kind, small and large."""
    rng = np.random.default_rng(seed)
    x = inputs(300, seed=seed) * np.exp(rng.normal(0, 2, K)).astype(np.float32)
    matrix = gauss(24, K, seed=seed) * np.exp(rng.normal(0, 2, K)).astype(np.float32)
    result = found(x, matrix)
    assert result.ratio <= 1
    assert forward_loss(x, matrix, result.a) <= forward_loss(x, matrix, np.ones(K, np.float32)) * (1 + 1e-4)
    assert (result.a > 0).all()
    assert np.isfinite(result.a).all()


@pytest.mark.parametrize("by", [8.0, 30.0, 100.0, 1 / 8, 1 / 30])
def test_outlier_channels_are_found(by: float) -> None:
    """A fold run backwards: the inputs of some channels times `by`, their weights divided by it. The loss comes back
    to that of the clean pair, from which plain rounding is far."""
    clean_x, clean = inputs(), gauss(64, K, seed=1)
    factors = outliers(np.arange(K), by)
    x, matrix = clean_x * factors, clean / factors
    result, ones = found(x, matrix), np.ones(K, np.float32)
    target = forward_loss(clean_x, clean, ones)
    assert forward_loss(x, matrix, ones) > 2 * target
    assert forward_loss(x, matrix, result.a) < 1.15 * target
    assert result.spread > max(by, 1 / by) / 4


def test_outliers_of_channels_that_share_a_vector() -> None:
    """One element for all query heads of a KV head, as v -> o has it."""
    share = (np.array([0, 0, 1, 1])[:, None] * 32 + np.arange(32)).ravel()
    factors = outliers(share, 30)
    x, matrix = inputs() * factors[share], gauss(64, K, seed=1) / factors[share]
    result = found(x, matrix, share=share)
    assert result.a.shape == (64,)
    target = forward_loss(inputs(), gauss(64, K, seed=1), np.ones(K, np.float32))
    assert forward_loss(x, matrix, np.ones(K, np.float32)) > 2 * target
    assert forward_loss(x, matrix, result.a[share]) < 1.15 * target


@pytest.mark.parametrize("by", [8.0, 30.0, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_stored_gains_by_the_fold_too(seed: int, by: float) -> None:
    """A few loud channels whose weights are like the others': the fold is judged with scales that know the inputs, as
    those that are stored do, so that it does not take away what they gain by themselves."""
    x, matrix = inputs(seed=seed) * outliers(np.arange(K), by, seed=9 + seed), gauss(64, K, seed=1 + seed)
    a = found(x, matrix).a
    for spread_errors in (False, True):
        lost = []
        for vector in (a, np.ones(K, np.float32)):
            scaled, gram = matrix * vector, ((x / vector).T @ (x / vector) / len(x)).astype(np.float32)
            rounded = Rounder(GROUP, gram, spread_errors)(scaled).dequantised()
            lost.append(loss(scaled, rounded, gram))
        assert lost[0] < 0.97 * lost[1]


def test_the_identity_is_kept_where_nothing_is_lost() -> None:
    """Weights that are levels already: no candidate is better than a loss of zero."""
    levels = np.tile(np.arange(-8, 8), (20, K // 16)).astype(np.float32) / np.float32(8)
    result = found(inputs(), levels)
    assert (result.kind, result.alpha, result.ratio, result.spread) == ("identity", 0.0, 1.0, 1.0)
    assert (result.a == 1).all()


def test_the_identity_is_kept_on_a_gain_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the gain of this search and a hair more than it."""
    x, matrix = inputs() * outliers(np.arange(K), 3, count=1), gauss(64, K, seed=1)
    gain = 1 - found(x, matrix).ratio
    assert gain > LEAST_GAIN
    monkeypatch.setattr(smoothing, "LEAST_GAIN", gain * 1.001)
    assert found(x, matrix).kind == "identity"
    monkeypatch.setattr(smoothing, "LEAST_GAIN", gain * 0.999)
    assert found(x, matrix).ratio == 1 - gain


def test_the_inputs_decide_and_not_the_weights_alone() -> None:
    """The same matrix with other channels loud: another vector, which serves those channels."""
    matrix = gauss(64, K, seed=1)
    loud = [inputs() * outliers(np.arange(K), 30, seed=seed) for seed in (1, 2)]
    first, second = (found(x, matrix) for x in loud)
    assert forward_loss(loud[0], matrix, first.a) < 0.8 * forward_loss(loud[0], matrix, second.a)
    assert forward_loss(loud[1], matrix, second.a) < 0.8 * forward_loss(loud[1], matrix, first.a)


def test_channels_that_are_never_active_are_harmless() -> None:
    x = inputs() * outliers(np.arange(K), 30)
    x[:, 7] = 0
    result = found(x, gauss(32, K, seed=1))
    assert np.isfinite(result.a).all()
    assert result.ratio < 1


# A sample of the rows


def test_a_sample_of_the_rows_ranks_as_all_rows_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of two kinds by turns, as gate and up are. What the sample chooses costs at most 1 % more over all rows. On
    average: vectors that differ by a hair have losses that differ by a per cent or two, either way."""
    costs = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = inputs(seed=seed) * np.exp(rng.normal(0, 1, K)).astype(np.float32)
        matrix = gauss(4000, K, seed=seed)
        matrix[::2] *= np.exp(rng.normal(0, 1, K)).astype(np.float32)
        monkeypatch.setattr(smoothing, "MAX_ROWS", 500)
        sampled = found(x, matrix)
        monkeypatch.setattr(smoothing, "MAX_ROWS", 4000)
        best = found(x, matrix)
        assert best.kind != "identity"
        costs.append(forward_loss(x, matrix, sampled.a) / forward_loss(x, matrix, best.a))
    assert np.mean(costs) < 1.01
    assert max(costs) < 1.05


@pytest.mark.parametrize("count", [6, MAX_ROWS, MAX_ROWS + 2, 2 * MAX_ROWS, 3 * MAX_ROWS + 8, 20 * MAX_ROWS])
def test_sampled_rows_are_pairs_from_all_over_the_matrix(count: int) -> None:
    """Even rows are of the gate, odd ones of up."""
    rows = smoothing.sample_rows(count)
    assert len(rows) == min(count, MAX_ROWS)
    assert (np.diff(rows) > 0).all()
    assert (rows[0], rows[-1]) == (0, count - 1)
    assert np.bincount(rows % 2).tolist() == [len(rows) // 2] * 2
    assert np.diff(rows).max() <= 2 * (count // MAX_ROWS) + 2
