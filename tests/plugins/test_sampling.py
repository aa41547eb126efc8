# SPDX-License-Identifier: Apache-2.0
"""The sampling kernels against runtime/sampling.py: the same token for the same logits, settings, seed and position.

The two differ in that the kernels sum in integers and draw in float32; `is_explained` says how far that may go.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from orinkit.engines.kernels import KernelLibrary
from orinkit.errors import EngineError
from orinkit.runtime.sampling import History, Sampling, sample
from sampling_cases import Row, Sampler, is_explained, random_row

pytestmark = pytest.mark.gpu

NOTHING = History.of(())
LOGITS = np.array([1.0, 3.0, 2.0, 0.5, 3.0, -1.0, 1.5, 0.0], np.float32)


def reference(row: Row) -> tuple[int, float]:
    choice = sample(row.logits, row.history, row.sampling, row.position)
    return choice.token, choice.logprob


def check(rows: list[Row], outputs: dict[str, Any]) -> int:
    """Rows whose token is another than the reference's; each must be explained, and all log-probabilities right."""
    assert (outputs["errors"] == -1).all()
    different = 0
    for row, token, logprob in zip(rows, outputs["tokens"], outputs["logprobs"], strict=True):
        expected, expected_logprob = reference(row)
        if token != expected:
            different += 1
            assert is_explained(row, int(token)), f"{row.sampling}: expected {expected}, found {token}"
        else:
            assert logprob == pytest.approx(expected_logprob, abs=2e-5, rel=1e-5)
    return different


@pytest.mark.parametrize("kind", ["peaked", "flat", "tied"])
@pytest.mark.parametrize(
    ("vocab", "launches"), [(1, 2), (2, 4), (33, 20), (2047, 20), (2048, 10), (2049, 10), (20_001, 10), (248_320, 1)]
)
def test_tokens_are_the_references(kind: str, vocab: int, launches: int, kernels: KernelLibrary, stream: Any) -> None:
    rng = np.random.default_rng(vocab)
    different = 0
    for _ in range(launches):
        rows = [random_row(rng, vocab, kind) for _ in range(64)]
        different += check(rows, Sampler(kernels, rows).run(stream))
    assert different <= 1e-3 * 64 * launches


@pytest.mark.parametrize("vocab", [1, 700, 151_936, 248_319])
def test_greedy(vocab: int, kernels: KernelLibrary, stream: Any) -> None:
    """Of equal scores the lowest id."""
    rng = np.random.default_rng(1)
    rows = []
    for i in range(9):
        history = History.of(rng.integers(vocab, size=400).tolist())
        logits = np.round(rng.standard_normal(vocab) * 4).astype(np.float32)
        biases = {int(token): 3.5 for token in rng.integers(vocab, size=20)} if i % 2 else {}
        penalty = 1.5 if i % 3 else 1.0
        rows.append(Row(logits, Sampling(logit_bias=biases, repetition_penalty=penalty), history, 7))
    assert check(rows, Sampler(kernels, rows).run(stream)) == 0


def test_equal_logits_are_cut_by_id(kernels: KernelLibrary, stream: Any) -> None:
    """All tokens are in one bin, and only the lowest ids are kept."""
    rows = [
        Row(np.zeros(9001, np.float32), Sampling(temperature=1.0, seed=seed, top_k=k, top_p=p), NOTHING, 3)
        for seed in range(8)
        for k, p in ((1, 1.0), (5, 1.0), (0, 0.25), (4000, 0.5), (0, 0.0), (9001, 1.0))
    ]
    assert check(rows, Sampler(kernels, rows).run(stream)) == 0


