# SPDX-License-Identifier: Apache-2.0
"""The ONNX Runtime engine and how engines are opened; its numbers are compared elsewhere, here its promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import small_models
from orinkit.engines import ENGINES, open_engine
from orinkit.engines.base import Engine, Float32, Profile, StepInputs
from orinkit.engines.ort import OrtCaches, OrtEngine
from orinkit.errors import EngineError
from orinkit.model import ModelSpec
from small_models import CAPACITY, CHUNK, INT4

SLOTS, VOCAB = 4, 96
PROFILE = Profile("test", 40, SLOTS)

Exported = tuple[ModelSpec, Path]


@pytest.fixture(scope="module", params=["qwen3_5-2-4", "mistral"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A hybrid model with all three kinds of state, and one whose caches are rings."""
    return small_models.export(request.param, tmp_path_factory.mktemp("exported"), INT4)


@pytest.fixture(scope="module")
def engine(exported: Exported) -> OrtEngine:
    spec, path = exported
    return OrtEngine(path, small_models.windows(spec), threads=1)


def nan_caches(engine: OrtEngine) -> OrtCaches:
    caches = engine.caches(SLOTS, CAPACITY, CHUNK)
    for array in caches.arrays.values():
        array.fill(np.nan)
    return caches


def ids(seed: int, count: int) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, VOCAB, count).astype(np.int32)


def step(*sequences: tuple[NDArray[np.int32], int, int], rows: list[int] | None = None) -> StepInputs:
    """Tokens, past length and slot of each sequence; by default the logits of every token."""
    tokens, past, slots = zip(*sequences, strict=True)
    edges = np.cumsum([0, *map(len, tokens)])
    wanted = range(edges[-1]) if rows is None else rows
    vectors = (np.array(values, np.int32) for values in (edges, past, slots, list(wanted)))
    return StepInputs(np.concatenate(tokens), *vectors)


def bits(caches: OrtCaches, slot: int, length: int = CAPACITY) -> bytes:
    """What a slot holds; of keys and values [2, Hkv, C, D] the first `length` rows."""
    held = (array[slot] for array in caches.arrays.values())
    return b"".join((state[:, :, :length] if state.ndim == 4 else state).tobytes() for state in held)


# Opening


def test_open_engine(exported: Exported) -> None:
    spec, path = exported
    engine: Engine = open_engine("onnxruntime", path, spec)
    assert (engine.name, engine.can_capture) == ("onnxruntime", False)
    context = engine.context(PROFILE, engine.caches(SLOTS, CAPACITY, CHUNK))
    assert context.profile is PROFILE
    assert context.run(step((ids(0, 5), 0, 1))).shape == (5, VOCAB)
    caches = engine.caches(SLOTS, CAPACITY, CHUNK)
    assert isinstance(caches, OrtCaches)
    for index, layer in enumerate(spec.layers):
        if layer.attention:
            rows = 64 if layer.attention.window else CAPACITY
            assert caches.arrays[f"kv_{index}"].shape[3] == rows


@pytest.mark.parametrize(("name", "hint"), [("onnxrt", "did you mean 'onnxruntime'?"), ("vulkan", "known: ")])
def test_an_unknown_engine(name: str, hint: str, exported: Exported) -> None:
    assert "onnxruntime" in ENGINES
    with pytest.raises(EngineError) as caught:
        open_engine(name, exported[1], exported[0])
    assert str(caught.value).startswith(f"unknown engine '{name}'; {hint}")
    assert "onnxruntime" in str(caught.value)


def test_without_onnxruntime_there_is_advice(exported: Exported) -> None:
    code = """
import sys
from pathlib import Path
sys.modules["onnxruntime"] = None
from orinkit.engines import open_engine
from orinkit.errors import EngineError
from orinkit.model import LayerSpec, ModelSpec, Rope
try:
    open_engine("onnxruntime", Path("model.onnx"), ModelSpec("x", 1, 1, 1e-6, False, 1, Rope(1.0), ()))
except EngineError as error:
    print(error)
"""
    setup = f"import sys; sys.path[:0] = {sys.path!r}\n"
    done = subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, check=True)
    assert "needs onnxruntime" in done.stdout
    assert "pip install onnxruntime" in done.stdout


def test_a_graph_that_cannot_be_loaded(exported: Exported, tmp_path: Path) -> None:
    _, path = exported
    broken = tmp_path / "model.onnx"
    with pytest.raises(EngineError, match=f"cannot load {broken}"):
        OrtEngine(broken, {})
    broken.write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=f"cannot load {broken}"):
        OrtEngine(broken, {})
    broken.write_bytes(path.read_bytes())  # its weights are not there
    with pytest.raises(EngineError, match=f"cannot load {broken}"):
        OrtEngine(broken, {})
    (tmp_path / "model.data").write_bytes((path.parent / "model.data").read_bytes()[:5000])
    with pytest.raises(EngineError, match=f"cannot load {broken}"):
        OrtEngine(broken, {})


