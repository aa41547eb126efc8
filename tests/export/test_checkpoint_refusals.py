# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint folder, its settings and its weight files are refused for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from orinkit.errors import CheckpointError
from orinkit_export import safetensors
from orinkit_export.checkpoint import INDEX, MAX_CONFIG, MAX_INDEX, TOKENIZER_FILES, WEIGHTS, Checkpoint
from tiny_checkpoint import EMBED, NORM, UP, sharded, single, tensors


def refused(folder: Path, message: str) -> str:
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(folder)
    return str(caught.value)


def test_refuses_a_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none", "none: expected a checkpoint folder, found none; download it")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "expected a checkpoint folder")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json: the file is missing"),
        ("{", "config.json: expected JSON"),
        ("[1]", "config.json: expected a JSON object, found a list of 1 items"),
        ("\x00" * (MAX_CONFIG + 1), f"config.json: expected at most {MAX_CONFIG} bytes"),
        ('{"a": 1, "a": 2}', "the name 'a' twice"),
    ],
)
def test_refuses_config(tmp_path: Path, content: str | None, message: str) -> None:
    single(tmp_path)
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    refused(tmp_path, message)


@pytest.mark.parametrize("config", [{"auto_map": {"AutoModel": "modeling_x.X"}}, {"text_config": {"auto_map": {}}}])
def test_refuses_auto_map(tmp_path: Path, config: Any) -> None:
    refused(
        single(tmp_path, config=config), "config.json: expected no code of the author, found the key 'auto_map'; use"
    )


@pytest.mark.parametrize("name", ["modeling_x.py", "setup.PY"])
def test_refuses_code_and_does_not_import_it(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    (single(tmp_path) / name).write_text(f"open({str(marker)!r}, 'w')")
    refused(tmp_path, f"{name}: expected no code in a checkpoint, which orinkit never runs; remove the file")
    assert not marker.exists()


PICKLE = b"cos\nsystem\n(S'touch %s'\ntR."


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "last.CKPT", "model.pkl"])
def test_refuses_pickled_weights_and_does_not_open_them(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(PICKLE % str(tmp_path / "marker").encode())
    refused(tmp_path, f"found '{name}': pickles can run code and are never opened; ask the author for safetensors")
    assert not (tmp_path / "marker").exists()


def test_ignores_a_pickle_beside_safetensors(tmp_path: Path) -> None:
    single(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(PICKLE % str(tmp_path / "marker").encode())
    checkpoint = Checkpoint.open(tmp_path)
    assert tmp_path / "pytorch_model.bin" not in checkpoint.files()
    assert not (tmp_path / "marker").exists()


def test_refuses_a_folder_without_the_usual_weight_files(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).unlink()
    refused(tmp_path, f"expected {WEIGHTS} or {INDEX}, found only 'a.safetensors', 'b.safetensors'; download")
    (tmp_path / "a.safetensors").unlink()
    (tmp_path / "b.safetensors").unlink()
    refused(tmp_path, "found no safetensors; download")


def test_refuses_two_sets_of_weights(tmp_path: Path) -> None:
    single(sharded(tmp_path))
    refused(tmp_path, f"expected one set of weights, found {WEIGHTS} and {INDEX}; remove the older")


@pytest.mark.parametrize(
    "shard",
    [
        "../../x",
        "../a.safetensors",
        "/etc/a.safetensors",
        "sub/a.safetensors",
        "a.bin",
        ".safetensors",
        "a\0.safetensors",
        "a.safetensors\n",
        "x" * 300 + ".safetensors",
        "",
        3,
        None,
        ["a.safetensors"],
    ],
)
def test_refuses_names_in_the_index_that_are_not_plain(tmp_path: Path, shard: Any) -> None:
    sharded(tmp_path, {EMBED: shard, NORM: "b.safetensors", UP: "b.safetensors"})
    message = refused(
        tmp_path, f"{INDEX}: tensor '{EMBED}': expected a plain file name that ends in .safetensors, found"
    )
    assert len(message) < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", f"{INDEX}: expected JSON"),
        ("{}", f"{INDEX}: expected the key 'weight_map'"),
        ('{"weight_map": []}', f"{INDEX}: expected the key 'weight_map'"),
        ('{"weight_map": {}}', f"{INDEX}: expected the key 'weight_map'"),
    ],
)
def test_refuses_an_index_that_is_none(tmp_path: Path, content: str, message: str) -> None:
    (sharded(tmp_path) / INDEX).write_text(content)
    refused(tmp_path, message)


