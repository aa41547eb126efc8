# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orinkit import target as targets
from orinkit.errors import CheckpointError, ConfigError
from orinkit.memory.needs import memory_plan
from orinkit.target import Gpu
from orinkit_export import plan, predict, predict_text
from orinkit_export.cli import main
from orinkit_export.predict import Prediction, Subject

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "recipes/demo.yaml"
CHECKPOINT = ROOT / "tests/data/demo-model"
BOARD = ROOT / "targets/agx-orin-64gb-jetpack-6.2.yaml"
HOST = ROOT / "targets/host.yaml"


@pytest.fixture
def config_alone(tmp_path: Path) -> Path:
    shutil.copy(CHECKPOINT / "config.json", tmp_path)
    return tmp_path


def on(gpu: Gpu, subject: Subject, engine: str | None = None) -> Prediction:
    """The prediction for AGX Orin with another GPU."""
    target = targets.read(BOARD)
    return predict.predict(subject, replace(target, board=replace(target.board, gpu=gpu)), engine)


def board_gpu() -> Gpu:
    gpu = targets.read(BOARD).board.gpu
    assert gpu is not None
    return gpu


def cli(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["plan", *map(str, arguments)])


def test_config_alone_tells_what_the_weights_tell(config_alone: Path) -> None:
    known, guessed = predict.read(DEMO), predict.read(DEMO, config_alone)
    assert (known.parts is None, guessed.parts is None) == (False, True)
    assert known.spec == replace(guessed.spec, eos=known.spec.eos)  # generation_config.json was not there
    target = targets.read(BOARD)
    assert predict.predict(known, target).memory.total() == predict.predict(guessed, target).memory.total()
    assert predict.predict(known, target).is_exact


def test_the_weights_are_those_of_the_data_file() -> None:
    found = predict.predict(predict.read(DEMO), targets.read(BOARD)).memory
    (weights,) = (item.nbytes for item in found.items if item.name == "weights")
    assert weights == pytest.approx(plan.read(DEMO).data_bytes(), rel=0.01)


def test_depths_and_prompts_end_at_the_capacity() -> None:
    found = predict.predict(predict.read(DEMO), targets.read(BOARD))
    assert [(step.batch, step.depth) for step in found.decode] == [(b, d) for b in (1, 2, 4) for d in (0, 1024)]
    assert [step.tokens for step in found.prefill] == [128, 512, 1024]


def test_the_engine_is_the_target_s_unless_it_is_named() -> None:
    subject, board = predict.read(DEMO), targets.read(BOARD)
    assert predict.predict(subject, board).memory.engine == "tensorrt"
    assert predict.predict(subject, board, "cuda").memory.engine == "cuda"
    assert predict.predict(subject, targets.read(HOST)).memory.engine == "onnxruntime"
    with pytest.raises(ConfigError, match="expected one of onnxruntime, cuda, tensorrt, found 'gpu'"):
        predict.predict(subject, board, "gpu")


def test_a_host_has_a_memory_plan_but_no_speed() -> None:
    found = predict.predict(predict.read(DEMO), targets.read(HOST))
    assert (found.fit, found.decode, found.prefill, found.fits) == (None, (), (), True)
    assert any("does not say how much memory" in line for line in predict_text.verdict(found))


def test_what_does_not_fit_is_told_with_what_to_change() -> None:
    subject = predict.read(DEMO)
    need = memory_plan(subject.spec, subject.recipe, "tensorrt", subject.parts).total()
    gpu = board_gpu()
    gib = 1 << 30
    tight = (need + 3 * gib / 2) / gib  # system and reserve of a small board
    assert on(replace(gpu, visible_gib=tight + 0.001), subject).fits
    found = on(replace(gpu, visible_gib=tight - 0.001), subject)
    assert not found.fits
    assert found.changes[0].fits
    assert any(line.startswith("does not fit") for line in predict_text.verdict(found))


def test_a_gpu_without_a_clock_has_no_prefill() -> None:
    found = on(replace(board_gpu(), clock_mhz=None), predict.read(DEMO))
    assert found.decode
    assert not found.prefill
    assert not any("prefill" in text for text in found.assumptions)


def test_a_capacity_beyond_the_model_is_refused(config_alone: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "long.yaml"
    recipe.write_text("name: long\ncheckpoint: {path: .}\nshapes: {capacity: 1000000}\n")
    with pytest.raises(ConfigError, match="capacity: expected at most the model's"):
        predict.read(recipe, config_alone)


def test_without_config_json_it_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"hf download Qwen/Qwen3-8B config\.json --local-dir"):
        predict.read(ROOT / "recipes/qwen3-8b.yaml", tmp_path)
    with pytest.raises(CheckpointError, match=r"no such file$"):
        predict.read(DEMO, tmp_path)


def test_json_of_the_verb() -> None:
    data: dict[str, Any] = json.loads(cli(DEMO, "--target", BOARD, "--json").output)
    assert data["memory"]["total_bytes"] == sum(item["nbytes"] for item in data["memory"]["items"])
    assert data["fit"]["fits"]
    assert data["decode"][0]["tokens_per_second"] == pytest.approx(1 / data["decode"][0]["seconds"])


def test_a_board_that_is_too_small_is_an_exit_code(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "targets", tmp_path / "targets")
    board = tmp_path / "targets/boards/agx-orin-64gb.yaml"
    board.write_text(board.read_text().replace("visible_gib: 61.4", "visible_gib: 1.6"))
    told = cli(DEMO, "--target", tmp_path / "targets" / BOARD.name)
    assert told.exit_code == 75
    assert "does not fit" in told.output
