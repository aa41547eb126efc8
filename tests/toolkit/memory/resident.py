# SPDX-License-Identifier: Apache-2.0
"""Runs a graph with ONNX Runtime as wide and as deep as its recipe allows, in a process of its own.

python resident.py GRAPH RECIPE.json MODEL.json     prints the bytes that became resident, at their peak
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from orinkit import config
from orinkit.engines.base import Profile, StepInputs
from orinkit.engines.ort import OrtEngine
from orinkit.model import ModelSpec
from orinkit.recipe import Recipe


def peak() -> int:
    """The most bytes that were resident; getrusage would count those of the process that started this one."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) << 10


def serve(graph: Path, recipe: Recipe, model: ModelSpec) -> None:
    """Fill every cache, then read the first and the last chunk of a sequence."""
    shapes = recipe.shapes
    windows = {f"kv_{index}": layer.attention.window for index, layer in enumerate(model.layers) if layer.attention}
    engine = OrtEngine(graph, windows)
    caches = engine.caches(shapes.slots, shapes.capacity, shapes.chunk)
    for array in caches.arrays.values():
        array.fill(0.5)
    spare = caches.spare(shapes.snapshots)
    for place in range(shapes.snapshots):
        spare.save(0, place, shapes.capacity)
    context = engine.context(Profile("prefill", shapes.chunk, 1), caches)
    ids, slot = np.zeros(shapes.chunk, np.int32), np.zeros(1, np.int32)
    edges, last = np.array([0, shapes.chunk], np.int32), np.array([shapes.chunk - 1], np.int32)
    for past in (0, shapes.capacity - shapes.chunk):
        context.run(StepInputs(ids, edges, np.array([past], np.int32), slot, last))


if __name__ == "__main__":
    _, graph, recipe, model = sys.argv
    how = config.parse(json.loads(Path(recipe).read_text()), Recipe, recipe)
    spec = config.parse(json.loads(Path(model).read_text()), ModelSpec, model)
    onnxruntime.get_available_providers()
    before = peak()
    serve(Path(graph), how, spec)
    sys.stdout.write(f"{peak() - before}\n")