def test_extreme_logits(kernels: KernelLibrary, stream: Any) -> None:
    logits = np.array([3e38, -3e38, 3e38], np.float32)
    strong = Sampling(temperature=0.01, top_p=0.5, repetition_penalty=0.1, logit_bias={0: 100.0})
    rows = [Row(logits, strong, History.of((0, 1)), 1), Row(logits, Sampling(), NOTHING, 1)]
    outputs = Sampler(kernels, rows).run(stream)
    assert outputs["tokens"].tolist() == [0, 0]
    assert np.isfinite(outputs["logprobs"]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nothing_is_drawn_from_numbers_that_are_not_finite(bad: float, kernels: KernelLibrary, stream: Any) -> None:
    rng = np.random.default_rng(2)
    rows = [random_row(rng, 5001, "peaked") for _ in range(6)]
    rows[1].logits[[4999, 2050]] = bad
    rows[4].logits[0] = bad
    outputs = Sampler(kernels, rows).run(stream)
    assert outputs["errors"].tolist() == [-1, 2050, -1, -1, 0, -1]
    assert outputs["tokens"][[1, 4]].tolist() == [-1, -1]
    sound = [0, 2, 3, 5]
    assert check([rows[i] for i in sound], {name: array[sound] for name, array in outputs.items()}) == 0


def test_padded_rows_read_nothing_and_stay_without_token(kernels: KernelLibrary, stream: Any) -> None:
    rng = np.random.default_rng(3)
    rows = [random_row(rng, 4097, "peaked") for _ in range(5)]
    sampler = Sampler(kernels, rows, unwanted=(0, 3))
    outputs = sampler.run(stream)
    assert outputs["tokens"][[0, 3]].tolist() == [-1, -1]
    assert outputs["errors"][[0, 3]].tolist() == [-1, -1]
    real = [1, 2, 4]
    assert check([rows[i] for i in real], {name: array[real] for name, array in outputs.items()}) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_tokens_that_the_mask_allows(temperature: float, kernels: KernelLibrary, stream: Any) -> None:
    rng = np.random.default_rng(4)
    vocab, rows, masks = 6001, [], []
    for seed, allowed in enumerate(([17], [5, 2048, 6000], list(range(0, vocab, 7)), [])):
        logits = rng.standard_normal(vocab).astype(np.float32)
        bits = np.zeros(32 * ((vocab + 31) // 32), np.uint8)
        bits[allowed] = 1
        masks.append(np.packbits(bits, bitorder="little").view(np.uint32))
        rows.append(Row(logits, Sampling(temperature=temperature, top_k=50, seed=seed), NOTHING, 9))
    outputs = Sampler(kernels, rows, masks=np.stack(masks)).run(stream)
    assert outputs["errors"].tolist() == [-1, -1, -1, vocab]
    assert outputs["tokens"][3] == -1
    for row, mask, token, logprob in zip(rows[:3], masks, outputs["tokens"], outputs["logprobs"], strict=False):
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[:vocab]
        excluded = np.where(bits == 1, row.logits, np.float32(-3e38))
        assert token == sample(excluded, NOTHING, row.sampling, row.position).token
        wide = row.logits.astype(np.float64)
        assert logprob == pytest.approx(wide[token] - np.log(np.exp(wide).sum()), abs=1e-5)


@pytest.mark.parametrize(("vocab", "count"), [(8, 20), (5000, 1), (151_937, 20)])
def test_most_likely_tokens(vocab: int, count: int, kernels: KernelLibrary, stream: Any) -> None:
    """Those of the model itself, whatever is sampled."""
    rng = np.random.default_rng(5)
    rows = [random_row(rng, vocab, kind) for kind in ("peaked", "tied", "flat")]
    outputs = Sampler(kernels, rows, num_logprobs=count).run(stream)
    check(rows, outputs)
    known = min(vocab, count)
    for i, row in enumerate(rows):
        wide = row.logits.astype(np.float64)
        expected = np.argsort(-wide, kind="stable")[:known]
        assert outputs["top_ids"][i, :known].tolist() == expected.tolist()
        logprobs = wide[expected] - wide.max() - np.log(np.exp(wide - wide.max()).sum())
        assert outputs["top_logprobs"][i, :known] == pytest.approx(logprobs, abs=2e-5)
    assert (outputs["top_ids"][:, known:] == -1).all()


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 1.7, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.15},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.9, "min_p": 0.1},
    ],
)
def test_draws_follow_the_exact_probabilities(sampling: dict[str, float], kernels: KernelLibrary, stream: Any) -> None:
    """Pearson's chi-square over 20,000 positions; the floor makes a false alarm a matter of 1 in 10,000, once."""
    draws = 20_000
    rows = [Row(LOGITS, Sampling(seed=11, **sampling), NOTHING, 1 + at) for at in range(draws)]  # type: ignore[arg-type]
    found = np.bincount(Sampler(kernels, rows).run(stream)["tokens"], minlength=len(LOGITS))
    exact = exact_probabilities(**sampling)
    assert not found[exact == 0].any()
    expected = draws * exact[exact > 0]
    statistic = float(((found[exact > 0] - expected) ** 2 / expected).sum())
    freedom = len(expected) - 1
    mean, variance = 1 - 2 / (9 * freedom), 2 / (9 * freedom)
    tail = 0.5 * math.erfc(((statistic / freedom) ** (1 / 3) - mean) / math.sqrt(2 * variance))
    assert tail > 1e-4


def exact_probabilities(temperature: float, top_k: float = 8, top_p: float = 1.0, min_p: float = 0.0) -> Any:
    weights = np.exp(LOGITS.astype(np.float64) / temperature)
    order = np.argsort(-weights, kind="stable")[: int(top_k)]
    before = np.cumsum(weights[order]) - weights[order]
    kept = order[(before < top_p * weights[order].sum()) & (weights[order] >= min_p * weights.max())]
    probabilities = np.zeros(len(weights))
    probabilities[kept] = weights[kept] / weights[kept].sum()
    return probabilities


@pytest.mark.parametrize("vocab", [5, 30_001])
def test_replay_of_a_capture_is_the_same_and_leaves_the_counters_zero(
    vocab: int, kernels: KernelLibrary, stream: Any
) -> None:
    rng = np.random.default_rng(6)
    rows = [random_row(rng, vocab, "flat") for _ in range(17)]
    sampler = Sampler(kernels, rows, num_logprobs=5)
    direct = sampler.run(stream)
    assert not sampler.counters.read().any()
    replay = stream.capture(lambda: sampler.launch(stream))
    for _ in range(3):
        sampler.poison()
        replay()
        stream.sync()
        again = sampler.read()
        assert all(np.array_equal(again[name], array) for name, array in direct.items())
    assert not sampler.counters.read().any()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"vocab": 2**20 + 1}, "vocab: expected 1 to 1048576, found 1048577"),
        ({"max_logprobs": 21}, "max_logprobs: expected 0 to 20, found 21"),
        ({"rows": -1}, "rows: expected 0 to 65535, found -1"),
        ({"workspace": 8}, "workspace: expected an alignment of 16 bytes"),
    ],
)
def test_a_wrong_argument_is_named(change: dict[str, int], sentence: str, kernels: KernelLibrary, stream: Any) -> None:
    sampler = Sampler(kernels, [Row(LOGITS, Sampling(), NOTHING, 1)])
    for name, value in change.items():
        setattr(sampler.arguments, name, value)
    with pytest.raises(EngineError, match=sentence):
        sampler.launch(stream)
