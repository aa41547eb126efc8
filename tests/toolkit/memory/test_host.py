# SPDX-License-Identifier: Apache-2.0
"""The plan of the `onnxruntime` engine beside the memory that a process really takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orinkit import config
from orinkit.memory.needs import memory_plan
from orinkit.model import Attention, GatedDelta, LayerSpec, ModelSpec, Rope
from toolkit.memory import graphs
from toolkit.memory.models import recipe

MARGIN = 0.25
"""By which the plan may be off, of what it says: most of it was fitted, and allocators round up."""

ATTENTION = Attention(8, 2, 256, 64, 1 / 16, gate=True, qk_norm=True)
DELTA = GatedDelta(16, 16, 128, 128, 4)
MODEL = ModelSpec(
    "qwen3.5",
    1024,
    4000,
    1e-6,
    True,
    8192,
    Rope(1e7),
    tuple(LayerSpec(3584, attention=ATTENTION) if i % 2 else LayerSpec(3584, gated_delta=DELTA) for i in range(6)),
)


@pytest.mark.parametrize("shapes", [{"capacity": 2048, "slots": 2, "chunk": 256}, {"capacity": 256, "chunk": 64}])
def test_the_plan_is_what_a_process_takes(shapes: dict[str, int], tmp_path: Path) -> None:
    how = recipe(shapes)
    path = graphs.write(tmp_path, MODEL, how)
    for name, value in (("recipe", how), ("model", MODEL)):
        (tmp_path / name).write_text(json.dumps(config.dump(value)))
    command = [sys.executable, str(Path(__file__).with_name("resident.py")), *map(str, (path, tmp_path / "recipe"))]
    done = subprocess.run([*command, str(tmp_path / "model")], capture_output=True, text=True, check=True)
    planned = memory_plan(MODEL, how, "onnxruntime").total("host")
    assert int(done.stdout) == pytest.approx(planned, rel=MARGIN)
