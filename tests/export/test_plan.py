# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from mistakes import DOWN, Act, config, edited, file, recipe, removed, weight
from orinkit import target
from orinkit.errors import CheckpointError, ConfigError
from orinkit_export import plan, quantise, safetensors
from orinkit_export.build import build
from orinkit_export.checkpoint import WEIGHTS
from orinkit_export.plan import Plan
from programs import CHECKPOINT, DEMO, TARGET, desk, listing, small_desk, tensors, write_recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return desk(tmp_path)


def read(folder: Path) -> Plan:
    return plan.read(folder / "recipe.yaml")


def with_tensors(shapes: dict[str, tuple[int, ...]]) -> Act:
    """More tensors in the checkpoint."""

    def act(folder: Path) -> None:
        more = {name: np.ones(shape, ml_dtypes.bfloat16) for name, shape in shapes.items()}
        safetensors.write(folder / "checkpoint" / WEIGHTS, tensors(folder / "checkpoint") | more)

    return act


def test_the_plan_of_the_demo() -> None:
    planned = plan.read(DEMO)
    assert planned.recipe.name == "demo"
    assert planned.checkpoint.folder.resolve() == CHECKPOINT
    assert (planned.spec.architecture, planned.spec.hidden, len(planned.spec.layers)) == ("qwen3.5", 256, 4)
    assert planned.spec.eos == (4095, 4093)
    assert planned.tokenizer.decode(planned.tokenizer.encode("ROMEO:", 64)) == "ROMEO:"
    assert planned.unused() == {}


def test_weights_that_embedding_and_head_share_count_once(tmp_path: Path) -> None:
    demo, untied = plan.read(DEMO), plan.read(small_desk(tmp_path) / "recipe.yaml")
    assert (demo.spec.tied, demo.parameters()) == (True, 5_526_680)
    opened = untied.checkpoint
    unused = opened.unused({name for weight in untied.stored() for name in weight.sources})
    assert not untied.spec.tied
    assert untied.parameters() == sum(np.prod(opened.shape(name)) for name in opened.names - set(unused))


@pytest.mark.parametrize(("embedding", "stored"), [("float16", "head.weight"), ("int4", "embedding.weight")])
def test_the_head_is_found_whether_it_is_stored_or_shared(embedding: str, stored: str, folder: Path) -> None:
    recipe(quantise={"method": "rtn", "embedding": embedding})(folder)
    assert read(folder).head().name == stored


def test_evaluation_sequences_are_no_longer_than_the_capacity(folder: Path) -> None:
    recipe(evaluation={"sequences": 3, "tokens": 512})(folder)
    assert read(folder).evaluation_ids.shape == (3, 64)


def test_calibration_sequences_longer_than_the_capacity_are_refused(folder: Path) -> None:
    recipe(quantise={"method": "gptq"}, calibration={"tokens": 65})(folder)
    with pytest.raises(ConfigError, match="calibration: tokens: expected at most the capacity of 64, found 65"):
        read(folder)
    recipe(quantise={"method": "rtn"}, calibration={"tokens": 65})(folder)
    read(folder)


def test_hidden_rows_come_with_the_sizes(folder: Path) -> None:
    """Input and output of a layer, float32; for the calibration text three times two models' hidden rows, and the
    widest rows within a layer."""
    recipe(evaluation={"sequences": 3, "tokens": 32}, calibration={"sequences": 2, "tokens": 64})(folder)
    assert read(folder).hidden_bytes() == 2 * 4 * 256 * 3 * 32
    recipe(
        quantise={"method": "awq"},
        evaluation={"sequences": 3, "tokens": 32},
        calibration={"sequences": 2, "tokens": 64},
    )(folder)
    assert read(folder).hidden_bytes() == 4 * (2 * 256 * 3 * 32 + (6 * 256 + 768) * 2 * 64)


def test_an_evaluation_text_of_ones_own_lies_beside_the_recipe(folder: Path) -> None:
    file("mine.txt", "To be, or not to be. " * 9)(folder)
    recipe(evaluation={"text": "mine.txt", "sequences": 1, "tokens": 16})(folder)
    planned = read(folder)
    assert planned.tokenizer.decode(planned.evaluation_ids[0].tolist()).startswith("To be, or not to be. To be")


def test_sizes_are_those_of_the_bundle(tmp_path: Path) -> None:
    recipe_path = write_recipe(tmp_path / "recipe.yaml", quantise={"method": "rtn", "head": "int8", "group_size": 64})
    planned = plan.read(recipe_path, CHECKPOINT)
    made = build(planned, target.read(TARGET), tmp_path / "out")
    stored = ir.load(made.graph).graph.initializers.values()
    assert planned.data_bytes() == sum(value.const_value.nbytes for value in stored if value.const_value is not None)


def test_a_tied_head_is_stored_once_where_its_format_is_that_of_the_embedding(folder: Path) -> None:
    apart = {weight.name for weight in read(folder).stored()}
    recipe(quantise={"method": "rtn", "head": "float16"})(folder)
    assert apart - {weight.name for weight in read(folder).stored()} == {"head.weight"}


