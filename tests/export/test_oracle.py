# SPDX-License-Identifier: Apache-2.0
"""Exported graphs against what `transformers` computes for the same checkpoints (tests/oracle/make_fixtures.py)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from oracle.random_models import MODELS, RandomModel, digest
from orinkit import config
from orinkit.engines.base import Float32, Int32, Profile, StepInputs
from orinkit.engines.ort import OrtCaches, OrtEngine
from orinkit.model import ModelSpec
from orinkit.recipe import Recipe
from orinkit_export import architectures, graph, quantise, store
from orinkit_export.checkpoint import Checkpoint
from orinkit_export.reference import ReferenceGraph
from orinkit_export.verify import kl_divergence
from orinkit_export.weights import Weights
from tolerances import KL_FLOAT16, LOGITS_FLOAT32

DATA = Path(__file__).parents[1] / "data"
CAPACITY, CHUNK = 256, 16
WHOLE = 200
"""Tokens of the longest prompt."""

Execute = Callable[[StepInputs], Float32]


@dataclass(frozen=True)
class Exported:
    """A checkpoint's graph, loaded, and what the oracle says of the checkpoint."""

    spec: ModelSpec
    path: Path
    unused: tuple[str, ...]
    """Tensors of the checkpoint that the graph does without."""
    engine: OrtEngine
    prompts: list[Int32]
    logits: list[Float32]
    """[R, V] of the last R positions of each prompt."""

    def caches(self, slots: int, chunk: int = CHUNK) -> OrtCaches:
        """Caches full of what nobody may read."""
        caches = self.engine.caches(slots, CAPACITY, chunk)
        for array in caches.arrays.values():
            array.fill(np.nan)
        return caches

    def execute(self, caches: OrtCaches) -> Execute:
        return self.engine.context(Profile("test", CAPACITY, caches.slots), caches).run


def export(checkpoint: Path, fixture: str, folder: Path, activations: str = "float32") -> Exported:
    """Export `checkpoint` without quantisation into `folder`."""
    with np.load(DATA / "oracle" / f"{fixture}.npz") as oracle:
        if digest(checkpoint) != oracle["digest"]:
            pytest.fail(f"the checkpoint {fixture} is not the one of its fixture; run `make oracle`")
        count = sum(name.startswith("tokens") for name in oracle)
        prompts, logits = ([oracle[f"{kind}_{i}"] for i in range(count)] for kind in ("tokens", "logits"))
    shapes = {"capacity": CAPACITY, "chunk": CHUNK}
    settings = {"name": "x", "checkpoint": {"path": "x"}, "shapes": shapes, "quantise": {"method": "none"}}
    recipe = config.parse(settings | {"activations": activations}, Recipe, "recipe")
    opened = Checkpoint.open(checkpoint)
    spec = architectures.model_spec(opened.text_config)
    weights = list(quantise.stored(Weights(opened, spec, CAPACITY), recipe, spec.tied))
    with store.TensorWriter(folder) as writer:
        for weight in weights:
            quantise.store(writer, weight, recipe)
    unused = opened.unused(name for weight in weights for name in weight.sources)
    path = folder / "model.onnx"
    graph.save(graph.build(spec, store.read_index(folder), activations), path)
    windows = {f"kv_{i}": layer.attention.window for i, layer in enumerate(spec.layers) if layer.attention}
    return Exported(spec, path, unused, OrtEngine(path, windows, threads=1), prompts, logits)


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: model.name)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[RandomModel, Path]:
    folder = tmp_path_factory.mktemp("checkpoint")
    request.param.write(folder)
    return request.param, folder


