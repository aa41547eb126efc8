# SPDX-License-Identifier: Apache-2.0
"""Mistakes in recipes and checkpoints. Each function gives an act on a folder with recipe.yaml and checkpoint/."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from orinkit_export import safetensors
from orinkit_export.checkpoint import INDEX, WEIGHTS
from programs import tensors, write_recipe

Act = Callable[[Path], object]
UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.3.mlp.down_proj.weight"


def nothing(folder: Path) -> None:
    """The mistake is elsewhere."""


def recipe(**changes: Any) -> Act:
    return lambda folder: write_recipe(folder / "recipe.yaml", **changes)


def file(path: str, text: str) -> Act:
    return lambda folder: (folder / path).write_text(text, encoding="utf-8")


def removed(path: str) -> Act:
    return lambda folder: (folder / path).unlink()


def patched(path: str, offset: int, data: bytes) -> Act:
    """Bytes of a file replaced from `offset` on."""

    def act(folder: Path) -> None:
        with (folder / path).open("r+b") as opened:
            opened.seek(offset)
            opened.write(data)

    return act


def truncated(path: str, size: int) -> Act:
    def act(folder: Path) -> None:
        with (folder / path).open("r+b") as opened:
            opened.truncate(size)

    return act


def edited(name: str, edit: Callable[[dict[str, Any]], object]) -> Act:
    """A JSON file of the checkpoint, changed."""

    def act(folder: Path) -> None:
        path = folder / "checkpoint" / name
        data = json.loads(path.read_text(encoding="utf-8"))
        edit(data)
        path.write_text(json.dumps(data), encoding="utf-8")

    return act


def config(**changes: Any) -> Act:
    return edited("config.json", lambda data: data.update(changes))


def one_id_more(data: dict[str, Any]) -> None:
    """Of a tokenizer of 4096 ids."""
    data["added_tokens"].append(data["added_tokens"][-1] | {"id": 4096, "content": "<|new|>"})


def weight(name: str, value: float, index: Any = ...) -> Act:
    """A tensor, or what `index` chooses of it, set to a number."""

    def act(folder: Path) -> None:
        entry = safetensors.SafetensorsFile.open(folder / "checkpoint" / WEIGHTS).entries[name]
        dtype = safetensors.DTYPES[entry.dtype]
        array = np.memmap(folder / "checkpoint" / WEIGHTS, dtype, "r+", entry.begin, entry.shape)
        array[index] = value
        array.flush()

    return act


def index(shard: str) -> Act:
    """An index that has one tensor in the file `shard`, the others in the one file there is."""

    def act(folder: Path) -> None:
        weight_map = dict.fromkeys(tensors(folder / "checkpoint"), WEIGHTS) | {UP: shard}
        (folder / "checkpoint" / INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")

    return act


def pickled(folder: Path) -> None:
    """Only a pickle, which leaves a marker where it is opened."""
    (folder / "checkpoint" / WEIGHTS).unlink()
    (folder / "checkpoint/pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch marker'\ntR.")


def wider_blocks(folder: Path) -> None:
    """Blocks of 800 instead of 768, which groups of 128 do not divide."""
    content = tensors(folder / "checkpoint")
    for name, array in content.items():
        if ".mlp." in name:
            missing = ((0, 0), (0, 32)) if "down" in name else ((0, 32), (0, 0))
            content[name] = np.pad(array, missing, "edge")
    safetensors.write(folder / "checkpoint" / WEIGHTS, content)
    config(intermediate_size=800)(folder)
