# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mistakes import weight
from orinkit.errors import VerificationError
from orinkit.recipe import Evaluation, Quantise
from orinkit_export import baseline, evaluate, graph, plan, quantise, store
from orinkit_export.evaluate import EDGES, Comparison, Quality, summary
from orinkit_export.plan import Plan
from orinkit_export.verify import kl_divergence
from programs import desk, small_desk

Float32 = NDArray[np.float32]


def compared(expected: Float32, found: Float32, labels: NDArray[np.int32], edges: tuple[int, ...]) -> Comparison:
    """Two models' logits, the first one's in blocks that end at `edges`."""
    comparison = Comparison(labels)
    for blocks in zip(*(np.split(side, edges, axis=1) for side in (expected, found)), strict=True):
        comparison.add(*blocks)
    return comparison


def log(rows: list[list[float]]) -> Float32:
    return np.log(np.array(rows, np.float32))


def test_numbers_by_hand() -> None:
    """Two positions of a vocabulary of three: probabilities 1/2 1/4 1/4 against thirds, then two that are the same."""
    expected, found = log([[2, 1, 1], [1, 1, 6]]), log([[1, 1, 1], [2, 2, 12]])
    comparison = compared(expected, found, np.array([1, 2], np.int32), (1,))
    divergence = 0.5 * math.log(1.5) + 0.5 * math.log(0.75)
    assert comparison.kl == pytest.approx([divergence, 0], abs=1e-6)
    assert comparison.same.tolist() == [True, True]
    assert comparison.losses[0] == pytest.approx([math.log(4), math.log(8 / 6)], rel=1e-6)
    assert comparison.losses[1] == pytest.approx([math.log(3), math.log(8 / 6)], rel=1e-6)


def test_the_best_token_is_told_wherever_its_block_is() -> None:
    expected, found = log([[1, 2, 3, 9, 4], [9, 1, 1, 1, 1]]), log([[1, 9, 3, 8, 4], [8, 1, 1, 2, 7]])
    for edges in ((), (1,), (2, 4), (1, 2, 3, 4)):
        assert compared(expected, found, np.zeros(2, np.int32), edges).same.tolist() == [False, True]


@pytest.mark.parametrize("edges", [(), (1,), (100,), (7, 8, 150), tuple(range(10, 200, 10))], ids=str)
@pytest.mark.parametrize("shape", ["as it comes", "rising", "falling", "far away"])
def test_streamed_is_direct(edges: tuple[int, ...], shape: str) -> None:
    """Rising logits move the largest one from block to block; far away ones overflow a plain exp."""
    rng = np.random.default_rng(len(edges))
    expected = 4 * rng.standard_normal((5, 200)).astype(np.float32)
    found = expected + 0.3 * rng.standard_normal((5, 200)).astype(np.float32)
    if shape == "rising":
        order = np.argsort(expected, axis=1)
        expected, found = (np.take_along_axis(side, order, 1) for side in (expected, found))
    elif shape == "falling":
        expected, found = -np.sort(-expected, axis=1), found
    elif shape == "far away":
        expected, found = expected + np.float32(2000), found - np.float32(3000)
    labels = rng.integers(0, 200, 5).astype(np.int32)
    comparison = compared(expected, found, labels, edges)
    assert comparison.kl == pytest.approx(kl_divergence(expected, found), rel=1e-9, abs=1e-10)
    assert comparison.same.tolist() == (expected.argmax(axis=1) == found.argmax(axis=1)).tolist()
    for side, loss in zip((expected, found), comparison.losses, strict=True):
        wide = side.astype(np.float64)
        direct = np.log(np.exp(wide - wide.max()).sum(axis=1)) + wide.max() - wide[np.arange(5), labels]
        assert loss == pytest.approx(direct, rel=1e-9)