@pytest.fixture(scope="module")
def exported(checkpoint: tuple[RandomModel, Path], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model, folder = checkpoint
    return export(folder, model.name, tmp_path_factory.mktemp("exported"))


def one_sequence(ids: Int32, past: int, slot: int) -> StepInputs:
    """A step of one sequence that wants the logits of every row."""
    count = len(ids)
    rows = np.arange(count, dtype=np.int32)
    return StepInputs(ids, np.array([0, count], np.int32), np.array([past], np.int32), np.array([slot], np.int32), rows)


def in_chunks(execute: Execute, ids: Int32, edges: list[int], slot: int = 1) -> Float32:
    """Logits of every position, computed in steps that end before each of `edges` and at the end."""
    parts = np.split(ids, edges)
    starts = [0, *edges]
    return np.concatenate([execute(one_sequence(part, past, slot)) for part, past in zip(parts, starts, strict=True)])


def assert_agrees(found: NDArray[Any], expected: NDArray[Any]) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < LOGITS_FLOAT32


def test_every_tensor_of_the_text_model_is_used(exported: Exported) -> None:
    assert all(name.startswith(("model.visual.", "mtp.")) for name in exported.unused)


def test_whole_prompts(exported: Exported) -> None:
    execute = exported.execute(exported.caches(2, chunk=WHOLE))
    for ids, logits in zip(exported.prompts, exported.logits, strict=True):
        assert_agrees(in_chunks(execute, ids, []), logits)


def test_two_chunks_at_every_boundary(exported: Exported) -> None:
    ids, logits = exported.prompts[0], exported.logits[0]
    execute = exported.execute(exported.caches(2, chunk=len(ids)))
    for boundary in range(1, len(ids)):
        assert_agrees(in_chunks(execute, ids, [boundary]), logits)


@pytest.mark.parametrize("size", [1, 7, CHUNK])
def test_chunks_across_the_window_and_around_the_ring(exported: Exported, size: int) -> None:
    ids, logits = exported.prompts[3], exported.logits[3]
    caches = exported.caches(2)
    assert_agrees(in_chunks(exported.execute(caches), ids, list(range(size, len(ids), size))), logits)
    for index, layer in enumerate(exported.spec.layers):
        if layer.attention:
            rows = caches.arrays[f"kv_{index}"].shape[3]
            assert 3 * rows < len(ids) if layer.attention.window else rows == CAPACITY


def test_float16(checkpoint: tuple[RandomModel, Path], tmp_path: Path) -> None:
    model, folder = checkpoint
    exported = export(folder, model.name, tmp_path, "float16")
    execute = exported.execute(exported.caches(2))
    for ids, logits in zip(exported.prompts, exported.logits, strict=True):
        found = in_chunks(execute, ids, list(range(CHUNK, len(ids), CHUNK)))
        assert kl_divergence(logits, found).mean() < KL_FLOAT16


# Batches: sequences of unequal length that come and go


@dataclass(frozen=True)
class Row:
    """What one sequence does in a step."""

    prompt: int
    slot: int
    past: int = 0
    count: int = 0

    @property
    def end(self) -> int:
        return self.past + self.count


PADDING = Row(prompt=0, slot=-1, past=5, count=3)
GARBAGE = np.array([-1, 1 << 30, 96], np.int32)
"""Token ids of the padding: none is in a vocabulary."""
SLOTS, UNUSED_SLOTS = 6, (0, 2, 5)


def traffic(lengths: list[int]) -> Iterator[list[Row]]:
    """Steps in which prefill, decode, idle sequences and padding are mixed; long prompts leave their slots to short."""
    rng = random.Random(3)
    waiting, free, live = [3, 0, 2, 1, 0, 3, 1, 2, 2, 3, 0, 1], [4, 1, 3], list[Row]()
    while waiting or live:
        if waiting and free:
            live.append(Row(waiting.pop(0), free.pop(0)))
        rng.shuffle(live)
        live = [
            replace(row, count=min(rng.choice((0, 1, 1, 9, CHUNK)), lengths[row.prompt] - row.past)) for row in live
        ]
        yield [*live, PADDING, replace(PADDING, count=0)]
        free += [row.slot for row in live if row.end == lengths[row.prompt]]
        live = [replace(row, past=row.end) for row in live if row.end < lengths[row.prompt]]


def packed(rows: list[Row], prompts: list[Int32], rng: np.random.Generator) -> StepInputs:
    """The step of `rows`; logits are wanted of all tokens in any order, and skipped once."""
    ids = [GARBAGE[: row.count] if row.slot < 0 else prompts[row.prompt][row.past : row.end] for row in rows]
    edges = np.cumsum([0, *map(len, ids)], dtype=np.int32)
    wanted = rng.permutation(np.arange(-1, edges[-1], dtype=np.int32))
    past, slots = (np.array([getattr(row, name) for row in rows], np.int32) for name in ("past", "slot"))
    return StepInputs(np.concatenate(ids), edges, past, slots, wanted)


def assert_traffic_agrees(execute: Execute, exported: Exported) -> None:
    rng = np.random.default_rng(5)
    for rows in traffic(list(map(len, exported.prompts))):
        rng.shuffle(rows)
        step = packed(rows, exported.prompts, rng)
        found = execute(step)
        assert np.isfinite(found).all()
        by_token = np.empty((len(step.input_ids), exported.spec.vocab), np.float32)
        wanted = step.logit_rows >= 0
        by_token[step.logit_rows[wanted]] = found[wanted]
        for row, start, end in zip(rows, step.cu_seqlens[:-1], step.cu_seqlens[1:], strict=True):
            if row.slot >= 0 and row.count:
                assert_agrees(by_token[start:end], exported.logits[row.prompt][row.past : row.end])


def test_batches(exported: Exported) -> None:
    caches = exported.caches(SLOTS)
    assert_traffic_agrees(exported.execute(caches), exported)
    assert all(np.isnan(array[list(UNUSED_SLOTS)]).all() for array in caches.arrays.values())


def test_batches_by_the_references(exported: Exported) -> None:
    """The references take packed batches as they are; ONNX Runtime gets its sequences one by one."""
    reference = ReferenceGraph(ir.load(exported.path))
    state = dict(exported.caches(SLOTS).arrays)

    def execute(step: StepInputs) -> Float32:
        outputs = reference.run({**vars(step), **state})
        state.update({name: outputs[f"{name}_out"] for name in state})
        return np.asarray(outputs["logits"], np.float32)

    assert_traffic_agrees(execute, exported)
    assert all(np.isnan(array[list(UNUSED_SLOTS)]).all() for array in state.values())


def test_demo_model(tmp_path: Path) -> None:
    exported = export(DATA / "demo-model", "demo-model", tmp_path)
    execute = exported.execute(exported.caches(2))
    ids, logits = exported.prompts[0], exported.logits[0]
    found = in_chunks(execute, ids, list(range(CHUNK, len(ids), CHUNK)))
    assert_agrees(found[-len(logits) :], logits)
