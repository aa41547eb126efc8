# SPDX-License-Identifier: Apache-2.0
"""Small random decoders without linear attention, of sizes that the kernels take, for sequences of any length.

The first layer sees everything, those above it a window, if there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from oracle.random_models import RandomModel
from orinkit import config
from orinkit.model import ModelSpec
from orinkit.recipe import Recipe
from orinkit_export import architectures, graph, quantise, store
from orinkit_export.checkpoint import Checkpoint
from orinkit_export.weights import Weights

LAYERS = 3


@dataclass(frozen=True)
class Dense:
    """An exported model: float16, nothing quantised."""

    spec: ModelSpec
    recipe: Recipe
    graph: Path
    data: Path


def export(folder: Path, capacity: int, slots: int, chunk: int, window: int = 0, kv_heads: int = 2) -> Dense:
    """A model of head dim 64 with caches as large as asked, in `folder`, which must be there."""
    settings = {
        "model_type": "qwen2",
        "vocab_size": 96,
        "hidden_size": 64 * 2 * kv_heads,
        "intermediate_size": 256,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2 * kv_heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-3,
        "max_position_embeddings": capacity,
        "tie_word_embeddings": False,
        "eos_token_id": 1,
        "rope_theta": 1e6,
        "use_sliding_window": bool(window),
        "sliding_window": window or None,
        "max_window_layers": 1,
    }
    RandomModel(f"dense-{window}", settings, "F16").write(folder)
    opened = Checkpoint.open(folder)
    spec = architectures.model_spec(opened.text_config)
    stored = {
        "name": "dense",
        "checkpoint": {"path": "dense"},
        "shapes": {"capacity": capacity, "slots": slots, "chunk": chunk},
        "quantise": {"method": "none"},
        "activations": "float16",
    }
    recipe = config.parse(stored, Recipe, "recipe")
    with store.TensorWriter(folder) as writer:
        for weight in quantise.stored(Weights(opened, spec, capacity), recipe, spec.tied):
            quantise.store(writer, weight, recipe)
    path = folder / "model.onnx"
    graph.save(graph.build(spec, store.read_index(folder), recipe.activations), path)
    return Dense(spec, recipe, path, folder / "model.data")
