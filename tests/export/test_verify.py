# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orinkit.bundle import Bundle, GoldenCase
from orinkit.engines import open_engine
from orinkit.engines.base import Engine
from orinkit.errors import VerificationError
from orinkit.ops import VERSIONS
from orinkit.recipe import Golden, Recipe
from orinkit.runtime.start import open_tokenizer
from orinkit.runtime.steps import Stepper
from orinkit.runtime.tokenizer import Tokenizer
from orinkit_export import verify
from orinkit_export.verify import Agreement, agreement, check, golden_cases, kl_divergence

SEQUENCES = ((10, 20, 30, 40, 50, 60, 70), (99,), tuple(range(100, 140)))


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle.open(demo_bundle, keys=None, supported=VERSIONS)


@pytest.fixture(scope="module")
def tokenizer(bundle: Bundle) -> Tokenizer:
    return open_tokenizer(bundle)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    return open_engine("onnxruntime", bundle.graph, bundle.manifest.model)


@pytest.fixture(scope="module")
def stepper(bundle: Bundle, engine: Engine) -> Stepper:
    return Stepper(engine, bundle.manifest.recipe.shapes)


def best(bundle: Bundle) -> tuple[Recipe, GoldenCase]:
    """A recipe with the one prompt whose golden answer is the longest, and that answer."""
    case = max(bundle.manifest.golden, key=lambda case: len(case.tokens))
    recipe = bundle.manifest.recipe
    return replace(recipe, golden=Golden((case.prompt,), recipe.golden.tokens)), case


def test_kl_divergence_by_hand() -> None:
    expected = np.log(np.array([[1, 3], [1, 1], [1, 0.0001]], np.float32))
    found = np.log(np.array([[1, 1], [1, 3], [1, 0.0001]], np.float32))
    first = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    second = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert kl_divergence(expected, found) == pytest.approx([first, second, 0], abs=1e-7)


def test_kl_divergence_knows_only_differences_of_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    other = logits[::-1]
    shifted = kl_divergence(logits + np.float32(4096), other - np.float32(512))
    assert shifted == pytest.approx(kl_divergence(logits, other), rel=1e-2, abs=1e-6)
    assert kl_divergence(logits * 1000, logits * 1000) == pytest.approx([0, 0, 0])
    assert np.isfinite(kl_divergence(logits * 1000, other * 1000)).all()


@pytest.mark.parametrize(("kl_mean", "passes"), [(0.0, True), (9.9e-5, True), (1e-4, False), (math.nan, False)])
def test_the_gate(kl_mean: float, passes: bool) -> None:
    found = Agreement(kl_mean, kl_max=1.0, top1=1.0, largest_activation=1.0, positions=7)
    if passes:
        check(found)
        return
    with pytest.raises(VerificationError, match=r"a mean KL below 0\.0001, found .* over 7 positions; do not use"):
        check(found)


def test_the_report_reads_well() -> None:
    found = Agreement(kl_mean=1.23456e-7, kl_max=0.1, top1=2 / 3, largest_activation=1234.56, positions=60)
    assert found.report() == {
        "kl_mean": 1.235e-7,
        "kl_max": 0.1,
        "top1": 0.6667,
        "largest_activation": 1235.0,
        "positions": 60.0,
    }


def test_the_engine_agrees_whatever_the_chunks(bundle: Bundle, engine: Engine) -> None:
    found = agreement(bundle.graph, engine, SEQUENCES, chunk=16)
    check(found)
    assert found.positions == sum(map(len, SEQUENCES))
    assert 0 <= found.kl_mean <= found.kl_max
    assert found.top1 == 1
    assert 1 < found.largest_activation < 65504


def test_other_weights_do_not_agree(bundle: Bundle, engine: Engine, tmp_path: Path) -> None:
    shutil.copytree(bundle.folder, tmp_path / "altered")
    data = np.memmap(tmp_path / "altered/model.data", np.uint8, "r+")
    data[3_500_000:3_600_000] ^= 0x11
    data.flush()
    found = agreement(tmp_path / "altered/model.onnx", engine, SEQUENCES, chunk=16)
    assert found.kl_mean > verify.MAX_KL
    with pytest.raises(VerificationError, match="do not use this export"):
        check(found)


