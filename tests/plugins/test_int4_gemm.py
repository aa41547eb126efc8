# SPDX-License-Identifier: Apache-2.0
"""The INT4 GEMM kernels against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from int4_gemm_cases import MODEL_SHAPES, OnDevice, expected, gemm
from op_cases import Case, named
from orinkit import int4
from orinkit.engines.kernels import KernelLibrary
from orinkit.errors import EngineError
from orinkit.ops import OPS
from tolerances import RELATIVE_ERROR, relative_error

pytestmark = pytest.mark.gpu
FEW, TILES = 1, (2, 3, 4, 5, 6)
SHAPES = sorted({shape for shapes in MODEL_SHAPES.values() for shape in shapes})


def check(case: Case, kernels: KernelLibrary, stream: Any, **wishes: int) -> NDArray[Any]:
    """Within tolerance, also row by row where rows are long enough for a norm to mean something; a second run and a
    replay are equal bit for bit; semaphores are left at zero.
    """
    wanted = expected(case)
    node = OnDevice(case, kernels, wanted, **wishes)
    found = node.result(stream)
    assert relative_error(found, wanted) < RELATIVE_ERROR["float16"]
    for row, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert len(b) < 64 or relative_error(a, b) < RELATIVE_ERROR["float16"], f"row {row} of {len(wanted)}"
    assert np.array_equal(node.result(stream), found)
    assert np.array_equal(node.replayed(stream), found)
    assert not node.semaphores.read().any()
    return found


@pytest.mark.parametrize("options", ["", "n", "z", "b", "r", "s", "f", "znbr", "nsr", "znbsrf", "nf"])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("tokens", [1, 7, 16, 17, 70])
def test_options(tokens: int, group: int, options: str, kernels: KernelLibrary, stream: Any) -> None:
    check(gemm(tokens, 272, 512, group, options), kernels, stream)


@pytest.mark.parametrize("tokens", [1, 2, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 33, 66, 127, 130, 257])
def test_token_and_row_edges(tokens: int, n: int, kernels: KernelLibrary, stream: Any) -> None:
    check(gemm(tokens, n, 384, 64, "znbr"), kernels, stream)


@pytest.mark.parametrize(
    ("k", "group"), [(32, 32), (64, 64), (96, 32), (128, 128), (160, 32), (192, 64), (256, 64), (1056, 32), (1088, 64)]
)
@pytest.mark.parametrize("tokens", [1, 11, 40])
def test_column_edges(tokens: int, k: int, group: int, kernels: KernelLibrary, stream: Any) -> None:
    for options in ("z", "n"):
        check(gemm(tokens, 75, k, group, options), kernels, stream)


@pytest.mark.parametrize(("tokens", "k"), [(1, 4224), (3, 3200), (5, 1920), (7, 1408)])
def test_more_tokens_than_threads_load_at_once(tokens: int, k: int, kernels: KernelLibrary, stream: Any) -> None:
    """Of which the last fill half a warp: an odd number of chunks, behind a norm."""
    check(gemm(tokens, 272, k, 128, "n"), kernels, stream)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("tokens", [1, 31, 129, 300])
@pytest.mark.parametrize("splits", [1, 3, 5])
def test_every_tile_and_split(tile: int, tokens: int, splits: int, kernels: KernelLibrary, stream: Any) -> None:
    check(gemm(tokens, 300, 1280, 128, "nbr"), kernels, stream, tile=tile, splits=splits)
    if tile < max(TILES):
        check(gemm(tokens, 299, 1280, 32, "zn"), kernels, stream, tile=tile, splits=splits)


@pytest.mark.parametrize("warps", [(1, 1), (1, 9), (16, 1), (3, 5), (2, 8), (5, 3)])
@pytest.mark.parametrize("round_tiles", [0, 1, 2])
@pytest.mark.parametrize("blocks", [1, 7])
@pytest.mark.parametrize("tokens", [1, 8, 9, 16])
def test_every_arrangement_of_warps(
    tokens: int, blocks: int, round_tiles: int, warps: tuple[int, int], kernels: KernelLibrary, stream: Any
) -> None:
    """Short stripes and chunks or none, a warp for each chunk or several chunks of a warp."""
    wishes = {"tile": FEW, "warps_n": warps[0], "warps_k": warps[1], "stripes": round_tiles, "blocks": blocks}
    for n, k, group, options in (
        (299, 1184, 32, "zr"),
        (296, 1152, 64, "r"),
        (303, 1152, 128, "nbr"),
        (304, 1152, 128, "nr"),
        (304, 2560, 64, "zn"),
        (304, 2176, 128, "n"),
    ):
        check(gemm(tokens, n, k, group, options), kernels, stream, **wishes)


@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_shapes_of_models(n: int, k: int, kernels: KernelLibrary, stream: Any) -> None:
    for tokens in (1, 4, 16, 64, 200):
        check(gemm(tokens, n, k, 128, "nr" if n > k else "r"), kernels, stream)


@pytest.mark.parametrize(("n", "k"), [(7168, 1024), (1024, 3584), (2560, 9216)])
def test_a_chunk_of_a_prompt(n: int, k: int, kernels: KernelLibrary, stream: Any) -> None:
    check(gemm(2048, n, k, 128, "ns"), kernels, stream)


@pytest.mark.parametrize("rows", [(3,), (-1,), (0, -1, 5), (5,) * 16, (-1,) * 40, tuple(range(5, -1, -1)) * 20])
@pytest.mark.parametrize("options", ["f", "nf", "nbr", "nfc", "nbrc"])
def test_picked_rows(rows: tuple[int, ...], options: str, kernels: KernelLibrary, stream: Any) -> None:
    found = check(gemm(6, 1000, 512, 128, options, rows), kernels, stream)
    assert not found[np.array(rows) < 0].any()


@pytest.mark.parametrize("options", ["nf", "nfc"])
def test_rows_that_are_skipped_may_hold_anything(options: str, kernels: KernelLibrary, stream: Any) -> None:
    for rows in ((-1, 2, -1), (-1, 2, -1) * 10):
        case = gemm(3, 500, 256, 64, options, rows)
        wanted = expected(case)
        x = case.inputs[0]
        assert x is not None
        x[:2] = np.nan
        found = OnDevice(case, kernels, wanted).result(stream)
        assert relative_error(found, wanted) < RELATIVE_ERROR["float16"]


@pytest.mark.parametrize("options", ["c", "nc", "znbrc", "nscf"])
@pytest.mark.parametrize("tokens", [1, 2, 8, 9, 16, 17, 70])
def test_an_order_of_columns(tokens: int, options: str, kernels: KernelLibrary, stream: Any) -> None:
    for n, k, group in ((272, 4096, 128), (270, 1056, 32)):
        check(gemm(tokens, n, k, group, options), kernels, stream)


@pytest.mark.parametrize("tokens", [1, 16, 40])
def test_columns_are_moved_and_nothing_else(tokens: int, kernels: KernelLibrary, stream: Any) -> None:
    case = gemm(tokens, 300, 1024, 64, "zbrc")
    x, *others, columns = case.inputs
    assert x is not None
    assert columns is not None
    moved = Case(case.name, case.op_type, (np.ascontiguousarray(x[:, columns]), *others, None), case.attributes)
    gathered, plain = (OnDevice(one, kernels, expected(case)).result(stream) for one in (case, moved))
    assert np.array_equal(gathered, plain)


@pytest.mark.parametrize("tokens", [3, 16, 40])
def test_a_token_that_is_not_finite_stays_alone(tokens: int, kernels: KernelLibrary, stream: Any) -> None:
    case = gemm(tokens, 200, 512, 128, "n")
    clean = OnDevice(case, kernels, expected(case)).result(stream)
    x = case.inputs[0]
    assert x is not None
    x[1] = np.inf
    found = OnDevice(case, kernels, clean).result(stream)
    others = np.arange(tokens) != 1
    assert np.array_equal(found[others], clean[others])


@pytest.mark.parametrize(("few", "more"), [(2, 8), (9, 16)])
def test_a_token_does_not_depend_on_its_batch(few: int, more: int, kernels: KernelLibrary, stream: Any) -> None:
    """Within a bucket of token counts that share a kernel and an arrangement."""
    case = gemm(more, 7168, 1024, 128, "n")
    x = case.inputs[0]
    assert x is not None
    fewer = Case(case.name, case.op_type, (x[:few], *case.inputs[1:]), case.attributes)
    all_rows = OnDevice(case, kernels, expected(case)).result(stream)
    assert np.array_equal(OnDevice(fewer, kernels, all_rows[:few]).result(stream), all_rows[:few])


@pytest.mark.parametrize(
    ("n", "k", "rows"), [(8192, 1024, 32), (12288, 2560, 64), (8192, 4096, 64), (272, 384, 1), (4096, 256, 512)]
)
@pytest.mark.parametrize(("group", "options"), [(128, "n"), (64, "zn"), (32, "nsb"), (128, "znf")])
def test_a_wide_product_beside(
    n: int, k: int, rows: int, group: int, options: str, kernels: KernelLibrary, stream: Any
) -> None:
    """It is what it would be alone, and the product that it is beside is the same bit for bit."""
    case = gemm(1, n, k, group, options)
    x, norm = named(case)["x"], named(case)["norm"]
    wide = (np.random.default_rng(n + rows).standard_normal((rows, k)) / 32).astype(np.float16)
    alone = OnDevice(case, kernels, expected(case)).result(stream)
    both = OnDevice(case, kernels, alone)
    both.put_beside(wide)
    assert both.takes_beside
    assert np.array_equal(both.result(stream), alone)
    inputs = (x, wide, None, norm, None, None, None)
    attributes = {"n": rows, "k": k, "activation": "none", "norm_eps": 1e-6, "float32_output": 0}
    (wanted,) = OPS["OrinLinear"].compute(inputs, attributes)
    found = both.beside_y.read()
    assert relative_error(found, wanted) < RELATIVE_ERROR["float16"]
    both.beside_y.write(np.full_like(found, np.nan))
    assert np.array_equal(both.replayed(stream), alone)
    assert np.array_equal(both.beside_y.read(), found)


@pytest.mark.parametrize(
    ("tokens", "n", "k", "rows", "options"),
    [(2, 512, 256, 8, "n"), (1, 512, 8192, 8, "n"), (1, 8, 256, 5, "n"), (1, 514, 256, 2, "n"), (1, 512, 256, 8, "nr")],
)
def test_what_cannot_be_beside_is_refused(
    tokens: int, n: int, k: int, rows: int, options: str, kernels: KernelLibrary, stream: Any
) -> None:
    case = gemm(tokens, n, k, 128, options)
    both = OnDevice(case, kernels, expected(case))
    both.put_beside(np.zeros((rows, k), np.float16))
    assert not both.takes_beside
    with pytest.raises(EngineError, match="takes_beside"):
        both.launch(stream)


@pytest.mark.parametrize(
    ("n", "k", "group"), [(8, 128, 128), (13, 256, 32), (9, 192, 64), (7, 96, 32), (1000, 1056, 32)]
)
@pytest.mark.parametrize("has_zeros", [False, True])
def test_layout_equals_int4_py(
    n: int, k: int, group: int, has_zeros: bool, kernels: KernelLibrary, stream: Any
) -> None:
    import gpu

    case = gemm(1, n, k, group, "z")
    _, weight, scales, zeros, *_ = case.inputs
    assert weight is not None
    assert scales is not None
    canonical = (weight, scales, zeros if has_zeros else None)
    source = [None if array is None else gpu.Array(array) for array in canonical]
    out = [None if array is None else gpu.Array(np.full_like(array, -1)) for array in canonical]
    names = ("weight", "scales", "zeros", "weight_out", "scales_out", "zeros_out")
    pointers = {name: None if a is None else a.pointer for name, a in zip(names, source + out, strict=True)}
    arguments = kernels.arguments("int4_layout", **pointers, n=n, k=k, group_size=group)
    kernels.launch("int4_layout", arguments, stream.handle)
    stream.sync()
    for found, wanted in zip(out, int4.to_kernel_layout(*canonical), strict=True):
        assert (found is None) == (wanted is None)
        if found is not None and wanted is not None:
            assert found.read().tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"group_size": 48}, "expected 32, 64 or 128, found 48"),
        ({"k": 200}, "expected a multiple of group_size 64, found 200"),
        ({"n": 0}, "expected a positive number of rows, found 0"),
        ({"n": 65, "swiglu": 1}, "expected pairs of gate and up rows"),
        ({"tile": 9}, "expected 0..6, found 9"),
        ({"tokens": 17, "tile": FEW}, "at most 16 tokens"),
        ({"tile": 2, "splits": 2, "semaphores": None}, "expected room for"),
        ({"tile": 2, "splits": 2, "workspace": None}, "workspace: expected"),
        ({"columns": 256, "workspace": None}, "workspace: expected 1536 bytes"),
    ],
)
def test_wrong_arguments(wrong: dict[str, int | None], sentence: str, kernels: KernelLibrary, stream: Any) -> None:
    case = gemm(3, 64, 256, 64)
    node = OnDevice(case, kernels, expected(case))
    for name, value in wrong.items():
        setattr(node._arguments, name, value)
    with pytest.raises(EngineError, match=sentence):
        node.launch(stream)


def test_no_tokens_is_no_launch(kernels: KernelLibrary, stream: Any) -> None:
    case = gemm(1, 64, 128)
    node = OnDevice(case, kernels, expected(case))
    node._arguments.tokens = 0
    assert np.isnan(node.result(stream)).all()


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_a_product_behind_a_product_reads_what_that_one_wrote(tokens: int, kernels: KernelLibrary, stream: Any) -> None:
    cases = [gemm(tokens, 2560, 9216), gemm(tokens, 18432, 2560, options="ns"), gemm(tokens, 2560, 9216, options="r")]
    chain = [OnDevice(case, kernels, expected(case)) for case in cases]
    alone = []
    for before, launch in zip([None, *chain], chain, strict=False):
        if before:
            launch.read_from(before)
        alone.append(launch.result(stream))

    def enqueue() -> None:
        for launch in chain:
            launch.launch(stream)

    replay = stream.capture(enqueue)
    for work in (enqueue, *[replay] * 20):
        for launch in chain:
            launch.poison()
        work()
        stream.sync()
        for launch, wanted in zip(chain, alone, strict=True):
            assert np.array_equal(launch.y.read(), wanted)
