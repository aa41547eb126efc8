# SPDX-License-Identifier: Apache-2.0
"""A process that has only what the plan says, less the tolerance, and fills every slot to its end; prints what it took.

python at_budget.py FOLDER KERNELS TOLERANCE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from cuda.bindings import runtime as rt

import dense_models
from orinkit.engines.base import Pipeline
from orinkit.engines.cuda import CudaEngine
from orinkit.engines.gpu import Gpu
from orinkit.engines.kernels import KernelLibrary
from orinkit.engines.room import Room, check_room
from orinkit.memory.needs import memory_plan
from orinkit.recipe import Shapes
from orinkit.runtime.pipeline import open_pipeline
from toolkit.engines.conversations import GREEDY, PLAIN, Conversation

LEFT = 12
"""Tokens of every slot that decode steps fill."""


def free() -> int:
    """Bytes of device memory."""
    return int(rt.cudaMemGetInfo()[1])


def fill(pipeline: Pipeline, shapes: Shapes) -> int:
    """Every slot to its last token: how many tokens were chosen."""
    conversation = Conversation(pipeline, shapes, seat=PLAIN)
    ids = tuple(np.random.default_rng(1).integers(2, 96, shapes.capacity - LEFT).tolist())
    for slot in range(shapes.slots):
        conversation.join(slot, GREEDY, ids)
        pipeline.spare.save(slot, slot % shapes.snapshots, len(ids))
    for _ in range(LEFT):
        conversation.decode()
    return sum(map(len, conversation.answers()))


def main() -> None:
    """See the module's docstring."""
    folder, kernels, tolerance = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    model = dense_models.export(folder, 8192, 8, 512, kv_heads=8)
    gpu, library = Gpu(), KernelLibrary(kernels)  # the context and its modules, which are there before anything of ours
    sm_count = library.device.sm_count
    plan = memory_plan(model.spec, model.recipe, "cuda", sm_count=sm_count)
    planned = plan.total("device")
    filler = gpu.allocate(free() - int(planned * (1 + tolerance)))
    room = free()
    check_room(model.spec, model.recipe, "cuda", Room(room, is_shared=False, sm_count=sm_count))
    engine = CudaEngine(model.graph, model.data, model.spec, kernels)
    loaded = room - free()
    pipeline = open_pipeline(engine, model.recipe.shapes)
    ready = room - free()
    tokens = fill(pipeline, model.recipe.shapes)
    found = {"planned": planned, "room": room, "loaded": loaded, "ready": ready, "filled": room - free()}
    items = {item.name: item.nbytes for item in plan.items if item.where == "device"}
    print(json.dumps(found | {"tokens": tokens, "items": items, "filler": filler.nbytes}))


if __name__ == "__main__":
    main()