def test_a_summary_by_hand() -> None:
    """100 positions without any divergence in one part, and one with a large one in another."""
    same = log([[1, 3]] * 100)
    parts = [
        compared(same, same, np.ones(100, np.int32), ()),
        compared(log([[3, 1]]), log([[1, 3]]), np.zeros(1, np.int32), ()),
    ]
    quality = summary(parts)
    divergence = 0.75 * math.log(3) + 0.25 * math.log(1 / 3)
    before, after = (math.exp((101 * math.log(4 / 3) + more) / 101) for more in (0.0, math.log(3)))
    assert quality.positions == 101
    assert [quality.perplexity_float, quality.perplexity] == pytest.approx([before, after])
    assert quality.perplexity_increase == pytest.approx(100 * (3 ** (1 / 101) - 1))
    assert quality.kl_mean == pytest.approx(divergence / 101)
    assert quality.kl_p99 == pytest.approx(0, abs=1e-6)
    assert quality.top1 == pytest.approx(100 / 101)
    assert len(quality.histogram) == len(EDGES) + 1
    assert quality.histogram[0] == 100
    assert [index for index, count in enumerate(quality.histogram) if count] == [0, int((divergence > EDGES).sum())]


def test_the_manifest_keeps_rounded_numbers() -> None:
    quality = Quality(4088, 44.514321, 44.97123, 1.0264, 0.0191234, 0.0921, 0.89751, (1, 2))
    assert quality.report() == {
        "quality_positions": 4088,
        "quality_perplexity_float": 44.5,
        "quality_perplexity": 45.0,
        "quality_perplexity_increase": 1.03,
        "quality_kl_mean": 0.0191,
        "quality_kl_p99": 0.0921,
        "quality_top1": 0.898,
    }


def model(planned: Plan, folder: Path) -> Path:
    """The plan's graph."""
    with store.TensorWriter(folder) as writer:
        for each in planned.stored():
            quantise.store(writer, each, planned.recipe)
    path = folder / "model.onnx"
    graph.save(graph.build(planned.spec, store.read_index(folder), planned.recipe.activations), path)
    return path


def evaluated(planned: Plan, folder: Path) -> Quality:
    for name in ("model", "float", "found"):
        (folder / name).mkdir(parents=True)
    baseline.run(planned, folder / "float")
    evaluate.run(planned, model(planned, folder / "model"), folder / "float", folder / "found")
    return evaluate.read(folder / "found")


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A small model, on sequences that take more than one step of the engine."""
    read = plan.read(small_desk(tmp_path_factory.mktemp("small")) / "recipe.yaml")
    return replace(read, recipe=replace(read.recipe, evaluation=Evaluation(sequences=3, tokens=50)))


def test_what_is_not_quantised_is_the_float_model(planned: Plan, tmp_path: Path) -> None:
    recipe = replace(planned.recipe, quantise=Quantise(method="none"), activations="float32")
    found = evaluated(replace(planned, recipe=recipe), tmp_path)
    assert found.positions == 3 * 49
    assert abs(found.kl_mean) < 1e-9
    assert found.perplexity == pytest.approx(found.perplexity_float, rel=1e-6)
    assert found.top1 == 1


def test_what_is_quantised_is_not_and_steps_do_not_matter(planned: Plan, tmp_path: Path) -> None:
    recipe = replace(planned.recipe, quantise=Quantise(method="rtn", group_size=32))
    wide = replace(recipe, shapes=replace(recipe.shapes, chunk=64))
    found = evaluated(replace(planned, recipe=recipe), tmp_path / "narrow")
    assert evaluated(replace(planned, recipe=wide), tmp_path / "wide").kl_mean == pytest.approx(found.kl_mean, rel=1e-3)
    assert 1e-5 < found.kl_mean < found.kl_p99
    assert sum(found.histogram) == found.positions


def test_logits_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    weight("model.layers.0.input_layernorm.weight", 3e4)(desk(tmp_path))
    with pytest.raises(VerificationError, match=r"expected finite logits, found others: .* does not fit into float16"):
        evaluated(plan.read(tmp_path / "recipe.yaml"), tmp_path / "work")
