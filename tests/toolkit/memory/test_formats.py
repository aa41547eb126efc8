# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest

from orinkit.memory.formats import Format, Role, candidates, format_of, is_undecided, parts_of, shares_head
from orinkit.recipe import Recipe
from toolkit.memory.models import recipe


@pytest.mark.parametrize(
    ("text", "shape", "sizes"),
    [
        ("int4-g32", (64, 256), (64 * 128, 64 * 8 * 2)),
        ("int4-g128", (64, 256), (64 * 128, 64 * 2 * 2)),
        ("int8", (64, 256), (64 * 256, 64 * 2)),
        ("float16", (64, 256), (64 * 512,)),
        ("float32", (64,), (256,)),
    ],
)
def test_bytes_of_a_weight_and_its_scales(text: str, shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    chosen = Format.of(text)
    assert (chosen.parts(shape), str(chosen)) == (sizes, text)


def test_zero_points_are_half_a_byte_for_each_group_of_a_product() -> None:
    how = recipe(zeros=True, head="int4", embedding="int4", gated_delta="int8", group_size=128)
    found = [format_of(how, "m", role).has_zeros for role in ("head", "projection", "gated_delta", "embedding", "wide")]
    assert found == [True, True, False, False, False]
    chosen = format_of(how, "m", "projection")
    assert chosen.parts((10, 384)) == (10 * 192, 10 * 3 * 2, 10 * 2)
    assert chosen.suffixes == ("scales", "zeros")
    assert shares_head(how, tied=True)


@pytest.mark.parametrize(
    ("head", "embedding", "tied", "expected"),
    [("int4", "int4", True, True), ("int4", "float16", True, False), ("int4", "int4", False, False)],
)
def test_a_tied_head_of_one_format_is_shared(head: str, embedding: str, tied: bool, expected: bool) -> None:
    assert shares_head(recipe(head=head, embedding=embedding), tied) == expected


def test_what_is_left_to_a_measurement() -> None:
    roles: tuple[Role, ...] = ("head", "projection", "gated_delta", "embedding", "wide", "imported", "float32")

    def undecided(how: Recipe) -> list[Role]:
        return [role for role in roles if is_undecided(how, "m.weight", role)]

    assert undecided(recipe()) == []
    assert undecided(recipe(head="auto")) == ["head"]
    assert undecided(recipe(head="auto", method="import")) == ["head"]
    assert undecided(recipe(head="auto", method="none")) == []
    assert undecided(recipe(bits=4.5)) == ["projection", "gated_delta"]
    assert undecided(recipe(bits=4.5, head="auto", gated_delta="int8")) == ["head", "projection"]
    assert undecided(recipe(bits=4.5, head="auto").with_formats({"m": "int8"})) == []


def test_what_is_undecided_shares_nothing_and_counts_as_its_part_of_the_budget() -> None:
    bound, budget = recipe(head="auto", embedding="int8"), recipe(head="auto", embedding="int8", bits=4.5)
    assert not shares_head(bound, tied=True)
    assert shares_head(bound.with_formats({"head": "int8"}), tied=True)
    assert parts_of(bound, "head.weight", "head", (10, 64)) == Format("int8").parts((10, 64))
    assert parts_of(budget, "head.weight", "head", (10, 64)) == (10 * 64 * 4.5 / 8,)
    assert parts_of(budget, "layers.0.o.weight", "projection", (10, 64)) == (10 * 64 * 4.5 / 8,)


@pytest.mark.parametrize(
    ("settings", "columns", "names"),
    [
        ({"head": "auto", "group_size": 64}, 256, ["int4-g64", "int8"]),
        ({"head": "auto", "bits": 4.5}, 256, ["int4-g128", "int4-g64", "int4-g32", "int8"]),
        ({"head": "auto", "bits": 4.5, "group_size": 64}, 192, ["int4-g64", "int4-g32", "int8"]),
    ],
)
def test_what_a_measurement_chooses_from(settings: dict[str, Any], columns: int, names: list[str]) -> None:
    for zeros in (False, True):
        found = candidates(recipe(zeros=zeros, **settings), "head", (8, columns))
        assert [str(chosen) for chosen in found] == names
        assert [chosen.has_zeros for chosen in found] == [zeros] * (len(names) - 1) + [False]


def test_what_a_quantised_checkpoint_brings_is_int4_and_what_it_left_is_not() -> None:
    imported = recipe(method="import")
    kinds = [format_of(imported, "layers.0.qkv.weight", role).kind for role in ("imported", "projection")]
    assert kinds == ["int4", "float16"]


def test_a_format_that_is_stated_for_a_matrix_goes_before_that_of_its_role() -> None:
    how = recipe(formats={"layers.1.down": "int8", "layers.1.o": "int4-g32", "head": "float16"}, group_size=64)
    names = ("layers.0.down", "layers.1.down", "layers.1.o")
    found = [str(format_of(how, f"{name}.weight", "projection")) for name in names]
    assert found == ["int4-g64", "int8", "int4-g32"]
    assert str(format_of(how, "head.weight", "head")) == "float16"
    assert str(format_of(how, "layers.1.down", "wide")) == "float16"
    assert str(format_of(recipe(method="none"), "layers.1.down", "projection")) == "float16"
