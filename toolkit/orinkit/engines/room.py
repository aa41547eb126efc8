# SPDX-License-Identifier: Apache-2.0
"""How much memory an engine could have on this machine now, and whether a plan fits into it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orinkit.errors import ResourceError
from orinkit.memory import system
from orinkit.memory.needs import memory_plan
from orinkit.model import ModelSpec
from orinkit.recipe import Recipe


@dataclass(frozen=True)
class Room:
    """What is free."""

    nbytes: int
    is_shared: bool
    """Whether CPU and GPU draw on the same memory."""
    sm_count: int | None = None
    """Multiprocessors of the GPU."""


def find_room(engine: str, root: Path = Path("/")) -> Room | None:
    """The memory that `engine` would allocate from; None where that is not known.

    On a GPU that shares the system's memory it is MemAvailable, because cudaMemGetInfo leaves out the page cache.
    """
    available = system.available(system.read(root))
    if engine == "onnxruntime":
        return None if available is None else Room(available, is_shared=True)
    try:
        runtime: Any = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return None
    attributes = runtime.cudaDeviceAttr
    ok = runtime.cudaError_t.cudaSuccess
    error, is_integrated = runtime.cudaDeviceGetAttribute(attributes.cudaDevAttrIntegrated, 0)
    if error != ok:
        return None
    sm_count = int(runtime.cudaDeviceGetAttribute(attributes.cudaDevAttrMultiProcessorCount, 0)[1])
    if is_integrated:
        return None if available is None else Room(available, is_shared=True, sm_count=sm_count)
    error, free, _ = runtime.cudaMemGetInfo()
    return Room(int(free), is_shared=False, sm_count=sm_count) if error == ok else None


def check_room(spec: ModelSpec, recipe: Recipe, engine: str, room: Room | None) -> None:
    """Raises ResourceError: the plan needs more than there is. What is not known is not refused."""
    if room is None:
        return
    plan = memory_plan(spec, recipe, engine, sm_count=room.sm_count)
    items = [item for item in plan.items if item.where == "device" or (room.is_shared and item.where == "host")]
    need = sum(item.nbytes for item in items)
    if need > room.nbytes:
        largest = sorted(items, key=lambda item: -item.nbytes)[:3]
        parts = ", ".join(f"{item.name} {item.nbytes / 1e9:.2f}" for item in largest)
        raise ResourceError(
            f"engine {engine}: expected {need / 1e9:.2f} GB of free memory ({parts}), found "
            f"{room.nbytes / 1e9:.2f} GB; stop other programs, or export with fewer slots or less capacity"
        )
