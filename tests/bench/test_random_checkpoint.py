# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from orinkit_export.checkpoint import Checkpoint

SCRIPT = Path(__file__).parents[2] / "bench" / "random_checkpoint.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("random_checkpoint", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small(script: ModuleType, shape: str) -> dict[str, Any]:
    """The named family with four narrow layers."""
    config: dict[str, Any] = script.model_config(shape)
    config |= {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 1024}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    if "linear_num_key_heads" in config:
        config |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:4]
    return config


def test_every_shape_has_the_parameters_of_its_model(script: ModuleType) -> None:
    published = {  # numel of the text models in transformers, tied heads once
        "qwen3.5-0.8b": 752_393_024,
        "qwen3.5-2b": 1_881_825_088,
        "qwen3.5-4b": 4_205_751_296,
        "qwen3.5-9b": 8_953_803_264,
        "qwen3-0.6b": 596_049_920,
        "qwen3-8b": 8_190_735_360,
        "llama-3.2-1b": 1_235_814_400,
        "llama-3.1-8b": 8_030_261_248,
    }
    layouts = {shape: script.layout(script.model_config(shape)) for shape in script.SHAPES}
    assert {shape: sum(map(math.prod, layout.values())) for shape, layout in layouts.items()} == published


@pytest.mark.parametrize("shape", ["qwen3.5-4b", "qwen3.5-9b", "qwen3-0.6b", "llama-3.1-8b"])
def test_writes_a_checkpoint_that_opens(script: ModuleType, tmp_path: Path, shape: str) -> None:
    config, limit = small(script, shape), 1 << 20
    script.write_checkpoint(tmp_path / "out", config, 0, limit)
    checkpoint = Checkpoint.open(tmp_path / "out")
    layout = script.layout(config)
    assert checkpoint.names == set(layout)
    assert ("lm_head.weight" in checkpoint) != config["tie_word_embeddings"]
    for name, expected in layout.items():
        assert checkpoint.dtype(name) == "BF16"
        assert np.abs(checkpoint.read(name, expected)).max() < 8
    shards = [path for path in checkpoint.files() if path.suffix == ".safetensors"]
    assert len(shards) > 1
    assert all(path.stat().st_size < limit + 4096 for path in shards)
    assert config.items() <= checkpoint.config.items()


def test_values_keep_activations_of_a_usual_size(script: ModuleType, tmp_path: Path) -> None:
    script.write_checkpoint(tmp_path / "out", small(script, "qwen3.5-0.8b"), 0, 1 << 30)
    checkpoint = Checkpoint.open(tmp_path / "out")
    first, last = "model.layers.0", "model.layers.3"
    assert np.abs(checkpoint.read(f"{first}.input_layernorm.weight")).max() < 0.3
    assert np.abs(checkpoint.read(f"{last}.self_attn.q_norm.weight")).max() < 0.3
    assert np.abs(checkpoint.read(f"{first}.linear_attn.norm.weight") - 1).max() < 0.3
    decay = np.exp(checkpoint.read(f"{first}.linear_attn.A_log"))
    assert decay.min() > 0.99
    assert decay.max() < 16.1
    step = np.log1p(np.exp(checkpoint.read(f"{first}.linear_attn.dt_bias")))
    assert step.min() > 0.0009
    assert step.max() < 0.11
    assert checkpoint.read(f"{first}.linear_attn.conv1d.weight").std() == pytest.approx(0.5, rel=0.1)
    matrix = checkpoint.read(f"{first}.mlp.up_proj.weight")
    assert matrix.std() == pytest.approx(0.02, rel=0.02)
    groups = matrix.reshape(-1, 128)
    assert len(np.unique(groups, axis=0)) == len(groups)


def test_plain_norms_are_near_one(script: ModuleType, tmp_path: Path) -> None:
    script.write_checkpoint(tmp_path / "out", small(script, "qwen3-0.6b"), 0, 1 << 30)
    checkpoint = Checkpoint.open(tmp_path / "out")
    for name in ("model.norm.weight", "model.layers.0.self_attn.k_norm.weight"):
        assert np.abs(checkpoint.read(name) - 1).max() < 0.3


def test_the_seed_decides_the_values(script: ModuleType, tmp_path: Path) -> None:
    config = small(script, "llama-3.2-1b")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        script.write_checkpoint(tmp_path / name, config, seed, 1 << 30)
    a, b, c = (next((tmp_path / name).glob("*.safetensors")).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_the_tokenizer_fits_the_config(script: ModuleType, tmp_path: Path) -> None:
    script.write_checkpoint(tmp_path / "out", small(script, "qwen3-0.6b"), 0, 1 << 30)
    checkpoint = Checkpoint.open(tmp_path / "out")
    files = checkpoint.tokenizer_files()
    assert set(files) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}
    tokenizer = Tokenizer.from_file(str(files["tokenizer.json"]))
    assert tokenizer.get_vocab_size() <= checkpoint.config["vocab_size"]
    assert checkpoint.config["eos_token_id"] == tokenizer.token_to_id("<|im_end|>")
    assert checkpoint.config["pad_token_id"] == tokenizer.token_to_id("<|endoftext|>")
    text = "<|im_start|>user\nGrüße, 世界 123\n\n<|im_end|>\n"
    ids = tokenizer.encode(text).ids
    assert {tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")} <= set(ids)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_refuses_an_existing_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--shape", "qwen3-0.6b", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "expected a folder that does not exist" in done.stderr
    assert not any(tmp_path.iterdir())
