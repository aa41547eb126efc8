# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of three tensors, in one file or in two shards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from orinkit_export import safetensors
from orinkit_export.checkpoint import INDEX, WEIGHTS

EMBED, NORM, UP = "model.embed_tokens.weight", "model.norm.weight", "model.layers.0.mlp.up_proj.weight"

Tensors = Mapping[str, NDArray[Any]]


def tensors() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    return {
        EMBED: rng.standard_normal((8, 4)).astype(ml_dtypes.bfloat16),
        NORM: np.zeros(4, np.float32),
        UP: rng.standard_normal((6, 4)).astype(np.float16),
    }


def single(folder: Path, content: Tensors | None = None, config: Any = None) -> Path:
    """A checkpoint with one weight file."""
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} if config is None else config))
    safetensors.write(folder / WEIGHTS, tensors() if content is None else content)
    return folder


def sharded(folder: Path, weight_map: dict[str, Any] | None = None) -> Path:
    """A checkpoint with two shards: the embedding in a.safetensors, the others in b.safetensors."""
    (folder / "config.json").write_text("{}")
    content = tensors()
    safetensors.write(folder / "a.safetensors", {EMBED: content[EMBED]})
    safetensors.write(folder / "b.safetensors", {NORM: content[NORM], UP: content[UP]})
    right = {EMBED: "a.safetensors", NORM: "b.safetensors", UP: "b.safetensors"}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map or right}))
    return folder
