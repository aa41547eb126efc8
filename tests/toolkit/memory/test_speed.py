# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest

from orinkit.memory import outline
from orinkit.memory.speed import BANDWIDTH_SHARE, MATRIX_SHARE, PREFILL_LAUNCHES, Prefill, Speed, seen
from toolkit.memory.models import ATTENTION, GPU, HYBRID, RING, WINDOWED, recipe


def prefill(speed: Speed, tokens: int) -> Prefill:
    found = speed.prefill(tokens)
    assert found is not None
    return found


def test_a_step_reads_the_weights_but_for_the_tables() -> None:
    sizes = {name: sum(parts) for name, parts in outline.stored_parts(HYBRID, recipe()).items()}
    tables = sizes["embedding.weight"] + sizes["rope.cos"] + sizes["rope.sin"]
    norms = sizes["layers.1.q_norm"] + sizes["layers.1.k_norm"]
    recurrent = 2 * 8 * 128 * 128 * 4
    logits = 2 * 4 * HYBRID.vocab
    found = Speed(HYBRID, recipe(), GPU).decode(1, 0)
    assert found.nbytes == sum(sizes.values()) - tables - norms + recurrent + logits


def test_a_shared_table_is_read_as_the_head() -> None:
    shared = recipe(embedding="int4")
    assert Speed(HYBRID, shared, GPU).decode(1, 0).nbytes == Speed(HYBRID, recipe(), GPU).decode(1, 0).nbytes


def test_time_is_bytes_over_bandwidth_and_launches() -> None:
    found = Speed(HYBRID, recipe(), GPU).decode(4, 1000)
    assert found.launches == len(outline.ops(HYBRID, recipe())) + 3 == 16
    assert found.seconds == pytest.approx(found.nbytes / (200e9 * BANDWIDTH_SHARE) + 16 * 4e-6)
    assert found.tokens_per_second == pytest.approx(4 / found.seconds)


def test_depth_costs_the_cache_of_each_sequence() -> None:
    speed = Speed(HYBRID, recipe(), GPU)
    row = 2 * 2 * 128 * 2
    assert speed.decode(4, 1000).nbytes - speed.decode(4, 0).nbytes == 4 * 1000 * row


def test_a_window_bounds_what_depth_costs() -> None:
    speed = Speed(RING, recipe(), GPU)
    assert speed.decode(1, 1000).nbytes == speed.decode(1, 4000).nbytes > speed.decode(1, 999).nbytes
    assert (seen(WINDOWED, 999), seen(WINDOWED, 1001), seen(ATTENTION, 1001)) == (999, 1000, 1001)


def test_prefill_is_bound_by_operations_where_there_are_many() -> None:
    found = prefill(Speed(HYBRID, recipe(), GPU), 512)
    launching = PREFILL_LAUNCHES * len(outline.ops(HYBRID, recipe())) * 4e-6
    assert found.seconds == pytest.approx(found.operations / (2048 * 16 * 1e9 * MATRIX_SHARE) + launching)
    matrices = sum(2 * op.n * op.k for op in outline.ops(HYBRID, recipe()) if op.name != "head")
    head = 2 * HYBRID.vocab * HYBRID.hidden
    attention = 4 * 8 * 128 * 512 * 513 / 2
    delta = 6 * 512 * 8 * 128 * (64 + 128)
    assert found.operations == pytest.approx(512 * matrices + head + attention + delta)


def test_prefill_of_one_token_is_bound_by_reading() -> None:
    speed = Speed(HYBRID, recipe(), GPU)
    assert prefill(speed, 1).seconds > speed.decode(1, 1).nbytes / (200e9 * BANDWIDTH_SHARE) * 0.99


def test_longer_prompts_take_longer_by_chunks() -> None:
    speed = Speed(HYBRID, recipe(), GPU)
    times = [prefill(speed, tokens).seconds for tokens in (1, 511, 512, 513, 2048)]
    assert times == sorted(times)
    assert len(set(times)) == len(times)


def test_without_a_clock_prefill_is_not_known() -> None:
    assert Speed(HYBRID, recipe(), replace(GPU, clock_mhz=None)).prefill(100) is None


def test_a_fast_gpu_is_faster() -> None:
    fast = Speed(HYBRID, recipe(), replace(GPU, bandwidth_gbs=400.0, clock_mhz=2000, sm=90))
    slow = Speed(HYBRID, recipe(), GPU)
    assert fast.decode(1, 0).seconds < slow.decode(1, 0).seconds
    assert prefill(fast, 512).seconds < prefill(slow, 512).seconds
