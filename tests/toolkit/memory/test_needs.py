# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import small_models
from orinkit.engines.ort import OrtEngine
from orinkit.memory.needs import ENGINES, MemoryPlan, arena_bytes, decode_sizes, memory_plan, state_bytes
from small_models import INT4, NAMES
from toolkit.memory.models import HYBRID, RING, recipe


def item(plan: MemoryPlan, name: str) -> int:
    return sum(item.nbytes for item in plan.items if item.name == name)


@pytest.mark.parametrize("name", NAMES)
def test_states_are_those_that_an_engine_allocates(name: str, tmp_path: Path) -> None:
    spec, path = small_models.export(name, tmp_path, INT4)
    shapes = INT4.shapes
    caches = OrtEngine(path, small_models.windows(spec), threads=1).caches(shapes.slots, shapes.capacity, shapes.chunk)
    assert state_bytes(spec, INT4) == {name: array.nbytes for name, array in caches.arrays.items()}


def test_the_numbers_of_a_hybrid_by_hand() -> None:
    sizes = state_bytes(HYBRID, recipe())
    assert sizes == {
        "conv_0": 4 * 3 * 1024 * 3 * 2,
        "rec_0": 4 * 8 * 128 * 128 * 4,
        "kv_1": 4 * 2 * 2 * 4096 * 128 * 2,
    }
    plan = memory_plan(HYBRID, recipe(), "cuda")
    assert item(plan, "key/value caches") == sizes["kv_1"]
    assert item(plan, "recurrent states") == sizes["rec_0"]
    matrices = 1024 * 4096 + 1024 * 1024 + (8 + 2 * 2) * 128 * 1024 + 1024 * 1024 + 2 * (4096 + 2048) * 1024
    weights = matrices * (1 / 2 + 2 / 128) + 32000 * 1024 * (2 + 1 / 2 + 2 / 128) + 2 * 4096 * 32 * 4
    assert item(plan, "weights") == pytest.approx(weights, rel=0.01)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_snapshot_takes_what_a_slot_does(engine: str) -> None:
    slot = sum(state_bytes(HYBRID, recipe()).values()) // 4
    found = [item(memory_plan(HYBRID, recipe({"snapshots": count}), engine), "snapshots") for count in (0, 1, 3)]
    assert found == [0, slot, 3 * slot]


def test_a_window_is_a_ring() -> None:
    assert state_bytes(RING, recipe()) == {"kv_0": 4 * 2 * 2 * 1536 * 128 * 2}  # 1000 + 512, a multiple of 64


def test_a_tied_head_of_the_same_format_is_not_counted_twice() -> None:
    apart = item(memory_plan(HYBRID, recipe(), "cuda"), "weights")
    shared = item(memory_plan(HYBRID, recipe(embedding="int4"), "cuda"), "weights")
    assert apart - shared == 32000 * 1024 * 2
    untied = item(memory_plan(replace(HYBRID, tied=False), recipe(embedding="int4"), "cuda"), "weights")
    assert untied - shared == pytest.approx(32000 * 1024 * (1 / 2 + 2 / 128))


def test_stored_tensors_that_are_known_replace_what_the_facts_tell() -> None:
    parts = {"all": (10_000_000, 500_000)}
    assert item(memory_plan(HYBRID, recipe(), "cuda", parts), "weights") == pytest.approx(10_500_000, abs=512)
    imported = recipe(method="import")
    assert item(memory_plan(HYBRID, imported, "onnxruntime", parts), "weights") == pytest.approx(
        1.4 * 10_500_000, abs=1
    )


def test_the_arena_holds_what_lives_at_a_time_and_little_more() -> None:
    """The most is alive in the gated delta mixer: hidden rows, q k v z, b and a, the output."""
    alive = (1024 + 4096 + 16 + 1024) * 2 * 512
    assert alive <= arena_bytes(HYBRID, recipe(), 512) <= 1.5 * alive
    assert arena_bytes(HYBRID, recipe(), 1024) == 2 * arena_bytes(HYBRID, recipe(), 512)


@pytest.mark.parametrize(("slots", "sizes"), [(1, (1,)), (2, (1, 2)), (4, (1, 2, 4)), (6, (1, 2, 4, 6))])
def test_decode_sizes(slots: int, sizes: tuple[int, ...]) -> None:
    assert decode_sizes(slots) == sizes


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "shapes",
    [{"slots": 8}, {"snapshots": 4}, {"capacity": 8192}, {"chunk": 1024}],
    ids=["slots", "snapshots", "capacity", "chunk"],
)
def test_more_of_anything_needs_more(shapes: dict[str, int], engine: str) -> None:
    base = memory_plan(HYBRID, recipe(), engine)
    more = memory_plan(HYBRID, recipe(shapes), engine)
    assert more.total() > base.total()
    assert base.total() == sum(base.total(where) for where in ("device", "host", "process"))


def test_every_engine_is_planned_for_where_it_allocates() -> None:
    plans = {engine: memory_plan(HYBRID, recipe(), engine) for engine in ENGINES}
    assert plans["onnxruntime"].total("device") == 0
    assert plans["tensorrt"].total("device") > plans["cuda"].total("device") > plans["cuda"].total("host") > 0
