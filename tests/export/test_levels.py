# SPDX-License-Identifier: Apache-2.0
"""Searched levels against plain rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orinkit import int4
from orinkit.errors import ConfigError
from orinkit_export.levels import SHRINK, Levels, levels_of, narrow, search
from rounding_inputs import Float32, Float64, gauss

DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Any]] = {
    "gauss": lambda rng, shape: rng.standard_normal(shape),
    "student-t5": lambda rng, shape: rng.standard_t(5, shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
}


def squared_error(groups: Float32, scales: NDArray[np.float16]) -> Float64:
    """Of every group, by the rule q = clip(round(w/s), -8, 7) in float64."""
    wide, s = groups.astype(np.float64), scales.astype(np.float64)[:, None]
    return np.asarray(((np.clip(np.rint(wide / s), -8, 7) * s - wide) ** 2).sum(axis=1))


def search_scales(groups: Float32) -> NDArray[np.float16]:
    return search(groups).scales


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
    exact = np.tile(np.arange(-8, 8), 2)[None].astype(np.float32) * np.float32(-m / 8)
    scales = search_scales(exact)
    assert scales.tolist() == [-m / 8]
    q = int4.quantise(exact, scales[:, None])
    assert q[0].tolist() == list(range(16)) * 2
    assert exact[0, 0] == m


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


def zeros_error(groups: Float32, levels: Levels) -> Float64:
    """Of every group, by the rule q = clip(round(w/s) + z, 0, 15) in float64."""
    assert levels.zeros is not None
    wide, s, z = groups.astype(np.float64), levels.scales.astype(np.float64)[:, None], levels.zeros[:, None] + 0.0
    return np.asarray((((np.clip(np.rint(wide / s) + z, 0, 15) - z) * s - wide) ** 2).sum(axis=1))


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_zero_points_never_lose_to_the_plain_rule(name: str, size: int) -> None:
    """Group by group, against s = (max - min) / 15 and z = round(-min / s)."""
    groups = (DISTRIBUTIONS[name](np.random.default_rng(size), (8000, size)) * 0.02).astype(np.float32)
    least, most = groups.min(axis=1).astype(np.float64), groups.max(axis=1).astype(np.float64)
    scales = ((most - least) / 15).astype(np.float16)
    plain = Levels(scales, np.clip(np.rint(-least / scales), 0, 15).astype(np.uint8))
    found = zeros_error(groups, search(groups, has_zeros=True))
    assert np.mean(found <= zeros_error(groups, plain) * (1 + 1e-4)) > 0.98  # the middle may round the other way
    assert found.sum() < 0.95 * zeros_error(groups, plain).sum()


@pytest.mark.parametrize(("name", "searched"), [("gauss", 9.0), ("student-t5", 16.0), ("laplace", 15.4)])
def test_the_gain_of_zero_points_is_the_known_one(name: str, searched: float) -> None:
    """Relative error in thousandths for groups of 128, within 4 %."""
    groups = DISTRIBUTIONS[name](np.random.default_rng(1), (10000, 128)).astype(np.float32)
    power = (groups.astype(np.float64) ** 2).sum() / 1000
    assert zeros_error(groups, search(groups, has_zeros=True)).sum() / power == pytest.approx(searched, rel=0.04)


@pytest.mark.parametrize("zero", [0, 3, 8, 15])
def test_levels_that_are_there_are_found(zero: int) -> None:
    groups = np.tile(np.arange(16) - zero, 2)[None].astype(np.float32) * np.float32(0.25)
    found = search(groups, has_zeros=True)
    assert found.zeros is not None
    assert (found.scales.tolist(), found.zeros.tolist()) == ([0.25], [zero])


@pytest.mark.parametrize("factor", [1e-7, 1e-4, 2e5 / 8])
@pytest.mark.parametrize("shift", [-9.0, 0.0, 9.0])
def test_zero_points_of_small_large_and_one_sided_groups(factor: float, shift: float) -> None:
    groups = (np.clip(gauss(500, 32), -8, 8) + np.float32(shift)) * np.float32(factor)
    groups[0] = 0
    found = search(groups, has_zeros=True)
    assert np.isfinite(found.scales).all()
    assert (found.scales != 0).all()
    assert (zeros_error(groups, found) <= (groups.astype(np.float64) ** 2).sum(axis=1)).all()
    if shift and factor >= 1e-4:
        assert found.zeros is not None
        assert (found.zeros[1:] == (15 if shift < 0 else 0)).mean() > 0.9


def test_importance_moves_levels_to_columns_that_matter() -> None:
    weight, importance = gauss(300, 64), np.ones(64, np.float32)
    importance[::4] = 100
    for has_zeros in (False, True):
        plain, weighted = (levels_of(weight, 64, how, has_zeros) for how in (None, importance))
        assert plain.scales.shape == weighted.scales.shape == (300, 1)
        assert (plain.zeros is None, weighted.zeros is None) == (not has_zeros, not has_zeros)
        assert np.mean(plain.scales != weighted.scales) > 0.5


def test_scales_stay_what_they_are_in_float16_or_are_refused() -> None:
    tiny = np.float16(2.0**-24)
    found = narrow(np.array([1e-9, -1e-9, 0, 0.5], np.float32))
    assert found.tolist() == [tiny, -tiny, 0, 0.5]
    with pytest.raises(ConfigError, match="scales up to 65504, found 70000; choose a wider format"):
        narrow(np.array([1, 7e4], np.float32))
