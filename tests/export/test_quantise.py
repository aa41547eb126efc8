# SPDX-License-Identifier: Apache-2.0
"""Formats by role, and what the quantiser stores."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orinkit import config
from orinkit.errors import ConfigError
from orinkit.memory.formats import Role, format_of
from orinkit.recipe import Recipe
from orinkit_export import int8, quantise
from orinkit_export.rounding import Rounder
from orinkit_export.store import DATA, Entry, TensorWriter, read_index
from orinkit_export.weights import Weight

Float32 = NDArray[np.float32]
ROLES: tuple[Role, ...] = ("embedding", "head", "projection", "gated_delta", "wide", "float32")


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


# What is stored


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
        rounded = int8.nearest(given) if kind == "int8" else Rounder(32)(given)
        suffix = "scale" if kind == "int8" else "scales"
        expected: dict[str, NDArray[Any]] = {"m.weight": rounded.packed, f"m.{suffix}": rounded.scales}
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)


def test_zero_points_are_stored_beside_the_scales(tmp_path: Path) -> None:
    given, how = gauss(10, 96) + np.float32(0.5), recipe(group_size=32, method="rtn", zeros=True)
    found = stored(tmp_path, weight(given, "projection", rows=3), how)
    assert tuple(found) == quantise.names_of(weight(given), how) == ("m.weight", "m.scales", "m.zeros")
    assert sum(array.nbytes for array in found.values()) == quantise.stored_bytes(weight(given), how)
    rounded = Rounder(32, has_zeros=True)(given)
    for array, expected in zip(found.values(), (rounded.packed, *rounded.beside), strict=True):
        assert np.array_equal(array, expected)


def test_formats_by_role() -> None:
    how = recipe(head="int8", embedding="float16", gated_delta="int4")
    assert [format_of(how, "m", role).kind for role in ROLES] == [
        *("float16", "int8", "int4", "int4"),
        *("float16", "float32"),
    ]
    assert format_of(recipe(gated_delta="float16"), "m", "gated_delta").kind == "float16"
    assert format_of(recipe(gated_delta="int8"), "m", "gated_delta").kind == "int8"


@pytest.mark.parametrize("activations", ["float16", "float32"])
def test_no_method_keeps_everything_wide(activations: str) -> None:
    how = recipe(activations, method="none", head="int4", embedding="int8")
    assert [format_of(how, "m", role).kind for role in ROLES] == [activations] * 5 + ["float32"]


@pytest.mark.parametrize(("activations", "embedding"), [("float16", "int8"), ("float32", "float16")])
def test_an_import_rounds_embedding_and_head_alone(activations: str, embedding: str) -> None:
    how = recipe(activations, method="import", head="int4", embedding=embedding, gated_delta="int8")
    assert [format_of(how, "m", role).kind for role in (*ROLES, "imported")] == [
        *(activations if embedding == "float16" else embedding, "int4", activations, activations, activations),
        *("float32", "int4"),
    ]


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
