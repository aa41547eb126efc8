# SPDX-License-Identifier: Apache-2.0
"""Searched scales against plain rules, and GPTQ against the nearest integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orinkit import int4
from orinkit_export import rounding
from orinkit_export.rounding import SHRINK, Rounder, loss, nearest, scales_of, search_scales

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Any]] = {
    "gauss": lambda rng, shape: rng.standard_normal(shape),
    "student-t5": lambda rng, shape: rng.standard_t(5, shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
}


def gauss(*shape: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def correlated(tokens: int, k: int, seed: int = 0) -> Float32:
    """Inputs whose channels depend on each other and differ in size, as activations do."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, k)) @ (np.eye(k) + 0.3 * rng.standard_normal((k, k)) / np.sqrt(k) * 3)
    return np.asarray(mixed * np.exp(rng.standard_normal(k)), np.float32)


def gram_of(x: Float32) -> Float32:
    return np.asarray(x.T @ x / len(x), np.float32)


def squared_error(groups: Float32, scales: NDArray[np.float16]) -> Float64:
    """Of every group, by the rule q = clip(round(w/s), -8, 7) in float64."""
    wide, s = groups.astype(np.float64), scales.astype(np.float64)[:, None]
    return np.asarray(((np.clip(np.rint(wide / s), -8, 7) * s - wide) ** 2).sum(axis=1))


def extreme(groups: Float32) -> Float64:
    return np.array([group[np.argmax(np.abs(group))] for group in groups], np.float64)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_search_never_loses_to_a_plain_rule(name: str, size: int) -> None:
    """Group by group, against full range m/-8 and absmax/7, whose scales are rounded to float16 as ours are."""
    groups = (DISTRIBUTIONS[name](np.random.default_rng(size), (8000, size)) * 0.02).astype(np.float32)
    found = squared_error(groups, search_scales(groups))
    m = extreme(groups)
    for plain in (m / -8, np.abs(m) / 7):
        assert (found <= squared_error(groups, plain.astype(np.float16)) * (1 + 1e-4)).all()


@pytest.mark.parametrize(
    ("name", "searched", "absmax"), [("gauss", 9.3, 13.8), ("student-t5", 19.5, 29.5), ("laplace", 17.3, 25.7)]
)
def test_the_gain_is_the_known_one(name: str, searched: float, absmax: float) -> None:
    """Relative error in thousandths for groups of 128, within 4 %: about a third less than absmax/7."""
    groups = DISTRIBUTIONS[name](np.random.default_rng(1), (10000, 128)).astype(np.float32)
    power = (groups.astype(np.float64) ** 2).sum() / 1000
    assert squared_error(groups, search_scales(groups)).sum() / power == pytest.approx(searched, rel=0.04)
    plain = (np.abs(extreme(groups)) / 7).astype(np.float16)
    assert squared_error(groups, plain).sum() / power == pytest.approx(absmax, rel=0.04)


def test_the_best_of_all_candidates() -> None:
    groups = gauss(200, 32)
    candidates = (extreme(groups)[:, None] * SHRINK / -8).astype(np.float16)
    best = np.min([squared_error(groups, column) for column in candidates.T], axis=0)
    assert squared_error(groups, search_scales(groups)) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("m", [-1.0, 1.0])
def test_a_group_of_exact_levels_loses_nothing(m: float) -> None:
    """-8 s to 7 s in units of the extreme element's own scale: p = 1 maps that element to -8."""
    levels = np.tile(np.arange(-8, 8), 2)[None].astype(np.float32) * np.float32(-m / 8)
    scales = search_scales(levels)
    assert scales.tolist() == [-m / 8]
    q = int4.quantise(levels, scales[:, None])
    assert q[0].tolist() == list(range(16)) * 2
    assert levels[0, 0] == m


@pytest.mark.parametrize("factor", [1e-7, 3e-6, 1e-4, 1.0, 2e5 / 8])
def test_small_and_large_groups(factor: float) -> None:
    """From scales that float16 cannot hold, through its subnormal ones, to its largest."""
    groups = np.clip(gauss(500, 32), -8, 8) * np.float32(factor)
    scales = search_scales(groups)
    assert np.isfinite(scales).all()
    assert (scales != 0).all()
    found, power = squared_error(groups, scales), (groups.astype(np.float64) ** 2).sum(axis=1)
    assert (found <= power).all()
    if factor >= 1e-4:
        assert found.sum() < 0.01 * power.sum()


def test_groups_of_zeros_and_a_single_outlier() -> None:
    groups = np.zeros((2, 128), np.float32)
    groups[1, 5] = -3.0
    scales = search_scales(groups)
    assert scales[0] == 1
    assert (squared_error(groups, scales) < 1e-5).all()


def test_the_search_leaves_its_groups_alone() -> None:
    groups = gauss(10, 32)
    before = groups.copy()
    search_scales(groups)
    assert np.array_equal(groups, before)


