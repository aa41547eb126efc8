# SPDX-License-Identifier: Apache-2.0
"""The linear kernels against the reference, and the choice between them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linear_cases import arguments, linear_cases
from op_cases import Case, named, projection
from orinkit.engines.kernels import KernelLibrary
from orinkit.errors import EngineError
from orinkit.ops import OPS
from tolerances import RELATIVE_ERROR, relative_error

PLUGINS = Path(__file__).parents[2] / "plugins"

CHOICES = """
#include "kernels/linear/select.h"
using namespace orin;
constexpr Device orin_gpu{87, 16, 4 << 20, 163 << 10}, h200{90, 132, 60 << 20, 227 << 10};
constexpr bool is(LinearChoice found, LinearChoice::Kind kind, int columns) {
  return found.kind == kind && found.columns == columns;
}
using Choice = LinearChoice;
constexpr auto narrow = Choice::kNarrow, middle = Choice::kMiddle, wide = Choice::kWide, tiled = Choice::kTiled;
static_assert(is(choose_linear(1, 32, orin_gpu), narrow, 8), "a projection that fills no GPU");
static_assert(is(choose_linear(16, 96, h200), narrow, 8), "");
static_assert(is(choose_linear(1, 248320, orin_gpu), wide, 128), "a head");
static_assert(is(choose_linear(16, 248320, h200), wide, 128), "");
static_assert(is(choose_linear(1, 3969, orin_gpu), wide, 128), "32 blocks: two for each SM");
static_assert(is(choose_linear(1, 3968, orin_gpu), middle, 32), "31 blocks of the wide kernel");
static_assert(is(choose_linear(1, 481, orin_gpu), middle, 32), "16 blocks");
static_assert(is(choose_linear(1, 480, orin_gpu), narrow, 8), "");
static_assert(is(choose_linear(1, 7168, h200), middle, 32), "");
static_assert(is(choose_linear(17, 96, orin_gpu), narrow, 8), "3 tiles");
static_assert(is(choose_linear(64, 96, orin_gpu), tiled, 32), "6 tiles");
static_assert(is(choose_linear(64, 96, h200), narrow, 8), "6 tiles are little for 132 SMs");
static_assert(is(choose_linear(64, 1024, h200), tiled, 32), "64 tiles");
static_assert(is(choose_linear(65, 64, orin_gpu), tiled, 32), "too many tokens to stream");
static_assert(is(choose_linear(64, 248320, h200), tiled, 64), "a tile of 128 would be half empty");
static_assert(is(choose_linear(65, 248320, h200), tiled, 128), "");
static_assert(is(choose_linear(2048, 18432, h200), tiled, 128), "");
static_assert(is(choose_linear(2048, 1024, h200), tiled, 128), "128 tiles for 132 SMs");
static_assert(is(choose_linear(2048, 32, orin_gpu), tiled, 128), "16 tiles for 16 SMs");
static_assert(is(choose_linear(2048, 32, h200), tiled, 32), "64 tiles at most");
static_assert(is(choose_linear(1024, 32, orin_gpu), tiled, 64), "");
static_assert(choose_linear(16, 96, h200).tokens == 4, "48 blocks");
static_assert(choose_linear(16, 96, orin_gpu).tokens == 8, "48 blocks would be three for each SM");
static_assert(choose_linear(8, 248320, h200).tokens == 8, "");
static_assert(choose_linear(9, 248320, h200).tokens == 16, "");
static_assert(choose_linear(2048, 18432, h200).tokens == 128, "");
static_assert(is_of_dots(1, 32, 16, false) && is_of_dots(8, 256, 16, false), "the gates of a gated-delta layer");
static_assert(!is_of_dots(9, 32, 16, false) && !is_of_dots(1, 257, 16, false), "");
static_assert(!is_of_dots(1, 32, 8, false) && !is_of_dots(1, 32, 16, true), "");
int main() {}
"""


def test_the_choice_follows_its_table(tmp_path: Path) -> None:
    source = tmp_path / "choices.cpp"
    source.write_text(CHOICES, encoding="utf-8")
    command = ["g++", "-std=c++17", "-fsyntax-only", f"-I{PLUGINS}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("case", list(linear_cases()), ids=lambda case: case.name)
def test_products(case: Case, kernels: KernelLibrary, stream: Any) -> None:
    import gpu

    (expected,) = OPS[case.op_type].compute(case.inputs, case.attributes)
    arrays = {name: gpu.Array(array) for name, array in named(case).items()}
    y = gpu.Array(np.full_like(expected, np.nan))
    pointers = {name: array.pointer for name, array in arrays.items()}
    size = kernels.query("linear_workspace", kernels.arguments("linear", **arguments(case, pointers, y.pointer, None)))
    workspace = gpu.Array(np.full(size, 0xFF, np.uint8))
    struct = kernels.arguments("linear", **arguments(case, pointers, y.pointer, workspace.pointer))
    kernels.launch("linear", struct, stream.handle)
    stream.sync()
    direct = y.read()
    tolerance = RELATIVE_ERROR["float16"]
    assert relative_error(direct, expected) < tolerance
    y.write(np.full_like(expected, np.nan))
    workspace.write(np.full(size, 0xFF, np.uint8))
    stream.capture(lambda: kernels.launch("linear", struct, stream.handle))()
    stream.sync()
    assert np.array_equal(y.read(), direct)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"k": 100}, "k: expected a positive multiple of 8, found 100"),
        ({"bits": 4}, "bits: expected 16 or 8, found 4"),
        ({"bits": 8}, "scale: expected one with int8 weights only"),
        ({"n": 33, "swiglu": 1}, "n: expected a positive number, even for swiglu, found 33"),
        ({"outputs": 7}, "outputs: expected 5 as there are no rows, found 7"),
        ({"x": 8}, "aligned to 16 bytes"),
    ],
)
def test_a_wrong_argument_is_named(change: dict[str, int], sentence: str, kernels: KernelLibrary, stream: Any) -> None:
    case = projection(1, "wide")
    values = arguments(case, {"x": 16, "weight": 16}, 16, None) | change
    with pytest.raises(EngineError, match=sentence):
        kernels.launch("linear", kernels.arguments("linear", **values), stream.handle)
