# SPDX-License-Identifier: Apache-2.0
"""The quantiser against plain rules, and what it stores."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orinkit import config, int4
from orinkit.errors import ConfigError
from orinkit.recipe import Recipe
from orinkit_export import quantise
from orinkit_export.store import DATA, Entry, TensorWriter, read_index
from orinkit_export.weights import Role, Weight

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
ROLES: tuple[Role, ...] = ("embedding", "head", "projection", "gated_delta", "wide", "float32")

DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Any]] = {
    "gauss": lambda rng, shape: rng.standard_normal(shape),
    "student-t5": lambda rng, shape: rng.standard_t(5, shape),
    "laplace": lambda rng, shape: rng.laplace(size=shape),
}


def recipe(activations: str = "float16", **settings: Any) -> Recipe:
    shapes = {"capacity": 64, "chunk": 16}
    data = {"name": "x", "checkpoint": {"path": "x"}, "shapes": shapes, "quantise": settings}
    return config.parse(data | {"activations": activations}, Recipe, "recipe")


def weight(array: Float32, role: Role = "projection", name: str = "m.weight", rows: int = 0) -> Weight:
    """`rows`: in blocks of so many; 0 = in one."""

    def blocks() -> Iterator[Float32]:
        step = rows or len(array)
        yield from (array[start : start + step] for start in range(0, len(array), step))

    return Weight(name, role, array.shape, (), blocks)


def stored(folder: Path, given: Weight, how: Recipe) -> dict[str, NDArray[Any]]:
    """What `store` writes, read back from the bytes."""
    with TensorWriter(folder) as writer:
        quantise.store(writer, given, how)
    raw = (folder / DATA).read_bytes()

    def tensor(entry: Entry) -> NDArray[Any]:
        flat: NDArray[Any] = np.frombuffer(raw, entry.dtype, offset=entry.offset, count=-1)[: np.prod(entry.shape)]
        return flat.reshape(entry.shape)

    return {name: tensor(entry) for name, entry in read_index(folder).items()}


def gauss(*shape: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# The search for scales


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
    found = squared_error(groups, quantise.search_scales(groups))
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
    assert squared_error(groups, quantise.search_scales(groups)).sum() / power == pytest.approx(searched, rel=0.04)
    plain = (np.abs(extreme(groups)) / 7).astype(np.float16)
    assert squared_error(groups, plain).sum() / power == pytest.approx(absmax, rel=0.04)


def test_the_best_of_all_candidates() -> None:
    groups = gauss(200, 32)
    candidates = (extreme(groups)[:, None] * quantise.SHRINK / -8).astype(np.float16)
    best = np.min([squared_error(groups, column) for column in candidates.T], axis=0)
    assert squared_error(groups, quantise.search_scales(groups)) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("m", [-1.0, 1.0])
def test_a_group_of_exact_levels_loses_nothing(m: float) -> None:
    """-8 s to 7 s in units of the extreme element's own scale: p = 1 maps that element to -8."""
    levels = np.tile(np.arange(-8, 8), 2)[None].astype(np.float32) * np.float32(-m / 8)
    scales = quantise.search_scales(levels)
    assert scales.tolist() == [-m / 8]
    q = int4.quantise(levels, scales[:, None])
    assert q[0].tolist() == list(range(16)) * 2
    assert levels[0, 0] == m


@pytest.mark.parametrize("factor", [1e-7, 3e-6, 1e-4, 1.0, 2e5 / 8])
def test_small_and_large_groups(factor: float) -> None:
    """From scales that float16 cannot hold, through its subnormal ones, to its largest."""
    groups = np.clip(gauss(500, 32), -8, 8) * np.float32(factor)
    scales = quantise.search_scales(groups)
    assert np.isfinite(scales).all()
    assert (scales != 0).all()
    found, power = squared_error(groups, scales), (groups.astype(np.float64) ** 2).sum(axis=1)
    assert (found <= power).all()
    if factor >= 1e-4:
        assert found.sum() < 0.01 * power.sum()


def test_groups_of_zeros_and_a_single_outlier() -> None:
    groups = np.zeros((2, 128), np.float32)
    groups[1, 5] = -3.0
    scales = quantise.search_scales(groups)
    assert scales[0] == 1
    assert (squared_error(groups, scales) < 1e-5).all()


def test_the_search_leaves_its_groups_alone() -> None:
    groups = gauss(10, 32)
    before = groups.copy()
    quantise.search_scales(groups)
    assert np.array_equal(groups, before)


# What is stored


@pytest.mark.parametrize(("n", "k", "group_size"), [(5, 128, 128), (3, 192, 64), (4100, 96, 32)])
def test_int4(n: int, k: int, group_size: int) -> None:
    """Integers are chosen for the scale as stored, in float16; more rows than one thread takes at a time."""
    given = gauss(n, k) * np.float32(0.02)
    packed, scales = quantise.rtn_int4(given, group_size)
    assert [packed.dtype.name, scales.dtype.name] == ["int8", "float16"]
    assert np.array_equal(scales.reshape(-1), quantise.search_scales(given.reshape(-1, group_size)))
    assert packed.tobytes() == int4.pack(int4.quantise(given, scales)).tobytes()
    error = (int4.dequantise(packed, scales).astype(np.float64) - given).reshape(-1, group_size)
    expected = squared_error(given.reshape(-1, group_size), scales.reshape(-1))
    assert (error**2).sum(axis=1) == pytest.approx(expected, rel=1e-3)


