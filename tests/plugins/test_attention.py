# SPDX-License-Identifier: Apache-2.0
"""The attention kernels against the reference: y, the rows they append, and every other byte of the cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attention_cases import MODELS, ODD, Array, Heads, Kernel, Row, Step, expected, step
from orinkit.engines.kernels import KernelLibrary
from orinkit.errors import EngineError
from tolerances import RELATIVE_ERROR, relative_error

pytestmark = pytest.mark.gpu
TOLERANCE = RELATIVE_ERROR["float16"]
WIDE = Heads(8, 2, 256, 64, gate=1)
SMALL = Heads(4, 2, 64, 32)


def written_rows(case: Step) -> Array:
    """Which rows [slots, capacity] of the cache the step writes."""
    _, _, _, capacity, _ = (shape := case.inputs["kv"].shape)
    rows = np.zeros((shape[0], capacity), bool)
    ends = case.inputs["cu_seqlens"]
    for begin, end, past, slot in zip(ends[:-1], ends[1:], case.inputs["past_lens"], case.inputs["slots"], strict=True):
        if slot >= 0:
            rows[slot, np.arange(past, past + end - begin) % capacity] = True
    return rows


def check(found: dict[str, Array], case: Step) -> None:
    """Raises AssertionError unless y and new rows agree and all other rows are bit for bit what they were."""
    wanted = expected(case)
    assert relative_error(found["y"], wanted["y"]) < TOLERANCE
    idle = ~wanted["y"].any(axis=1)
    assert not found["y"][idle].any(), "padding must be zero"
    rows = written_rows(case)[:, None, None].repeat(2, 1).repeat(case.attributes["kv_heads"], 2)
    for name in ("kv", "kv_scale"):
        if name in found:
            assert found[name][~rows].tobytes() == case.inputs[name][~rows].tobytes(), "foreign state"
    kv = found["kv"] * found["kv_scale"][..., None] if case.is_int8 else found["kv"]
    if rows.any():
        assert relative_error(kv[rows], wanted["kv"][rows]) < TOLERANCE


@pytest.mark.parametrize("int8", [False, True], ids=["float16", "int8"])
@pytest.mark.parametrize("name", [*MODELS, *ODD])
def test_decode(name: str, int8: bool, kernels: KernelLibrary, stream: Any) -> None:
    rows = [Row(1, 0, 3), Row(1, 511, 0), Row(1, 1300, 2), Row(1, 7, 4)]
    case = step((MODELS | ODD)[name], rows, 1400, int8=int8)
    check(Kernel(kernels, case, stream).run(), case)


@pytest.mark.parametrize("int8", [False, True], ids=["float16", "int8"])
@pytest.mark.parametrize("name", [*MODELS, *ODD])
def test_prefill(name: str, int8: bool, kernels: KernelLibrary, stream: Any) -> None:
    case = step((MODELS | ODD)[name], [Row(37, 0, 3), Row(1, 70, 0), Row(130, 61, 1), Row(0, 5, 4)], 200, int8=int8)
    check(Kernel(kernels, case, stream).run(), case)


@pytest.mark.parametrize("heads", [SMALL, WIDE], ids=["64", "256"])
def test_decode_at_tile_and_split_edges(heads: Heads, kernels: KernelLibrary, stream: Any) -> None:
    edges = [edge * near for near in (1, 2, 4, 8, 16, 32) for edge in (16,)]
    pasts = sorted({max(0, edge + off) for edge in edges for off in (-1, 0, 1)} | {0, 1, 2})
    case = step(heads, [Row(1, past, i) for i, past in enumerate(pasts)], 600)
    check(Kernel(kernels, case, stream).run(), case)
    for past in (63, 64, 65, 127, 128, 129, 511, 512):  # alone, so that the grid has many splits
        case = step(heads, [Row(1, past, 1)], 600)
        check(Kernel(kernels, case, stream).run(), case)


@pytest.mark.parametrize("heads", [SMALL, WIDE, Heads(16, 1, 64, 64), Heads(3, 3, 96, 96)], ids=str)
def test_decode_of_several_tokens(heads: Heads, kernels: KernelLibrary, stream: Any) -> None:
    case = step(heads, [Row(t, 17 * t - 9, t) for t in range(1, 17)], 300)
    check(Kernel(kernels, case, stream).run(), case)


@pytest.mark.parametrize("int8", [False, True], ids=["float16", "int8"])
@pytest.mark.parametrize("heads", [SMALL, WIDE, Heads(3, 3, 96, 96), Heads(5, 1, 128, 0, gate=1)], ids=str)
def test_steps_in_several_decode_launches(heads: Heads, int8: bool, kernels: KernelLibrary, stream: Any) -> None:
    """To a launch the tokens of those before it are past: sequences that end in any of them, alone and together."""
    rows = [Row(33, 0, 3), Row(1, 1300, 0), Row(20, 7, -1), Row(64, 1290, 1), Row(0, 5, 4), Row(16, 500, 2)]
    alone = [[Row(tokens, past, 1)] for tokens in (17, 31, 32, 33, 48, 49, 64) for past in (3, 1291)]
    for each in (rows, *alone):
        case = step(heads, each, 1400, int8=int8, tail=5)
        kernel = Kernel(kernels, case, stream, max_length=1400)
        assert kernel.counters.shape[0] > 0, "prefill has no counters"
        check(kernel.run(), case)


@pytest.mark.parametrize("tokens", [20, 64], ids=str)
def test_several_decode_launches_over_a_ring(tokens: int, kernels: KernelLibrary, stream: Any) -> None:
    window, capacity = 1300, 1300 + tokens + 7
    for past in (0, window - tokens, capacity - tokens - 1, capacity - tokens + 1, capacity, 2 * capacity + 3):
        case = step(SMALL, [Row(tokens, past, 0), Row(17, 11, 1)], capacity, window=window)
        kernel = Kernel(kernels, case, stream, max_length=max(case.max_length, 1400))
        assert kernel.counters.shape[0] > 0, "prefill has no counters"
        check(kernel.run(), case)


def test_several_decode_launches_leave_padding_alone(kernels: KernelLibrary, stream: Any) -> None:
    """A sequence that is longer than it may be counts as padding in every launch."""
    case = step(SMALL, [Row(40, 30, 0), Row(20, 50, 1), Row(33, 1301, 2)], 1400)
    found = Kernel(kernels, case, stream, max_step=33, max_length=1330).run()
    case.inputs["slots"][[0, 2]] = -1
    check(found, case)


@pytest.mark.parametrize("heads", [SMALL, WIDE, Heads(5, 5, 128, 128)], ids=str)
def test_prefill_at_tile_edges(heads: Heads, kernels: KernelLibrary, stream: Any) -> None:
    tokens = [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]
    case = step(heads, [Row(t, (7 * t) % 130, i) for i, t in enumerate(tokens)], 300)
    check(Kernel(kernels, case, stream).run(), case)
    for past in (0, 31, 32, 33, 63, 64, 65):
        case = step(heads, [Row(40, past, 0)], 300)
        check(Kernel(kernels, case, stream).run(), case)


@pytest.mark.parametrize("int8", [False, True], ids=["float16", "int8"])
@pytest.mark.parametrize("tokens", [1, 5, 40], ids=str)
@pytest.mark.parametrize("heads", [SMALL, WIDE], ids=["64", "256"])
def test_window_rings(heads: Heads, tokens: int, int8: bool, kernels: KernelLibrary, stream: Any) -> None:
    window, capacity = 90, 90 + tokens + 7
    edges = (0, 1, window - tokens, window, capacity - tokens, capacity, 2 * capacity, 5 * capacity + 3)
    pasts = sorted({max(0, edge + off) for edge in edges for off in (-1, 0, 1)})
    case = step(heads, [Row(tokens, past, i) for i, past in enumerate(pasts)], capacity, window=window, int8=int8)
    check(Kernel(kernels, case, stream).run(), case)


@pytest.mark.parametrize("tokens", [1, 16, 20], ids=str)
def test_positions_beyond_the_capacity(tokens: int, kernels: KernelLibrary, stream: Any) -> None:
    rows = [Row(tokens, past, i) for i, past in enumerate((0, 5, 19, 20, 21, 64, 300))]
    case = step(SMALL, rows, 20)
    check(Kernel(kernels, case, stream).run(), case)


@pytest.mark.parametrize("tokens", [2, 90], ids=str)
def test_softcap(tokens: int, kernels: KernelLibrary, stream: Any) -> None:
    case = step(Heads(4, 2, 128, 128), [Row(tokens, 0, 0), Row(tokens, 77, 1)], 200, softcap=2.5)
    check(Kernel(kernels, case, stream).run(), case)


@pytest.mark.parametrize("tokens", [1, 6, 33], ids=str)
@pytest.mark.parametrize("heads", [SMALL, WIDE], ids=["64", "256"])
def test_padding_reads_and_writes_nothing(heads: Heads, tokens: int, kernels: KernelLibrary, stream: Any) -> None:
    rows = [Row(2, 9, -1), Row(tokens, 40, 2), Row(0, 3, 1), Row(1, 1 << 30, -1), Row(tokens, 0, 0), Row(0, 0, -1)]
    case = step(heads, rows, 100, tail=5)
    check(Kernel(kernels, case, stream).run(), case)


def test_sequences_beyond_the_limits_count_as_padding(kernels: KernelLibrary, stream: Any) -> None:
    rows = [Row(3, 40, 0), Row(1, 50, 1), Row(2, 41, 2)]
    for max_step, max_length, left in ((2, 51, [1, 2]), (3, 43, [0, 2]), (30, 43, [0, 2])):
        case = step(SMALL, rows, 100)
        found = Kernel(kernels, case, stream, max_step=max_step, max_length=max_length).run()
        case.inputs["slots"][:] = [row.slot if i in left else -1 for i, row in enumerate(rows)]
        check(found, case)


@pytest.mark.parametrize("int8", [False, True], ids=["float16", "int8"])
def test_one_long_sequence_is_split(int8: bool, kernels: KernelLibrary, stream: Any) -> None:
    for past in (8191, 20000):
        case = step(Heads(8, 2, 256, 64, gate=1), [Row(1, past, 0)], past + 1, int8=int8)
        check(Kernel(kernels, case, stream).run(), case)


@pytest.mark.parametrize("heads", [Heads(2, 1, 256, 64, gate=1), Heads(4, 1, 128, 128)], ids=["256", "128"])
def test_2048_tokens(heads: Heads, kernels: KernelLibrary, stream: Any) -> None:
    case = step(heads, [Row(2048, 0, 0)], 2048)
    check(Kernel(kernels, case, stream).run(), case)
    case = step(heads, [Row(512, 1536, 0)], 2048)
    check(Kernel(kernels, case, stream).run(), case)


@pytest.mark.parametrize("max_step", [1, 32, 64], ids=["decode", "several launches", "prefill"])
def test_one_capture_serves_every_length(max_step: int, kernels: KernelLibrary, stream: Any) -> None:
    first = step(WIDE, [Row(max_step, 0, 1), Row(max_step, 900, 2)], 1000)
    kernel = Kernel(kernels, first, stream)
    kernel.poison()
    replay = stream.capture(kernel.enqueue)
    for pasts in ([0, 900], [0, 0], [3, 64], [899, 15], [511, 513]):
        case = step(WIDE, [Row(max_step, past, slot) for slot, past in zip((1, 2), pasts, strict=True)], 1000)
        for name in ("qkv", "past_lens", "q_norm", "k_norm"):
            kernel.arrays[name].write(case.inputs[name])
        kernel.case = case
        direct = kernel.run()
        check(direct, case)
        kernel.poison()
        replay()
        replayed = kernel.read()
        assert all(replayed[name].tobytes() == direct[name].tobytes() for name in direct)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"head_dim": 80}, "head_dim: expected 64, 96, 128 or 256, found 80"),
        ({"heads": 5}, "heads: expected a multiple of kv_heads=2, found 5"),
        ({"rotary_dim": 24}, "rotary_dim: expected a multiple of 16 up to head_dim=64, found 24"),
        ({"scale": 0.0}, "expected scale > 0"),
        ({"capacity": 7, "max_step": 8}, "capacity: expected max_step=8 or more, found 7"),
    ],
)
def test_refusals(wrong: dict[str, Any], sentence: str, kernels: KernelLibrary, stream: Any) -> None:
    kernel = Kernel(kernels, step(SMALL, [Row(1, 0, 0)], 20), stream)
    kernel.values |= wrong
    with pytest.raises(EngineError, match=sentence):
        kernel.enqueue()
