# SPDX-License-Identifier: Apache-2.0
"""Graphs of any size with weights that are finite and mean nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from orinkit.memory import outline
from orinkit.memory.formats import format_of
from orinkit.model import ModelSpec
from orinkit.recipe import Recipe
from orinkit_export import graph
from orinkit_export.store import DATA, Entry


def write(folder: Path, model: ModelSpec, how: Recipe) -> Path:
    """The graph of `model` beside its data."""
    rng = np.random.default_rng(0)
    blocks = {
        "int8": rng.integers(0, 256, 1 << 16, dtype=np.uint8),
        "float16": np.full(1 << 12, 0.004, np.float16).view(np.uint8),
        "float32": np.ones(1 << 10, np.float32).view(np.uint8),
    }
    entries: dict[str, Entry] = {}
    with (folder / DATA).open("wb") as file:

        def add(name: str, dtype: str, *shape: int) -> None:
            file.seek(-(-file.tell() // 4096) * 4096)
            nbytes = math.prod(shape) * np.dtype(dtype).itemsize
            entries[name] = Entry(name, dtype, shape, file.tell(), nbytes)
            file.write(np.resize(blocks[dtype], nbytes).tobytes())

        for tensor in outline.tensors(model, how):
            chosen, stem = format_of(how, tensor.name, tensor.role), tensor.name.removesuffix(".weight")
            if chosen.kind == "int4":
                n, k = tensor.shape
                add(tensor.name, "int8", n, k // 2)
                add(f"{stem}.scales", "float16", n, k // chosen.group_size)
            else:
                add(tensor.name, chosen.kind, *tensor.shape)
    graph.save(graph.build(model, entries, how.activations), folder / "model.onnx")
    return folder / "model.onnx"
