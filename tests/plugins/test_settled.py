# SPDX-License-Identifier: Apache-2.0
"""Kernels that start early and read settled states before they wait: many steps in a row, each of which changes what
the next one reads at the same addresses, give bit for bit what kernels give that wait first.

What a multiprocessor has read in one step must not come from its L1 cache in the next. No document promises that of a
kernel that starts early, so it is seen here. Before SM90 none starts early: there these tests say nothing of that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attention_cases as attention
import gated_delta_cases as gated_delta
from int4_gemm_cases import OnDevice, gemm
from int4_gemm_cases import expected as product_of
from orinkit.engines.kernels import KernelLibrary

pytestmark = pytest.mark.gpu
STEPS, REPLAYS = 24, 5


def products(tokens: int, width: int, kernels: KernelLibrary) -> list[OnDevice]:
    """Two with different results, to be taken in turn."""
    made = [gemm(tokens, width, 1024, options="n", seed=seed) for seed in range(2)]
    return [OnDevice(each, kernels, product_of(each)) for each in made]


GATED_DELTA = {
    "split": (gated_delta.QWEN_SMALL, 1),
    "split, shared keys": (gated_delta.QWEN_MIDDLE, 1),
    "whole": (gated_delta.QWEN_SMALL, 3),
    "whole, shared keys": (gated_delta.QWEN_LARGE, 1),
}
"""Heads and sequences: a head over several blocks of a large GPU, or too many heads for that."""


@pytest.mark.parametrize(("heads", "sequences"), GATED_DELTA.values(), ids=GATED_DELTA)
@pytest.mark.parametrize("tokens", [1, 8])
def test_gated_delta(
    tokens: int, heads: gated_delta.Heads, sequences: int, kernels: KernelLibrary, stream: Any
) -> None:
    case = gated_delta.step(tokens, heads, [gated_delta.Row(tokens, 5, slot) for slot in range(sequences)])
    launch = gated_delta.Launch(case, kernels, stream)
    given = products(tokens * sequences, launch.host["qkvz"].shape[1], kernels)

    def steps(settled: int) -> Callable[[], None]:
        launches = [launch.with_arguments(qkvz=product.y.pointer, settled=settled) for product in given]

        def enqueue() -> None:
            for i in range(STEPS):
                given[i % 2].launch(stream)
                launches[i % 2]()

        return enqueue

    steps(settled=0)()
    wanted = launch.read()
    settled = steps(settled=1)
    for work in (settled, *[stream.capture(settled)] * REPLAYS):
        launch.reset()
        work()
        for found, one in zip(launch.read(), wanted, strict=True):
            assert found.tobytes() == one.tobytes()


@pytest.mark.parametrize("int8", [False, True], ids=["float16", "int8"])
@pytest.mark.parametrize(("tokens", "past"), [(1, 3), (1, 700), (8, 700), (40, 300)])
def test_attention(tokens: int, past: int, int8: bool, kernels: KernelLibrary, stream: Any) -> None:
    import gpu

    heads, grown = attention.MODELS["Qwen3.5-0.8B and 2B"], STEPS * tokens
    case = attention.step(heads, [attention.Row(tokens, past + grown, 1)], 1400, int8=int8)
    launch = attention.Kernel(kernels, case, stream)
    given = products(tokens, case.inputs["qkv"].shape[1], kernels)
    lengths = gpu.Array(past + np.arange(0, grown, tokens, dtype=np.int32))
    ys = gpu.Array(np.zeros((STEPS, *launch.arrays["y"].shape), np.float16))

    def steps(settled: int) -> Callable[[], None]:
        launch.values["settled"] = settled

        def enqueue() -> None:
            for i in range(STEPS):
                launch.values["qkv"] = given[i % 2].y.pointer
                launch.values["y"] = ys.pointer + i * launch.arrays["y"].nbytes
                stream.copy(launch.arrays["past_lens"].pointer, lengths.pointer + 4 * i, 4)
                given[i % 2].launch(stream)
                launch.enqueue()

        return enqueue

    def read() -> list[bytes]:
        return [array.tobytes() for array in (*launch.read().values(), ys.read())]

    launch.poison()
    steps(settled=0)()
    wanted = read()
    settled = steps(settled=1)
    for work in (settled, *[stream.capture(settled)] * REPLAYS):
        launch.poison()
        ys.write(np.full(ys.shape, np.nan, np.float16))
        work()
        assert read() == wanted
