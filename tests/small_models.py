# SPDX-License-Identifier: Apache-2.0
"""The small random models of the oracle as checkpoints, with or without changes, and as exported graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oracle.random_models import MODELS
from orinkit import config
from orinkit.model import ModelSpec
from orinkit.recipe import Recipe
from orinkit_export import architectures, graph, quantise, safetensors, store
from orinkit_export.checkpoint import WEIGHTS, Checkpoint
from orinkit_export.weights import Weight, Weights

Array = NDArray[Any]
NAMES = tuple(model.name for model in MODELS)
CAPACITY, CHUNK = 96, 16


def checkpoint(name: str, folder: Path, changed: Mapping[str, Array | None] | None = None) -> Checkpoint:
    """The checkpoint `name` in `folder`; `changed` adds and replaces tensors, None removes one."""
    folder.mkdir(parents=True, exist_ok=True)
    next(model for model in MODELS if model.name == name).write(folder)
    if changed:
        opened = Checkpoint.open(folder)
        tensors: dict[str, Array | None] = {stored: opened.read(stored) for stored in sorted(opened.names)}
        tensors |= changed
        safetensors.write(folder / WEIGHTS, {key: array for key, array in tensors.items() if array is not None})
    return Checkpoint.open(folder)


def recipe(activations: str = "float32", **settings: Any) -> Recipe:
    """Nothing quantised unless `settings` say how."""
    return config.parse(
        {
            "name": "small",
            "checkpoint": {"path": "small"},
            "shapes": {"capacity": CAPACITY, "chunk": CHUNK},
            "quantise": settings or {"method": "none"},
            "activations": activations,
        },
        Recipe,
        "recipe",
    )


INT4 = recipe("float16", group_size=32, head="int4", embedding="int4")


def export(
    name: str, folder: Path, how: Recipe, changed: Mapping[str, Array | None] | None = None
) -> tuple[ModelSpec, Path]:
    """Facts and graph of a model; for INT4 its blocks are widened to a multiple of the groups, with other weights."""
    opened = checkpoint(name, folder / "checkpoint", changed)
    spec = architectures.model_spec(opened.text_config)
    weights: Weights | list[Weight] = Weights(opened, spec, CAPACITY)
    if how.quantise.method != "none":
        spec = replace(spec, layers=tuple(replace(layer, intermediate=128) for layer in spec.layers))
        weights = [_random(index, weight) for index, weight in enumerate(Weights(opened, spec, CAPACITY))]
    with store.TensorWriter(folder) as writer:
        for weight in quantise.stored(weights, how, spec.tied):
            quantise.store(writer, weight, how)
    path = folder / "model.onnx"
    graph.save(graph.build(spec, store.read_index(folder), how.activations), path)
    return spec, path


def _random(seed: int, weight: Weight) -> Weight:
    """A weight of the same name and shape; the tables of the rotary embedding keep their values."""

    def blocks() -> Iterator[NDArray[np.float32]]:
        values = np.random.default_rng(seed).standard_normal(weight.shape)
        vector = len(weight.shape) == 1
        yield np.asarray(1 + 0.1 * values if vector else values * weight.shape[1] ** -0.5, np.float32)

    return replace(weight, blocks=blocks) if weight.sources else weight


def windows(spec: ModelSpec) -> dict[str, int]:
    """What an engine has to know of the cache inputs."""
    return {f"kv_{i}": layer.attention.window for i, layer in enumerate(spec.layers) if layer.attention}