def test_formats_are_those_of_matrices_that_the_model_has(folder: Path) -> None:
    recipe(quantise={"method": "rtn", "formats": {"layers.3.qkv": "int8", "layers.0.ba": "int8"}})(folder)
    with pytest.raises(ConfigError, match=r"formats: expected matrices of the model, found 'layers\.0\.ba'"):
        read(folder)
    recipe(quantise={"method": "rtn", "formats": {"layers.3.qkv": "int8", "head": "int8"}})(folder)
    found = {weight.name: str(quantise.chosen_format(weight, read(folder).recipe)) for weight in read(folder).stored()}
    assert (found["layers.3.qkv.weight"], found["layers.0.qkvz.weight"]) == ("int8", "int4-g128")


def test_a_budget_that_no_formats_keep_to_is_refused(folder: Path) -> None:
    recipe(quantise={"method": "rtn", "bits": 4.1}, calibration={"tokens": 16})(folder)
    with pytest.raises(ConfigError, match=r"quantise: bits: expected at least 4\.125 for this model, found 4\.1$"):
        read(folder)
    recipe(quantise={"method": "rtn", "bits": 4.125}, calibration={"tokens": 16})(folder)
    planned = read(folder)
    sizes = {weight.name: quantise.stored_bytes(weight, planned.recipe) for weight in planned.undecided()}
    assert sizes["layers.0.down.weight"] == 256 * 768 * 4.125 / 8
    assert planned.hidden_bytes() == 2 * 4 * 256 * (16 + 16 * 4 * (1 + len(sizes)))


def test_weights_are_not_read_before_they_are_stored(folder: Path) -> None:
    weight(DOWN, float("nan"))(folder)
    read(folder)


def test_another_checkpoint_takes_the_place_of_the_recipes(folder: Path) -> None:
    (folder / "checkpoint").rename(folder / "other")
    with pytest.raises(CheckpointError, match="checkpoint: expected a checkpoint folder, found none"):
        read(folder)
    assert plan.read(folder / "recipe.yaml", folder / "other").checkpoint.folder == folder / "other"


def test_what_is_not_used_is_counted(folder: Path) -> None:
    with_tensors({"model.visual.a": (2, 3), "model.visual.b": (4,), "mtp.fc.weight": (2, 2)})(folder)
    assert read(folder).unused() == {"model.visual": 2, "mtp.fc": 1}


def test_nothing_is_written(folder: Path) -> None:
    before = listing(folder)
    read(folder)
    assert listing(folder) == before


GOOD: dict[str, Act] = {
    "no generation settings": removed("checkpoint/generation_config.json"),
    "no chat template": removed("checkpoint/chat_template.jinja"),
    "a template that refuses a bare question": file(
        "checkpoint/chat_template.jinja", "{{ raise_exception('a system message comes first') }}"
    ),
    "no end token": lambda folder: [
        edited(name, lambda data: data.pop("eos_token_id"))(folder)
        for name in ("config.json", "generation_config.json")
    ],
    "the last capacity": recipe(shapes={"capacity": 2048, "chunk": 32}),
    "a prompt that just fits": recipe(golden={"prompts": [" no" * 60], "tokens": 4}),
}


@pytest.mark.parametrize("act", GOOD.values(), ids=GOOD)
def test_what_is_unusual_is_accepted(act: Act, folder: Path) -> None:
    act(folder)
    assert read(folder).tokenizer.num_ids == 4096


def test_end_tokens_come_from_the_generation_settings_or_else_from_the_config(folder: Path) -> None:
    assert read(folder).spec.eos == (4095, 4093)
    removed("checkpoint/generation_config.json")(folder)
    assert read(folder).spec.eos == (4095,)


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
BAD: dict[str, tuple[Act, type[Exception], str]] = {
    "a prompt that just does not fit": (
        recipe(golden={"prompts": [" no" * 61], "tokens": 4}),
        ConfigError,
        r"recipe\.yaml: golden: prompts: ' no no .*': expected 1 to 60 tokens, found 61: the capacity of 64 tokens",
    ),
    "a prompt of nothing": (
        edited(
            "tokenizer.json",
            lambda data: data.update(normalizer={"type": "Replace", "pattern": {"String": "R"}, "content": ""}),
        ),
        ConfigError,
        "golden: prompts: 'R': expected 1 to 60 tokens, found 0",
    ),
    "a tokenizer that backtracks without end": (
        edited("tokenizer.json", lambda data: data.update(pre_tokenizer={**SPLIT, "pattern": {"Regex": "(a+)+$"}})),
        CheckpointError,
        r"tokenizer\.json: expected one that splits every text, found: text: .* \(aaaaaaaa\.\.\.!\).*get it again",
    ),
    "a config of another size": (
        config(intermediate_size=512),
        CheckpointError,
        r"gate_up\.weight: expected 262144 weights for \[1024, 256\] by config\.json, found 393216 in .*; does config",
    ),
    "more layers than there are": (
        config(num_hidden_layers=5, layer_types=None),
        CheckpointError,
        r"no tensor 'model\.layers\.4\..*does config\.json fit the weights",
    ),
}


@pytest.mark.parametrize(("act", "error", "says"), BAD.values(), ids=BAD)
def test_what_does_not_fit_together_is_refused(act: Act, error: type[Exception], says: str, folder: Path) -> None:
    if "'R'" in says:
        recipe(golden={"prompts": ["R"], "tokens": 4})(folder)
    act(folder)
    with pytest.raises(error, match=says):
        read(folder)