def test_nothing_to_compare_on_is_told(bundle: Bundle, engine: Engine) -> None:
    with pytest.raises(VerificationError, match="expected golden prompts"):
        agreement(bundle.graph, engine, [], chunk=16)


def test_golden_cases_are_those_of_the_bundle_even_in_used_caches(
    bundle: Bundle, stepper: Stepper, tokenizer: Tokenizer
) -> None:
    manifest = bundle.manifest
    assert golden_cases(stepper, tokenizer, manifest.recipe, manifest.model.eos) == manifest.golden
    assert golden_cases(stepper, tokenizer, manifest.recipe, manifest.model.eos) == manifest.golden


def test_a_long_prompt_has_the_same_answer_in_other_chunks(
    bundle: Bundle, engine: Engine, stepper: Stepper, tokenizer: Tokenizer
) -> None:
    prompt = "ROMEO:\nBut, soft! what light through yonder window breaks?\n" * 12
    recipe = replace(bundle.manifest.recipe, golden=Golden((prompt,), 6))
    narrow = Stepper(engine, replace(recipe.shapes, chunk=48, slots=1))
    (case,) = golden_cases(stepper, tokenizer, recipe, ())
    (other,) = golden_cases(narrow, tokenizer, recipe, ())
    assert len(case.prompt_tokens) > stepper.shapes.chunk
    assert (other.prompt_tokens, other.tokens) == (case.prompt_tokens, case.tokens)


def test_a_golden_answer_is_cut_before_its_end_token(bundle: Bundle, stepper: Stepper, tokenizer: Tokenizer) -> None:
    recipe, case = best(bundle)
    end = case.tokens[len(case.tokens) // 2]
    (cut,) = golden_cases(stepper, tokenizer, recipe, (end,))
    assert cut.tokens == case.tokens[: case.tokens.index(end)]
    assert cut.margin >= case.margin


def test_a_golden_answer_is_cut_where_it_is_ambiguous(
    bundle: Bundle, stepper: Stepper, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = bundle.manifest
    margins: dict[str, list[float]] = {case.prompt: [] for case in manifest.golden}
    for count in range(1, 9):
        recipe = replace(manifest.recipe, golden=Golden(tuple(margins), count))
        for case in golden_cases(stepper, tokenizer, recipe, ()):
            margins[case.prompt].append(case.margin)
    places = {
        prompt: place
        for prompt, least in margins.items()
        for place in reversed(range(1, len(least)))
        if least[place] < least[place - 1]
    }
    for prompt, place in places.items():
        monkeypatch.setattr(verify, "MIN_MARGIN", (margins[prompt][place] + margins[prompt][place - 1]) / 2)
        (cut,) = golden_cases(stepper, tokenizer, replace(manifest.recipe, golden=Golden((prompt,), 24)), ())
        (whole,) = (case for case in manifest.golden if case.prompt == prompt)
        assert (cut.tokens, cut.margin) == (whole.tokens[:place], margins[prompt][place - 1])
    assert places


def test_a_golden_answer_is_as_long_as_the_recipe_says(bundle: Bundle, stepper: Stepper, tokenizer: Tokenizer) -> None:
    recipe, case = best(bundle)
    recipe = replace(recipe, golden=Golden((case.prompt,), 2))
    assert [found.tokens for found in golden_cases(stepper, tokenizer, recipe, ())] == [case.tokens[:2]]


def test_prompts_that_are_all_ambiguous_are_refused(
    bundle: Bundle, stepper: Stepper, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "MIN_MARGIN", 1e9)
    with pytest.raises(VerificationError, match=r"expected a clear first token .* choose other prompts"):
        golden_cases(stepper, tokenizer, bundle.manifest.recipe, ())
