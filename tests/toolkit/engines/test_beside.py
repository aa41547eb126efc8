# SPDX-License-Identifier: Apache-2.0
"""Which launches of a step of one token are left out, because the one in front of them computes the same."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from host_kernels import HostKernels
from orinkit.engines.beside import joined
from orinkit.engines.launches import Launch


class Library(HostKernels):
    """Takes a product beside another that has the same x."""

    def __init__(self) -> None:
        super().__init__(Path(__file__))
        self.asked = 0

    def query(self, function: str, arguments: Any) -> int:
        assert function == "int4_gemm_takes_beside"
        self.asked += 1
        small = self.arguments("linear", **dict.fromkeys(self.fields("linear"), 0))
        return int(type(small).from_address(arguments.beside).x == arguments.x)


@pytest.fixture
def library() -> Library:
    return Library()


def launch(library: Any, launcher: str, name: str, x: int) -> Launch:
    values = {field: None if kind == "P" else 0 for field, kind in library.fields(launcher).items()}
    arguments = library.arguments(launcher, **values | ({"x": x} if "x" in values else {}))
    return Launch(name, launcher, arguments, lambda _: {}, library.bound(launcher, arguments))


def test_a_small_product_behind_a_large_one_is_left_out(library: Any) -> None:
    large, small = launch(library, "int4_gemm", "qkvz", 4096), launch(library, "linear", "ba", 4096)
    (found,) = joined(library, [large, small])
    assert found.name == "qkvz and ba"
    assert found.arguments is large.arguments
    assert found.arguments.beside == ctypes.addressof(small.arguments)
    assert found.holds == (small.arguments,)


def test_what_the_library_does_not_take_stays(library: Any) -> None:
    large, small = launch(library, "int4_gemm", "qkvz", 4096), launch(library, "linear", "ba", 8192)
    assert list(joined(library, [large, small])) == [large, small]
    assert large.arguments.beside is None
    assert library.asked == 1


def test_only_a_small_one_directly_behind_a_large_one_is_asked_about(library: Any) -> None:
    order = ("linear", "int4_gemm", "int4_gemm", "gated_delta", "linear", "embedding")
    launches = [launch(library, launcher, f"{index}", 4096) for index, launcher in enumerate(order)]
    assert list(joined(library, launches)) == launches
    assert library.asked == 0
    assert list(joined(library, [])) == []


def test_each_pair_of_a_step_is_joined(library: Any) -> None:
    order = ("embedding", "int4_gemm", "linear", "gated_delta", "int4_gemm", "int4_gemm", "linear")
    launches = [launch(library, launcher, f"{index}", 4096) for index, launcher in enumerate(order)]
    assert [each.name for each in joined(library, launches)] == ["0", "1 and 2", "3", "4", "5 and 6"]
