# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

import ml_dtypes
import numpy as np

from orinkit_export import plan, safetensors
from orinkit_export.checkpoint import WEIGHTS
from orinkit_export.inspect import describe
from programs import CHECKPOINT, desk, tensors, write_recipe


def test_the_facts_come_first(tmp_path: Path) -> None:
    lines = list(describe(plan.read(write_recipe(tmp_path / "recipe.yaml"), CHECKPOINT)))
    assert lines[:5] == [
        "recipe: plain, rtn, group size 128",
        "model: qwen3.5, hidden 256",
        "layers: 4, 1 with attention",
        "vocabulary: 4096, tied head, end tokens [4095, 4093]",
        "positions: 2048, capacity 64",
    ]


def test_every_role_has_its_format_and_size_and_they_add_up(tmp_path: Path) -> None:
    settings = {"method": "rtn", "embedding": "int8", "gated_delta": "float16"}
    lines = list(describe(plan.read(write_recipe(tmp_path / "recipe.yaml", quantise=settings), CHECKPOINT)))
    rows = [match.groups() for line in lines if (match := re.fullmatch(r"  (\w+) +([\w-]*) +([\d.]+) MB", line))]
    assert [row[:2] for row in rows] == [
        ("embedding", "int8"),
        ("float32", "float32"),
        ("gated_delta", "float16"),
        ("head", "int4-g128"),
        ("projection", "int4-g128"),
        ("wide", "float16"),
        ("total", ""),
    ]
    sizes = [float(size) for *_, size in rows]
    assert abs(sizes[-1] - sum(sizes[:-1])) < 0.005 * len(rows)
    assert sizes[0] == round(4096 * (256 + 2) / 1e6, 2)


def test_what_a_build_will_measure_is_undecided(tmp_path: Path) -> None:
    settings = {"method": "rtn", "bits": 4.5, "gated_delta": "int8", "head": "auto"}
    recipe = write_recipe(tmp_path / "recipe.yaml", quantise=settings, calibration={"tokens": 16})
    words = [line.split()[:2] for line in describe(plan.read(recipe, CHECKPOINT))]
    assert [role for role, *shown in words if shown == ["undecided"]] == ["head", "projection"]


def test_what_is_not_used_is_told_last(tmp_path: Path) -> None:
    folder = desk(tmp_path)
    more = {name: np.ones(3, ml_dtypes.bfloat16) for name in ("model.visual.a", "model.visual.b", "mtp.norm.weight")}
    safetensors.write(folder / "checkpoint" / WEIGHTS, tensors(folder / "checkpoint") | more)
    lines = list(describe(plan.read(folder / "recipe.yaml")))
    assert lines[-2:] == ["not used: model.visual.* (2 tensors)", "not used: mtp.norm.* (1 tensors)"]
