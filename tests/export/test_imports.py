# SPDX-License-Identifier: Apache-2.0
"""Quantised checkpoints as a whole: the exported graph computes what the dequantised checkpoint's does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import yaml
from numpy.typing import NDArray

import packers
import quantised_models
import small_models
from mistakes import config, recipe
from orinkit.engines.base import Profile, StepInputs
from orinkit.engines.ort import OrtEngine
from orinkit.errors import CheckpointError, ConfigError
from orinkit.recipe import Recipe
from orinkit_export import imports, plan, quantise, safetensors, verify
from orinkit_export.checkpoint import CONFIG, WEIGHTS, Checkpoint
from orinkit_export.inspect import describe
from packers import STYLES
from programs import SMALL, TARGET, small_desk, succeed, tensors
from quantised_models import PROJECTIONS, export
from small_models import CAPACITY, CHUNK, windows

WIDE = small_models.recipe("float32", method="none")
KEPT = small_models.recipe("float32", method="import", group_size=32, head="float16")
MAX_KL = 1e-9
"""Largest KL divergence (nats) of two float32 graphs that differ in the order of sums."""


def logits(checkpoint: Checkpoint, folder: Path, how: Recipe) -> NDArray[np.float32]:
    """Of one sequence, in two chunks."""
    spec, path = export(checkpoint, folder, how)
    engine = OrtEngine(path, windows(spec), threads=1)
    context = engine.context(Profile("test", CHUNK, 1), engine.caches(1, CAPACITY, CHUNK))
    found = []
    for past, ids in enumerate(np.random.default_rng(1).integers(0, spec.vocab, (2, CHUNK)).astype(np.int32)):
        edges, rows = np.array([0, CHUNK], np.int32), np.arange(CHUNK, dtype=np.int32)
        step = StepInputs(ids, edges, np.array([past * CHUNK], np.int32), np.zeros(1, np.int32), rows)
        found.append(context.run(step).copy())
    return np.concatenate(found)


def kinds(folder: Path) -> dict[str, str]:
    """op_type of every node of the graph in `folder`."""
    return {str(node.name): node.op_type for node in ir.load(folder / "model.onnx").graph}


CASES = [
    ("qwen3_5-2-4", "awq-gemm", 32),
    ("llama3", "awq-gemm", 128),
    ("qwen2", "awq-gemv", 64),
    ("qwen3_5-2-4", "gptq", 64),
    ("mistral", "gptq-symmetric", 128),
    ("qwen3_5-2-4", "gptq-act-order", 32),
    ("qwen2", "gptq_v2", 64),
    ("llama3", "gptq_v2-act-order", 32),
    ("qwen3_5-2-2", "compressed", 32),
    ("qwen3", "compressed-symmetric", 128),
    ("qwen3_5-2-6", "compressed-act-order", 32),
]


@pytest.mark.parametrize(("name", "style", "group_size"), CASES)
def test_logits_are_those_of_the_dequantised_checkpoint(name: str, style: str, group_size: int, tmp_path: Path) -> None:
    quantised, floats = quantised_models.write(tmp_path, name, STYLES[style], group_size)
    found, expected = logits(quantised, tmp_path / "a", KEPT), logits(floats, tmp_path / "b", WIDE)
    assert verify.kl_divergence(expected, found).max() < MAX_KL
    assert np.ptp(expected) > 1
    op_types = kinds(tmp_path / "a")
    parts = {".qkv", ".o", ".gate_up", ".down", ".qkvz", ".out"}
    assert all((op_types[node] == "OrinInt4Gemm") == node.endswith(tuple(parts)) for node in op_types)


@pytest.mark.parametrize("style", ["gptq_v2-act-order", "awq-gemm"])
def test_a_quantised_head(style: str, tmp_path: Path) -> None:
    """It is imported whatever the recipe says of heads."""
    quantised, floats = quantised_models.write(
        tmp_path, "llama3", STYLES[style], 32, rf"({PROJECTIONS}|lm_head.weight)"
    )
    found, expected = logits(quantised, tmp_path / "a", KEPT), logits(floats, tmp_path / "b", WIDE)
    assert verify.kl_divergence(expected, found).max() < MAX_KL
    assert kinds(tmp_path / "a")["head"] == "OrinInt4Gemm"


def test_what_the_checkpoint_leaves_wide_stays_wide(tmp_path: Path) -> None:
    """But for embedding and head, which the recipe may quantise."""
    quantised, floats = quantised_models.write(
        tmp_path, "qwen3_5-2-4", STYLES["compressed"], 32, r"mlp\.\w+_proj\.weight"
    )
    found, expected = logits(quantised, tmp_path / "a", KEPT), logits(floats, tmp_path / "b", WIDE)
    assert verify.kl_divergence(expected, found).max() < MAX_KL
    op_types = kinds(tmp_path / "a")
    products = {node.split(".", 2)[-1] for node, op_type in op_types.items() if op_type == "OrinInt4Gemm"}
    assert products == {"gate_up", "down"}
    export(quantised, tmp_path / "c", small_models.recipe("float16", method="import", group_size=32, head="int4"))
    assert kinds(tmp_path / "c") == op_types | {"head": "OrinInt4Gemm"}


# Settings


def alone(folder: Path, settings: Any, **suffixes: Any) -> Checkpoint:
    """A checkpoint with the tensors lm_head.SUFFIX and the settings."""
    return packers.alone(folder, {"lm_head": {name: np.ones((1, 1), np.int32) for name in suffixes}}, settings)


@pytest.mark.parametrize("settings", [None, {}])
def test_a_float_checkpoint_has_no_format(settings: Any, tmp_path: Path) -> None:
    assert imports.stored_format(alone(tmp_path, settings, qweight=1), is_tied=False) is None


@pytest.mark.parametrize("method", ["modelopt", "auto-round", "bitsandbytes", "fp8", None, 4, ["awq"]])
def test_another_method_of_quantisation(method: Any, tmp_path: Path) -> None:
    checkpoint = alone(tmp_path, {"quant_method": method, "bits": 4}, qweight=1)
    says = r"quant_method: expected one of awq, gptq, compressed-tensors, found .*; use the float checkpoint"
    with pytest.raises(CheckpointError, match=says):
        imports.stored_format(checkpoint, is_tied=False)


@pytest.mark.parametrize("settings", [4, "awq", ["awq"]])
def test_settings_that_are_no_object(settings: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="quantization_config: expected an object, found"):
        imports.stored_format(alone(tmp_path, settings, qweight=1), is_tied=False)


@pytest.mark.parametrize("style", ["awq-gemm", "gptq", "compressed"])
def test_settings_without_quantised_modules(style: str, tmp_path: Path) -> None:
    """As somebody leaves them who dequantises a checkpoint."""
    checkpoint = alone(tmp_path, STYLES[style].settings(32), weight=1)
    says = r"expected modules with (qweight|weight_packed), as config\.json says .*, found none; .* remove quantiz"
    with pytest.raises(CheckpointError, match=says):
        imports.stored_format(checkpoint, is_tied=False)


def test_a_quantised_head_that_is_tied(tmp_path: Path) -> None:
    checkpoint = alone(tmp_path, STYLES["gptq"].settings(32), qweight=1)
    assert imports.stored_format(checkpoint, is_tied=False)
    with pytest.raises(CheckpointError, match="lm_head: expected the embedding, and a head that is tied to it, to be "):
        imports.stored_format(checkpoint, is_tied=True)


def test_a_quantised_embedding(tmp_path: Path) -> None:
    words = {"weight_packed": np.ones((1, 1), np.int32)}
    checkpoint = packers.alone(tmp_path, {"model.embed_tokens": words}, STYLES["compressed"].settings(32))
    with pytest.raises(
        CheckpointError, match=r"model\.embed_tokens: expected the embedding, .* to be wide, found it q"
    ):
        imports.stored_format(checkpoint, is_tied=False)


# Recipes


def quantised_desk(folder: Path, style: str) -> Path:
    """A folder with `recipe.yaml` and a small quantised checkpoint with its tokenizer."""
    small_desk(folder)
    quantised, _ = quantised_models.write(folder / "models", "qwen3_5-2-4", STYLES[style], 32)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(quantised.folder / name, folder / "checkpoint" / name)
    settings = SMALL | {"quantise": {"method": "import", "group_size": 32}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


def without_zero_points(folder: Path) -> None:
    path = folder / "checkpoint" / WEIGHTS
    kept = {name: array for name, array in tensors(path.parent).items() if not name.endswith("0.mlp.up_proj.qzeros")}
    safetensors.write(path, kept)


@pytest.mark.parametrize("style", ["gptq_v2-act-order", "compressed-symmetric"])
def test_a_build(style: str, tmp_path: Path) -> None:
    """With float16 between the ops; the build compares graph and references."""
    folder = quantised_desk(tmp_path, style)
    succeed("orin-export", "build", "recipe.yaml", "--target", TARGET, "-o", "out", cwd=folder)
    planned = plan.read(folder / "recipe.yaml")
    initializers = ir.load(folder / "out/model.onnx").graph.initializers
    stored = {name: value.const_value for name, value in initializers.items()}
    assert set(stored) == {name for weight in planned.stored() for name in quantise.names_of(weight, planned.recipe)}
    assert any(name.endswith(".columns") for name in stored) == STYLES[style].act_order
    assert planned.unused() == {"model.visual": 1, "mtp.fc": 1}
    assert planned.data_bytes() == sum(tensor.nbytes for tensor in stored.values() if tensor is not None)


def test_what_inspect_says(tmp_path: Path) -> None:
    lines = list(describe(plan.read(quantised_desk(tmp_path, "awq-gemm") / "recipe.yaml")))
    assert [line.split()[:2] for line in lines if line.endswith(" MB")] == [
        ["embedding", "float16"],
        ["float32", "float32"],
        ["head", "int4-g32"],
        ["imported", "int4"],
        ["wide", "float16"],
        ["total", lines[-3].split()[1]],
    ]


BAD: dict[str, tuple[str, Callable[[Path], object], type[Exception], str]] = {
    "another method": (
        "gptq",
        recipe(quantise={"method": "rtn", "group_size": 32}),
        ConfigError,
        r"recipe\.yaml: quantise: method: expected import, as .*checkpoint is quantised already, found rtn; write quan",
    ),
    "a float checkpoint": (
        "gptq",
        config(quantization_config=None),
        ConfigError,
        r"recipe\.yaml: quantise: method: expected another method than import, as .*checkpoint is not quantised \(conf",
    ),
    "a method that nobody knows": (
        "gptq",
        config(quantization_config={"quant_method": "modelopt"}),
        CheckpointError,
        "quant_method: expected one of awq, gptq, compressed-tensors, found 'modelopt'",
    ),
    "a missing tensor": (
        "awq-gemm",
        without_zero_points,
        CheckpointError,
        "no tensor 'model.layers.0.mlp.up_proj.qzeros'",
    ),
}


@pytest.mark.parametrize(("style", "act", "error", "says"), BAD.values(), ids=BAD)
def test_what_is_refused_before_a_build(
    style: str, act: Callable[[Path], object], error: type[Exception], says: str, tmp_path: Path
) -> None:
    folder = quantised_desk(tmp_path, style)
    act(folder)
    with pytest.raises(error, match=says):
        plan.read(folder / "recipe.yaml")