def test_refuses_a_large_index(tmp_path: Path) -> None:
    os.truncate(sharded(tmp_path) / INDEX, MAX_INDEX + 1)
    refused(tmp_path, f"{INDEX}: expected at most {MAX_INDEX} bytes, found more")


def test_refuses_shards_that_disagree_with_the_index(tmp_path: Path) -> None:
    right = {EMBED: "a.safetensors", NORM: "b.safetensors", UP: "b.safetensors"}
    sharded(tmp_path, right | {"model.more": "b.safetensors"})
    refused(tmp_path, f"b.safetensors: tensor 'model.more' of {INDEX} is missing; download both again")
    sharded(tmp_path, {EMBED: "a.safetensors", NORM: "b.safetensors"})
    refused(tmp_path, f"b.safetensors: found tensor '{UP}', {INDEX} has it nowhere; download both again")
    sharded(tmp_path, right | {NORM: "a.safetensors"})
    refused(tmp_path, f"b.safetensors: found tensor '{NORM}', {INDEX} has it in a.safetensors")


def test_refuses_a_tensor_in_two_shards(tmp_path: Path) -> None:
    sharded(tmp_path)
    safetensors.write(tmp_path / "b.safetensors", tensors())
    refused(tmp_path, f"b.safetensors: found tensor '{EMBED}', {INDEX} has it in a.safetensors")


def test_refuses_missing_and_truncated_shards(tmp_path: Path) -> None:
    shard = sharded(tmp_path) / "b.safetensors"
    size = shard.stat().st_size
    os.truncate(shard, size - 5)
    refused(tmp_path, f"b.safetensors: the file is truncated: expected {size} bytes, found {size - 5}")
    shard.unlink()
    refused(tmp_path, "b.safetensors: the file is missing; download the checkpoint again")


@pytest.mark.parametrize("name", ["config.json", INDEX, "a.safetensors", *TOKENIZER_FILES])
@pytest.mark.parametrize("inside", [True, False])
def test_refuses_links(tmp_path: Path, name: str, inside: bool) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    path = sharded(folder) / name
    path.touch()
    blob = folder / "blob" if inside else tmp_path / "blob"
    path.rename(blob)
    path.symlink_to(blob)
    message = rf"{name}: expected a regular file, found a symbolic link.*hf download REPOSITORY --local-dir FOLDER"
    refused(folder, message)


@pytest.mark.parametrize("name", ["config.json", INDEX, "a.safetensors", "tokenizer.json"])
def test_refuses_pipes_and_folders_without_waiting(tmp_path: Path, name: str) -> None:
    path = sharded(tmp_path) / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    refused(tmp_path, f"{name}: expected a regular file, found a folder, device or pipe")
    path.unlink()
    path.mkdir()
    refused(tmp_path, f"{name}: expected a regular file, found a folder, device or pipe")


def test_refuses_a_broken_link(tmp_path: Path) -> None:
    (single(tmp_path) / "tokenizer.json").symlink_to(tmp_path / "gone")
    refused(tmp_path, r"tokenizer.json: expected a regular file, found a symbolic link")


def test_accepts_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    single(tmp_path / "real")
    (tmp_path / "latest").symlink_to(tmp_path / "real")
    assert Checkpoint.open(tmp_path / "latest").names == {EMBED, NORM, UP}
