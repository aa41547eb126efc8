# SPDX-License-Identifier: Apache-2.0
"""Facts of a hybrid and of a windowed model with easy numbers, and recipes for them."""

from __future__ import annotations

from typing import Any

from orinkit import config
from orinkit.model import Attention, GatedDelta, LayerSpec, ModelSpec, Rope
from orinkit.recipe import Recipe
from orinkit.target import Gpu

ATTENTION = Attention(8, 2, 128, 64, 128**-0.5, qk_norm=True)
WINDOWED = Attention(8, 2, 128, 128, 128**-0.5, window=1000)
DELTA = GatedDelta(8, 8, 128, 128, 4)

GPU = Gpu(87, 16, 4, 64, 200.0, visible_gib=60.0, clock_mhz=1000, launch_us=4.0)


def model(*layers: LayerSpec, tied: bool = True) -> ModelSpec:
    return ModelSpec("qwen3.5", 1024, 32000, 1e-6, tied, 65536, Rope(1e6), layers)


HYBRID = model(LayerSpec(2048, gated_delta=DELTA), LayerSpec(2048, attention=ATTENTION))
RING = model(LayerSpec(2048, attention=WINDOWED))


def recipe(shapes: dict[str, int] | None = None, **settings: Any) -> Recipe:
    return config.parse(
        {
            "name": "planned",
            "checkpoint": {"path": "planned"},
            "shapes": {"capacity": 4096, "slots": 4, "chunk": 512, **(shapes or {})},
            "quantise": settings,
        },
        Recipe,
        "recipe",
    )
