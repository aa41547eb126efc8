# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orinkit.errors import CheckpointError
from orinkit_export import safetensors
from orinkit_export.checkpoint import INDEX, WEIGHTS, Checkpoint
from tiny_checkpoint import EMBED, NORM, UP, Tensors, sharded, single, tensors

DEMO = Path(__file__).parents[1] / "data" / "demo-model"


@pytest.mark.parametrize("make", [single, sharded])
def test_reads_every_tensor_in_float32(tmp_path: Path, make: Any) -> None:
    checkpoint = Checkpoint.open(make(tmp_path))
    assert checkpoint.names == {EMBED, NORM, UP}
    assert [checkpoint.dtype(name) for name in (EMBED, NORM, UP)] == ["BF16", "F32", "F16"]
    assert checkpoint.shape(UP) == (6, 4)
    for name, array in tensors().items():
        values = checkpoint.read(name, array.shape)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, array.astype(np.float32))
    np.testing.assert_array_equal(checkpoint.read_rows(EMBED, 2, 5), tensors()[EMBED][2:5].astype(np.float32))
    assert checkpoint.read_rows(EMBED, 8, 8).shape == (0, 4)


def test_lists_the_files_that_it_reads(tmp_path: Path) -> None:
    sharded(tmp_path)
    for name in ("tokenizer.json", "chat_template.jinja", "README.md", "training_args.bin"):
        (tmp_path / name).write_text("x")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.tokenizer_files() == {name: tmp_path / name for name in ("tokenizer.json", "chat_template.jinja")}
    names = ("a.safetensors", "b.safetensors", "chat_template.jinja", "config.json", INDEX, "tokenizer.json")
    assert checkpoint.files() == tuple(tmp_path / name for name in names)


def test_opens_the_demo_checkpoint() -> None:
    checkpoint = Checkpoint.open(DEMO)
    assert checkpoint.read(EMBED).shape == (checkpoint.config["vocab_size"], checkpoint.config["hidden_size"])
    assert checkpoint.unused(checkpoint.names) == ()
    assert {"tokenizer.json", "chat_template.jinja"} <= set(checkpoint.tokenizer_files())


# Names and settings of text models inside multimodal checkpoints


@pytest.mark.parametrize(
    ("stored", "head"),
    [
        ("model.", "lm_head.weight"),
        ("model.language_model.", "lm_head.weight"),
        ("language_model.model.", "language_model.lm_head.weight"),
    ],
)
def test_finds_the_text_model(tmp_path: Path, stored: str, head: str) -> None:
    content = {name.replace("model.", stored, 1): array for name, array in tensors().items()}
    others: Tensors = {"visual.patch.weight": np.ones((2, 2), np.float32), "mtp.fc.weight": np.ones(3, np.float32)}
    checkpoint = Checkpoint.open(single(tmp_path, {**content, **others, head: tensors()[EMBED]}))
    assert checkpoint.resolve(UP) == f"{stored}layers.0.mlp.up_proj.weight"
    assert checkpoint.resolve("lm_head.weight") == head
    assert checkpoint.resolve(checkpoint.resolve(UP)) == checkpoint.resolve(UP)
    assert checkpoint.shape(UP) == (6, 4)
    np.testing.assert_array_equal(checkpoint.read(UP), tensors()[UP].astype(np.float32))
    assert UP in checkpoint
    assert "model.layers.0.mlp.up_proj.bias" not in checkpoint
    used = [EMBED, NORM, UP, "lm_head.weight"]
    assert checkpoint.unused(used) == ("mtp.fc.weight", "visual.patch.weight")