def test_caches_of_another_engine(engine: OrtEngine) -> None:
    foreign: Any = object()
    with pytest.raises(EngineError, match="caches made by this engine"):
        engine.context(PROFILE, foreign)


# Caches


@pytest.mark.parametrize(("capacity", "chunk", "ring"), [(96, 16, 64), (40, 16, 40), (500, 52, 64), (500, 53, 128)])
def test_sizes_of_caches(capacity: int, chunk: int, ring: int, engine: OrtEngine) -> None:
    """A ring holds its window of 12 and a step, in multiples of 64, but never more than everything."""
    caches = engine.caches(3, capacity, chunk)
    assert (caches.slots, caches.capacity) == (3, capacity)
    assert caches.nbytes == sum(array.nbytes for array in caches.arrays.values())
    assert all(array.shape[0] == 3 and not array.any() for array in caches.arrays.values())
    is_ring = "rec_0" not in caches.arrays
    rows = {array.shape[3] for name, array in caches.arrays.items() if name.startswith("kv_")}
    assert rows == {ring if is_ring else capacity}
    if not is_ring:
        assert list(caches.arrays) == ["conv_0", "rec_0", "conv_1", "rec_1", "conv_2", "rec_2", "kv_3"]
        assert [caches.arrays[name].dtype.name for name in ("conv_0", "rec_0", "kv_3")] == [
            *("float16", "float32", "float16"),
        ]


def test_state_is_updated_in_the_memory_of_the_caches(engine: OrtEngine) -> None:
    caches = nan_caches(engine)
    addresses = {name: array.ctypes.data for name, array in caches.arrays.items()}
    untouched = [bits(caches, slot) for slot in range(SLOTS)]
    context = engine.context(PROFILE, caches)
    context.run(step((ids(1, 9), 0, 2)))
    assert {name: array.ctypes.data for name, array in caches.arrays.items()} == addresses
    assert [bits(caches, slot) == before for slot, before in enumerate(untouched)] == [True, True, False, True]
    for name, array in caches.arrays.items():
        part = array[2][:, :, :9] if name.startswith("kv_") else array[2]
        assert np.isfinite(part).all()
        if name.startswith("kv_"):
            assert np.isnan(array[2][:, :, 9:]).all()
    before = bits(caches, 2)
    context.run(step((ids(2, 1), 9, 2)))
    assert bits(caches, 2) != before


# Steps


def test_a_batch_is_its_sequences_alone_bit_for_bit(engine: OrtEngine) -> None:
    together, alone = nan_caches(engine), nan_caches(engine)
    batch, single = engine.context(PROFILE, together), engine.context(PROFILE, alone)
    past = {0: 0, 1: 0, 3: 0}
    for seed, lens in enumerate(([16, 1, 7], [1, 16, 1], [1, 1, 16], [16, 1, 1])):
        rows = [(ids(10 * seed + slot, count), past[slot], slot) for slot, count in zip((3, 0, 1), lens, strict=True)]
        found = batch.run(step(*rows, (ids(99, 5), 70, -1)))
        parts = np.split(found, np.cumsum(lens))
        for row, part in zip(rows, parts, strict=False):
            assert np.array_equal(single.run(step(row)), part)
            past[row[2]] += len(row[0])
        assert np.isfinite(parts[-1]).all()
    assert [bits(together, slot) == bits(alone, slot) for slot in range(SLOTS)] == [True] * SLOTS


def test_logits_of_the_wanted_rows_only(engine: OrtEngine) -> None:
    rows = [(ids(3, 6), 0, 0), (ids(4, 5), 0, 1), (ids(5, 1), 0, 3)]

    def run(wanted: list[int] | None) -> Float32:
        return engine.context(PROFILE, nan_caches(engine)).run(step(*rows, rows=wanted))

    every = run(None)
    assert every.dtype == np.float32
    some = run([11, -1, 5, 0, -1, 5, 10])
    assert some.shape == (7, VOCAB)
    kept = [0, 2, 3, 5, 6]
    assert np.abs(some[kept] - every[[11, 5, 0, 5, 10]]).max() < 1e-4
    assert np.isfinite(some).all()
    assert some[0].any()


