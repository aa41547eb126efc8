# SPDX-License-Identifier: Apache-2.0
"""Small random models whose float weights a test may change before it looks at the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import small_models
from orinkit.engines.base import Float32, Profile, StepInputs
from orinkit.engines.ort import OrtEngine
from orinkit.model import ModelSpec
from orinkit.ops.description import rms_norm
from orinkit_export import architectures, graph, store
from orinkit_export.calibrate import LayerRunner
from orinkit_export.checkpoint import Checkpoint
from orinkit_export.folds import Arrays
from orinkit_export.weights import Weights
from small_models import CAPACITY

PROMPT = np.random.default_rng(5).integers(0, 96, 40).astype(np.int32)


@dataclass(frozen=True)
class FloatModel:
    """Facts and float weights of a model, by the names of the graph."""

    spec: ModelSpec
    weights: dict[str, Float32]
    runner: LayerRunner

    def layer(self, index: int) -> Arrays:
        """The weights of one layer by their names without its prefix."""
        prefix = f"layers.{index}."
        return {name.removeprefix(prefix): array for name, array in self.weights.items() if name.startswith(prefix)}

    def replaced(self, index: int, arrays: Arrays) -> FloatModel:
        """The same model with other weights in one layer."""
        changed = {f"layers.{index}.{name}": array for name, array in arrays.items()}
        return replace(self, weights=self.weights | changed)

    def logits(self, ids: NDArray[np.int32] = PROMPT) -> Float32:
        """Logits of every position, layer by layer; `graph_logits` gives the same."""
        shared = {name: array for name, array in self.weights.items() if name.startswith("rope.")}
        hidden = self.weights["embedding.weight"][ids][None]
        for index in range(len(self.spec.layers)):
            rows = self.runner.forward(index, self.layer(index), shared, hidden, lambda _: None)
            hidden = np.stack(list(rows))
        return rms_norm(hidden[0], self.weights["final_norm"], self.spec.norm_eps) @ self.weights["head.weight"].T

    def graph_logits(self, folder: Path, ids: NDArray[np.int32] = PROMPT) -> Float32:
        """The same by the whole float32 graph, made in `folder`."""
        with store.TensorWriter(folder) as writer:
            for name, array in self.weights.items():
                writer.write(name, [array])
        graph.save(graph.build(self.spec, store.read_index(folder), "float32"), folder / "model.onnx")
        engine = OrtEngine(folder / "model.onnx", small_models.windows(self.spec), threads=1)
        count = len(ids)
        context = engine.context(Profile("test", count, 1), engine.caches(1, count, count))
        step = {"cu_seqlens": [0, count], "past_lens": [0], "slots": [0], "logit_rows": range(count)}
        return context.run(StepInputs(ids, **{key: np.array(list(v), np.int32) for key, v in step.items()}))


def read(checkpoint: Checkpoint, positions: int = CAPACITY) -> FloatModel:
    """The weights of a checkpoint; a tied head is a tensor of its own."""
    spec = architectures.model_spec(checkpoint.text_config)
    weights = Weights(checkpoint, spec, positions)
    arrays = {weight.name: np.concatenate(list(weight.blocks())) for weight in weights}
    return FloatModel(spec, arrays, LayerRunner(spec, positions))


def small(name: str, folder: Path, changed: Mapping[str, NDArray[Any] | None] | None = None) -> FloatModel:
    """The small random model `name`; `changed` adds tensors to its checkpoint and replaces them."""
    return read(small_models.checkpoint(name, folder, changed))


def relative(found: Float32, expected: Float32) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