@pytest.mark.parametrize(("n", "k", "group_size"), [(5, 128, 128), (3, 192, 64), (4100, 96, 32)])
def test_int4(n: int, k: int, group_size: int) -> None:
    """Integers are chosen for the scale as stored, in float16; more rows than one thread takes at a time."""
    given = gauss(n, k) * np.float32(0.02)
    rounded = Rounder(group_size)(given)
    packed, scales = rounded.packed, rounded.scales
    assert [packed.dtype.name, scales.dtype.name] == ["int8", "float16"]
    assert np.array_equal(scales.reshape(-1), search_scales(given.reshape(-1, group_size)))
    assert packed.tobytes() == int4.pack(int4.quantise(given, scales)).tobytes()
    error = (int4.dequantise(packed, scales).astype(np.float64) - given).reshape(-1, group_size)
    expected = squared_error(given.reshape(-1, group_size), scales.reshape(-1))
    assert (error**2).sum(axis=1) == pytest.approx(expected, rel=1e-3)


def test_the_loss_is_the_mean_squared_output_error() -> None:
    x, weight = correlated(400, 64), gauss(20, 64, seed=1)
    rounded = Rounder(32)(weight).dequantised()
    direct = np.mean(np.sum((x.astype(np.float64) @ (rounded - weight).T.astype(np.float64)) ** 2, axis=1))
    assert loss(weight, rounded, gram_of(x)) == pytest.approx(direct, rel=1e-4)


def test_importance_moves_the_error_to_columns_that_matter_less() -> None:
    weight, importance = gauss(300, 64), np.ones(64, np.float32)
    importance[::4] = 100
    plain, weighted = (nearest(weight, scales_of(weight, 64, how)).dequantised() - weight for how in (None, importance))
    assert np.sum(weighted[:, ::4] ** 2) < np.sum(plain[:, ::4] ** 2)


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_gptq_loses_less_than_the_nearest_integers(group_size: int) -> None:
    gram, weight = gram_of(correlated(1000, 256)), gauss(96, 256, seed=2)
    scales = scales_of(weight, group_size, np.diag(gram).copy())
    found = Rounder(group_size, gram, spread_errors=True)(weight)
    assert loss(weight, found.dequantised(), gram) < 0.8 * loss(weight, nearest(weight, scales).dequantised(), gram)


def test_gptq_against_its_plain_formula() -> None:
    """Column by column in float64, inverting what remains of the Hessian at every step (Frantar et al., eq. 2, 3)."""
    gram, weight, group_size = gram_of(correlated(500, 64)), gauss(8, 64, seed=3), 32
    scales = scales_of(weight, group_size, np.diag(gram).copy())
    order = rounding._order(np.diag(gram), group_size)
    wide, w = gram.astype(np.float64), weight.astype(np.float64).copy()
    wide += np.eye(64) * rounding.DAMPING * np.diag(gram).mean()
    expected = np.empty((8, 64), np.int64)
    remaining = list(order)
    while remaining:
        inverse = np.linalg.inv(wide[np.ix_(remaining, remaining)])
        j = remaining[0]
        s = scales[:, j // group_size].astype(np.float64)
        expected[:, j] = np.clip(np.rint(w[:, j] / s), -8, 7) + 8
        error = (w[:, j] - (expected[:, j] - 8) * s) / inverse[0, 0]
        w[:, remaining] -= error[:, None] * inverse[0]
        remaining.pop(0)
    factor = rounding._inverse_factor(gram[np.ix_(order, order)])
    assert factor is not None
    groups = order[::group_size] // group_size
    found = rounding._sweep(weight.T[order].copy(), scales.T[groups].astype(np.float32), factor)
    assert np.mean(expected[:, order] == found.T + 8) > 0.995  # float32 may round a tie the other way


def test_the_order_keeps_groups_together() -> None:
    importance = np.abs(gauss(1, 128, seed=4))[0]
    order = rounding._order(importance, 32)
    assert sorted(order) == list(range(128))
    groups = (order // 32).reshape(4, 32)
    assert (groups == groups[:, :1]).all()
    means = importance.reshape(4, 32).mean(axis=1)
    assert (np.diff(means[groups[:, 0]]) <= 0).all()
    assert (np.diff(importance[order].reshape(4, 32), axis=1) <= 0).all()


def test_dead_columns_are_harmless() -> None:
    x = correlated(300, 64)
    x[:, 5] = 0
    gram, weight = gram_of(x), gauss(16, 64, seed=5)
    found = Rounder(32, gram, spread_errors=True)(weight)
    assert np.isfinite(found.dequantised()).all()
    plain = nearest(weight, found.scales)
    assert loss(weight, found.dequantised(), gram) <= loss(weight, plain.dequantised(), gram)


def test_plain_rounding_by_hand() -> None:
    """s = 14 / 7 = 2 and 1: 14 3.4 becomes 14 4, and -7 0.4 becomes -7 0; the second input counts four times."""
    weight = np.array([[14, 3.4, -7, 0.4]], np.float32)
    gram = np.diag(np.array([1, 4, 1, 1], np.float32))
    lost, power = 4 * 0.6**2 + 0.4**2, 14**2 + 4 * 3.4**2 + 7**2 + 0.4**2
    assert rounding.plain_loss(weight, 2, gram) == pytest.approx(lost / power, rel=1e-5)
    assert rounding.plain_loss(np.zeros((1, 4), np.float32), 2, gram) == 0


def test_plain_rounding_loses_what_is_known_of_it() -> None:
    found = rounding.plain_loss(gauss(256, 1024), 128, np.eye(1024, dtype=np.float32))
    assert found == pytest.approx(13.8e-3, rel=0.02)
