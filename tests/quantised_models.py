# SPDX-License-Identifier: Apache-2.0
"""The small random models with quantised projections, and the same models dequantised."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from oracle.random_models import MODELS
from orinkit.model import ModelSpec
from orinkit.recipe import Recipe
from orinkit_export import architectures, graph, quantise, safetensors, store
from orinkit_export.checkpoint import CONFIG, WEIGHTS, Checkpoint
from orinkit_export.weights import Weights
from packers import Array, Linear, Style, linear, shuffled
from small_models import CAPACITY

PROJECTIONS = r"\.(([qkvo]|gate|up|down|out)_proj|in_proj_(qkv|z))\.weight"
"""What tools quantise; the small b and a projections of gated-delta layers are left wide."""
SIZES = {32: (64, 96), 64: (64, 192), 128: (128, 384)}
"""Hidden and intermediate size by group size: three groups in the rows of down_proj."""
INPUTS = {"k": "q", "v": "q", "up": "gate", "in_proj_z": "in_proj_qkv"}
"""Projections that share the input, and so the act-order, of another."""


def write(
    folder: Path, name: str, style: Style, group_size: int, projections: str = PROJECTIONS
) -> tuple[Checkpoint, Checkpoint]:
    """The model `name` in `folder` with its projections quantised, and dequantised."""
    model = next(model for model in MODELS if model.name == name)
    hidden, intermediate = SIZES[group_size]
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate}
    nested = {"text_config": model.config["text_config"] | sizes} if "text_config" in model.config else sizes
    for part in ("quantised", "float"):
        (folder / part).mkdir(parents=True)
        replace(model, config=model.config | nested).write(folder / part)
    opened = Checkpoint.open(folder / "float")
    quantised: dict[str, Array] = {}
    floats: dict[str, Array] = {}
    for stored in sorted(opened.names):
        if not re.search(f"{projections}$", stored) or "visual" in stored:
            quantised[stored] = floats[stored] = opened.read_stored(stored)
            continue
        module = stored.removesuffix(".weight")
        made = _random(module, opened.shape(stored), style, group_size)
        quantised |= {f"{module}.{suffix}": array for suffix, array in style.pack(made).items()}
        floats[stored] = made.dequantised()
    safetensors.write(folder / "quantised" / WEIGHTS, quantised)
    safetensors.write(folder / "float" / WEIGHTS, floats)
    change_settings(folder / "quantised", style.settings(group_size))
    return Checkpoint.open(folder / "quantised"), Checkpoint.open(folder / "float")


def _random(module: str, shape: tuple[int, ...], style: Style, group_size: int) -> Linear:
    n, k = shape
    before, _, part = module.rpartition(".")
    kind = part.removesuffix("_proj")
    shared = zlib.crc32(f"{before}.{INPUTS.get(kind, kind)}".encode())
    group = shuffled(shared, k, group_size) if style.act_order else None
    seed = zlib.crc32(module.encode())
    return linear(seed, n, k, group_size, symmetric=style.symmetric, group=group, least=style.least)


def change_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Put `settings` into config.json as quantization_config."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps(config | {"quantization_config": settings}), encoding="utf-8")


def export(checkpoint: Checkpoint, folder: Path, how: Recipe) -> tuple[ModelSpec, Path]:
    """Facts and graph of a checkpoint."""
    spec = architectures.model_spec(checkpoint.text_config)
    with store.TensorWriter(folder) as writer:
        for weight in quantise.stored(Weights(checkpoint, spec, CAPACITY), how, spec.tied):
            quantise.store(writer, weight, how)
    path = folder / "model.onnx"
    graph.save(graph.build(spec, store.read_index(folder), how.activations), path)
    return spec, path