def test_a_missing_tensor_names_the_nearest(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(single(tmp_path))
    with pytest.raises(
        CheckpointError, match=r"no tensor 'model.layers.0.mlp.up_proj.bias' \(the nearest is .*weight'"
    ):
        checkpoint.read("model.layers.0.mlp.up_proj.bias")
    with pytest.raises(CheckpointError, match=r"no tensor 'zzz' \(none of 3 is like it\); does config.json fit"):
        checkpoint.resolve("zzz")


def test_text_config_is_filled_from_the_top_level(tmp_path: Path) -> None:
    config = {
        "model_type": "qwen3_5",
        "tie_word_embeddings": True,
        "eos_token_id": 7,
        "text_config": {"model_type": "qwen3_5_text", "hidden_size": 4, "eos_token_id": None, "bos_token_id": None},
    }
    checkpoint = Checkpoint.open(single(tmp_path, config=config))
    assert checkpoint.config == config
    assert checkpoint.text_config == {
        "model_type": "qwen3_5_text",
        "tie_word_embeddings": True,
        "eos_token_id": 7,
        "hidden_size": 4,
        "bos_token_id": None,
    }


def test_text_config_of_a_text_model_is_its_config(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(single(tmp_path))
    assert checkpoint.text_config == checkpoint.config == {"model_type": "llama"}


# Values


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_refuses_values_that_are_not_finite(tmp_path: Path, dtype: str, value: float, shown: str) -> None:
    array = np.ones((4, 3)).astype(dtype)
    array[2, 1] = value
    single(tmp_path, {UP: array})
    message = rf"{WEIGHTS}: tensor '{UP}': .*found {shown} at \[2, 1\].*--allow-nonfinite"
    checkpoint = Checkpoint.open(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read(UP)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read_rows(UP, 1, 3)
    assert checkpoint.read_rows(UP, 0, 2).all()
    values = Checkpoint.open(tmp_path, allow_nonfinite=True).read(UP)
    np.testing.assert_array_equal(values, array.astype(np.float32))


def test_refuses_a_signalling_nan_without_a_warning(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(single(tmp_path, {NORM: np.array([0x7D00], np.uint16).view(np.float16)}))
    with pytest.raises(CheckpointError, match=r"found nan at \[0\]"):
        checkpoint.read(NORM)


def test_refuses_a_matrix_of_zeros(tmp_path: Path) -> None:
    zeros = np.zeros((5, 4), np.float16)
    zeros[1] = -0.0
    single(tmp_path, {UP: zeros, NORM: np.zeros(4, np.float32), EMBED: tensors()[EMBED]})
    checkpoint = Checkpoint.open(tmp_path)
    message = f"tensor '{UP}': .*found zeros only.*--allow-nonfinite"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read(UP)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read_rows(UP, 3, 4)
    assert not checkpoint.read(NORM).any()
    assert not Checkpoint.open(tmp_path, allow_nonfinite=True).read(UP).any()


def test_rows_of_zeros_in_a_trained_matrix_are_fine(tmp_path: Path) -> None:
    array = np.zeros((6, 4), np.float16)
    array[5, 3] = 1
    assert not Checkpoint.open(single(tmp_path, {EMBED: array})).read_rows(EMBED, 0, 5).any()


def test_refuses_the_wrong_shape_dtype_and_rows(tmp_path: Path) -> None:
    packed = np.arange(8, dtype=np.int32).reshape(4, 2)
    scalar = np.float32(3) * np.ones((), np.float32)
    checkpoint = Checkpoint.open(single(tmp_path, {UP: tensors()[UP], "qweight": packed, "scale": scalar}))
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: tensor '{UP}': expected shape \(4, 6\), found \(6, 4\)"):
        checkpoint.read(UP, (4, 6))
    with pytest.raises(CheckpointError, match=r"expected shape \(8,\), found \(4, 2\)"):
        checkpoint.read_stored("qweight", (8,))
    with pytest.raises(
        CheckpointError, match="tensor 'qweight': expected BF16, F16, F32, found I32; use the checkpoint"
    ):
        checkpoint.read("qweight")
    np.testing.assert_array_equal(checkpoint.read_stored("qweight", (4, 2)), packed)
    for name, start, stop in ((UP, 0, 7), (UP, -1, 2), (UP, 3, 2), ("scale", 0, 1)):
        with pytest.raises(CheckpointError, match=f"tensor '{name}': expected rows of shape .*found {start}:{stop}"):
            checkpoint.read_rows(name, start, stop)
    assert checkpoint.read("scale", ()) == 3


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64"])
def test_reads_integers_as_stored(tmp_path: Path, dtype: str) -> None:
    array = np.array([[np.iinfo(dtype).min, np.iinfo(dtype).max]], dtype)
    values = Checkpoint.open(single(tmp_path, {"t": array})).read_stored("t")
    assert values.dtype == array.dtype
    np.testing.assert_array_equal(values, array)


# Laziness


def bytes_read() -> int:
    """Bytes that this process has asked the system to read."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="counts reads through /proc/self/io")
def test_reads_no_more_than_asked_of_a_large_file(tmp_path: Path) -> None:
    rows = 3 << 20  # of 1 KiB: 3 GiB, a hole on disk except for two places
    layout = {"model.big.weight": ("BF16", (rows, 512)), NORM: ("F32", (4,))}
    single(tmp_path)
    head = safetensors.header(layout)
    with (tmp_path / WEIGHTS).open("wb") as file:
        file.write(head + b"\x80\x3f" * 512)
        os.truncate(file.fileno(), len(head) + (rows << 10))
        file.seek(0, os.SEEK_END)
        file.write(np.arange(4, dtype=np.float32).tobytes())
    tracemalloc.start()
    before = bytes_read()
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.read(NORM).tolist() == [0, 1, 2, 3]
    assert (checkpoint.read_rows("model.big.weight", 0, 2) == [[1], [0]]).all()
    assert not checkpoint.read_rows("model.big.weight", rows - 2, rows).any()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bytes_read() - before < 32 << 20
    assert peak < 64 << 20