def test_int8() -> None:
    given = gauss(40, 64) * np.float32(0.02)
    given[7] = 0
    values, scale = quantise.rtn_int8(given)
    assert [values.dtype.name, scale.dtype.name] == ["int8", "float16"]
    assert scale[7] == 1
    assert not values[7].any()
    wide = scale.astype(np.float64)[:, None]
    half_a_step = 0.5 + 127 * 2.0**-11  # a scale that float16 rounded down clips the largest value
    assert (np.abs(values * wide - given) <= wide * half_a_step).all()
    assert (np.abs(np.delete(values, 7, axis=0)).max(axis=1) >= 126).all()


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("kind", ["int4", "int8", "float16"])
def test_store(kind: str, rows: int, tmp_path: Path) -> None:
    """Blocks of rows give what one block gives; names and sizes are as foretold."""
    given, how = gauss(10, 64), recipe(group_size=32, embedding=kind)
    found = stored(tmp_path, weight(given, "embedding", rows=rows), how)
    assert tuple(found) == quantise.names_of(weight(given, "embedding"), how)
    assert sum(array.nbytes for array in found.values()) == quantise.stored_bytes(weight(given, "embedding"), how)
    if kind == "float16":
        assert np.array_equal(found["m.weight"], given.astype(np.float16))
    else:
        values, scales = quantise.rtn_int8(given) if kind == "int8" else quantise.rtn_int4(given, 32)
        expected: dict[str, NDArray[Any]] = {"m.weight": values, "m.scale" if kind == "int8" else "m.scales": scales}
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)


def test_formats_by_role() -> None:
    how = recipe(head="int8", embedding="float16", gated_delta="int4")
    assert [quantise.format_of(how, role) for role in ROLES] == [
        *("float16", "int8", "int4", "int4"),
        *("float16", "float32"),
    ]
    assert quantise.format_of(recipe(gated_delta="float16"), "gated_delta") == "float16"
    assert quantise.format_of(recipe(gated_delta="int8"), "gated_delta") == "int8"


@pytest.mark.parametrize("activations", ["float16", "float32"])
def test_no_method_keeps_everything_wide(activations: str) -> None:
    how = recipe(activations, method="none", head="int4", embedding="int8")
    assert [quantise.format_of(how, role) for role in ROLES] == [activations] * 5 + ["float32"]


@pytest.mark.parametrize(
    ("tied", "head", "embedding", "shared"),
    [(True, "int4", "int4", True), (True, "int4", "float16", False), (False, "int4", "int4", False)],
)
def test_a_tied_head_of_the_same_format_is_stored_once(tied: bool, head: str, embedding: str, shared: bool) -> None:
    how = recipe(head=head, embedding=embedding)
    weights = [weight(gauss(2, 128), role, role) for role in ROLES]
    names = [chosen.name for chosen in quantise.stored(weights, how, tied)]
    assert names == [role for role in ROLES if not (shared and role == "head")]


# What is refused


@pytest.mark.parametrize(
    ("settings", "role", "k", "message"),
    [
        ({"group_size": 128}, "projection", 192, "m.weight: .* group_size=128 weights, found 192; use group_size 64"),
        ({"group_size": 32}, "head", 40, "m.weight: .* found 40; keep this matrix in float16 or int8"),
        ({"gated_delta": "int8"}, "gated_delta", 40, "m.weight: .* multiple of 32 .* found 40; use float16"),
    ],
)
def test_shapes_that_do_not_fit(settings: dict[str, Any], role: Role, k: int, message: str, tmp_path: Path) -> None:
    given = weight(gauss(2, k), role)
    with pytest.raises(ConfigError, match=message):
        quantise.check_shape(given, recipe(**settings))
    with pytest.raises(ConfigError, match=message):
        stored(tmp_path, given, recipe(**settings))


@pytest.mark.parametrize(
    ("role", "kind", "largest"),
    [
        ("wide", "float16", 65504.0),
        ("embedding", "float16", 65504.0),
        ("embedding", "int8", 127 * 65504.0),
        ("embedding", "int4", 7 * 65504.0),
        ("projection", "int4", 7 * 65504.0),
    ],
)
def test_values_beyond_the_format(role: Role, kind: str, largest: float, tmp_path: Path) -> None:
    given = np.zeros((40, 32), np.float32)
    given[-1, 3] = -largest
    how = recipe(group_size=32, embedding=kind)
    found = stored(tmp_path / "fits", weight(given, role), how)
    assert all(np.isfinite(array).all() for array in found.values())
    given[-1, 3] *= 1.001
    message = re.escape(f"m.weight: expected magnitudes up to {largest:.6g} for {kind}, found {-given[-1, 3]:.6g};")
    with pytest.raises(ConfigError, match=message):
        stored(tmp_path / "beyond", weight(given, role, rows=7), how)


def test_float32_has_no_limit(tmp_path: Path) -> None:
    given = np.array([1e30, -1e-30], np.float32)
    assert np.array_equal(stored(tmp_path, weight(given, "float32"), recipe())["m.weight"], given)