@pytest.mark.parametrize(("wanted", "shape"), [([], (0, VOCAB)), ([-1, -1], (2, VOCAB))])
def test_a_step_that_wants_no_logits_advances_the_state(
    wanted: list[int], shape: tuple[int, int], engine: OrtEngine
) -> None:
    """What prefill does with every chunk but the last."""
    silent, loud = nan_caches(engine), nan_caches(engine)
    rows = [(ids(6, 8), 0, 1), (ids(7, 3), 0, 2)]
    found = engine.context(PROFILE, silent).run(step(*rows, rows=wanted))
    assert found.shape == shape
    assert np.isfinite(found).all()
    engine.context(PROFILE, loud).run(step(*rows))
    for slot in range(SLOTS):
        assert bits(silent, slot) == bits(loud, slot)


def test_a_step_of_padding_alone(engine: OrtEngine) -> None:
    caches = nan_caches(engine)
    before = [bits(caches, slot) for slot in range(SLOTS)]
    found = engine.context(PROFILE, caches).run(step((ids(8, 2), 3, -1), (ids(8, 0), 0, -1), rows=[-1, 0]))
    assert found.shape == (2, VOCAB)
    assert np.isfinite(found).all()
    assert [bits(caches, slot) for slot in range(SLOTS)] == before


def test_a_slot_is_taken_over_without_clearing_it(engine: OrtEngine) -> None:
    clean, used = nan_caches(engine), nan_caches(engine)
    context = engine.context(PROFILE, used)
    for start in range(0, 80, CHUNK):
        context.run(step((ids(start, CHUNK), start, 1), rows=[]))
    row = (ids(9, 12), 0, 1)
    assert np.array_equal(context.run(step(row)), engine.context(PROFILE, clean).run(step(row)))


@pytest.mark.parametrize("length", [8, 80])
def test_a_copy_of_a_slot_goes_on_as_the_slot_itself(length: int, engine: OrtEngine) -> None:
    """Before and after a ring has wrapped, in several slots at once, whatever they held; slot 1 has the rows still."""
    caches = nan_caches(engine)
    context, spare = engine.context(PROFILE, caches), caches.spare(2)
    for start in range(0, length, CHUNK):
        context.run(step((ids(start, min(CHUNK, length - start)), start, 1), rows=[]))
    spare.save(1, 1, length)
    row = ids(3, 9)
    expected = context.run(step((row, length, 1)))
    context.run(step((ids(4, 5), 0, 0), (ids(5, 7), length + 9, 1), rows=[]))
    for slot in (0, 1, 3):
        spare.restore(1, slot, length, has_rows=slot == 1)
    for slot in (3, 0, 1):
        assert np.array_equal(context.run(step((row, length, slot))), expected)
    assert len({bits(caches, slot, length + 9) for slot in (0, 1, 3)}) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(ids(0, 3), CAPACITY - 2, 0)], f"tokens in a slot up to {CAPACITY}, found {CAPACITY + 1}"),
        ([(ids(0, CHUNK + 1), 0, 0)], f"tokens of a sequence up to {CHUNK}, found {CHUNK + 1}"),
        ([(ids(0, 1), 0, SLOTS)], f"slots up to {SLOTS - 1}, found {SLOTS}"),
        ([(ids(0, 14), 0, slot) for slot in range(3)], "a step within .*tokens=40.*, found 42 tokens of 3 sequences"),
        ([(ids(0, 1), 0, slot) for slot in (0, 1, 2, 3, -1)], "sequences=4.*, found 5 tokens of 5 sequences"),
    ],
)
def test_a_step_beyond_profile_or_caches_changes_nothing(
    rows: list[tuple[NDArray[np.int32], int, int]], message: str, engine: OrtEngine
) -> None:
    caches = nan_caches(engine)
    before = [bits(caches, slot) for slot in range(SLOTS)]
    with pytest.raises(EngineError, match=message):
        engine.context(PROFILE, caches).run(step(*rows))
    in_front = [(ids(1, 2), 0, 1), *rows]
    with pytest.raises(EngineError):
        engine.context(PROFILE, caches).run(step(*in_front))
    assert [bits(caches, slot) for slot in range(SLOTS)] == before


def test_a_failure_of_onnxruntime_is_told_as_ours(exported: Exported) -> None:
    """A recipe's capacity is also the length of the rotary tables: beyond it a Gather fails."""
    spec, path = exported
    engine = OrtEngine(path, small_models.windows(spec), threads=1)
    context = engine.context(PROFILE, engine.caches(1, 2 * CAPACITY, CHUNK))
    with pytest.raises(EngineError, match="onnxruntime failed to execute a step of 2 tokens: "):
        context.run(step((ids(0, 2), CAPACITY, 0)))
