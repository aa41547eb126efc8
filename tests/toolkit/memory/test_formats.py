# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from orinkit.memory.formats import Format, format_of, parts, shares_head
from toolkit.memory.models import recipe


@pytest.mark.parametrize(
    ("kind", "shape", "sizes"),
    [
        ("int4", (64, 256), (64 * 128, 64 * 2 * 2)),
        ("int8", (64, 256), (64 * 256, 64 * 2)),
        ("float16", (64, 256), (64 * 512,)),
        ("float32", (64,), (256,)),
    ],
)
def test_bytes_of_a_weight_and_its_scales(kind: Format, shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    assert parts(kind, shape, 128) == sizes


@pytest.mark.parametrize(
    ("head", "embedding", "tied", "expected"),
    [("int4", "int4", True, True), ("int4", "float16", True, False), ("int4", "int4", False, False)],
)
def test_a_tied_head_of_one_format_is_shared(head: str, embedding: str, tied: bool, expected: bool) -> None:
    assert shares_head(recipe(head=head, embedding=embedding), tied) == expected


def test_what_a_quantised_checkpoint_brings_is_int4_and_what_it_left_is_not() -> None:
    imported = recipe(method="import")
    assert (format_of(imported, "imported"), format_of(imported, "projection")) == ("int4", "float16")
