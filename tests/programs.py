# SPDX-License-Identifier: Apache-2.0
"""The two programs as a user runs them: real processes over files of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import yaml
from numpy.typing import NDArray
from tokenizers import decoders, models

import small_models
from orinkit import target
from orinkit.bundle import Bundle
from orinkit_export import plan, safetensors
from orinkit_export.build import build
from orinkit_export.checkpoint import CONFIG, WEIGHTS, Checkpoint

ROOT = Path(__file__).parents[1]
DEMO, TARGET = ROOT / "recipes/demo.yaml", ROOT / "targets/host.yaml"
CHECKPOINT = ROOT / "tests/data/demo-model"
BUILD: tuple[str | Path, ...] = ("build", "recipe.yaml", "--target", TARGET, "-o", "out")
"""What builds the bundle of a desk, in its folder."""
EVALUATION = {"sequences": 1, "tokens": 16, "bounds": {"perplexity_increase": 1e6, "kl_mean": 1e3, "top1": 0.0}}
"""On little text and without demands."""
PLAIN = {
    "name": "plain",
    "checkpoint": {"path": "checkpoint"},
    "shapes": {"capacity": 64, "slots": 2, "chunk": 32},
    "quantise": {"method": "rtn"},
    "evaluation": EVALUATION,
    "golden": {"prompts": ["ROMEO:", "Tom has 3 apples and buys"], "tokens": 4},
}
"""A recipe for a copy of the demo's checkpoint that is soon verified."""
SMALL = {
    "name": "small",
    "checkpoint": {"path": "checkpoint"},
    "shapes": {"capacity": 64, "slots": 2, "chunk": 32},
    "quantise": {"method": "awq+gptq", "group_size": 32},
    "calibration": {"sequences": 2, "tokens": 32},
    "evaluation": EVALUATION,
    "golden": {"prompts": ["ROMEO:", "To be, or not to be", "1 2 3"], "tokens": 4},
}
"""A recipe for a small random model, which is soon calibrated."""
PROGRESS = re.compile(r"[\w ]+: (.* in [\d.]+ s|\d+ %, .* left)|verify: golden .*|not used: .*")
OPEN = {"orin-export": "orinkit_export.cli", "orin-run": "orinkit.cli"}
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def command(program: str, *arguments: str | Path) -> list[str]:
    """What starts a program, whether it is installed or not, and even where SIGINT is ignored."""
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from {OPEN[program]} import main"
    return [sys.executable, "-c", f"{code}; main(prog_name={program!r})", *map(str, arguments)]


def run(program: str, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end."""
    return subprocess.run(
        command(program, *arguments), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def succeed(program: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    """What a verb that must succeed writes to standard output."""
    done = run(program, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def finish(folder: Path) -> Bundle:
    """The same as `BUILD` in this process."""
    return build(plan.read(folder / "recipe.yaml"), target.read(TARGET), folder / "out")


def write_recipe(path: Path, base: Mapping[str, Any] = PLAIN, **changes: Any) -> Path:
    """A recipe with changes at its top level, as a file."""
    path.write_text(yaml.safe_dump({**base, **changes}), encoding="utf-8")
    return path


def desk(folder: Path) -> Path:
    """A folder with `recipe.yaml` and a copy of the demo's checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(CHECKPOINT, folder / "checkpoint")
    write_recipe(folder / "recipe.yaml")
    return folder


def small_desk(folder: Path) -> Path:
    """A folder with `recipe.yaml` and a checkpoint of a small random model, whose tokens are characters."""
    path = folder / "checkpoint"
    opened = small_models.checkpoint("qwen3_5-2-4", path)
    text_config = opened.config["text_config"] | {"intermediate_size": 128}
    (path / CONFIG).write_text(json.dumps(opened.config | {"text_config": text_config}), encoding="utf-8")
    content = tensors(path)
    for name, array in content.items():
        if ".mlp." in name:
            content[name] = np.pad(array, ((0, 0), (0, 16)) if "down" in name else ((0, 16), (0, 0)), "edge")
    safetensors.write(path / WEIGHTS, content)
    characters = {character: index for index, character in enumerate(string.printable[:95] + "\n")}
    tokenizer = tokenizers.Tokenizer(models.BPE(characters, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(path / "tokenizer.json"))
    write_recipe(folder / "recipe.yaml", SMALL)
    return folder


def is_tidy(folder: Path) -> bool:
    """Whether a build has left nothing in a desk but its bundle and its report."""
    return {path.name for path in folder.iterdir()} == {"recipe.yaml", "checkpoint", "out", "out.report"}


def tensors(checkpoint: Path) -> dict[str, NDArray[Any]]:
    """Everything that a checkpoint of one file holds, as stored."""
    opened = Checkpoint.open(checkpoint, allow_nonfinite=True)
    return {name: opened.read_stored(name) for name in sorted(opened.names)}


def refused(done: subprocess.CompletedProcess[str], says: Sequence[str], code: int) -> None:
    """One line of error behind lines of progress, and nothing else."""
    *before, line = done.stderr.splitlines()
    assert line.startswith("error: "), done.stderr
    assert [text for text in before if not PROGRESS.fullmatch(text)] == []
    assert [words for words in says if words not in line] == [], line
    assert (done.returncode, done.stdout) == (code, ""), line


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Everything in a folder with what tells that it was not touched: inode, size and time of change."""
    found = {path.relative_to(folder).as_posix(): path.lstat() for path in folder.rglob("*")}
    return {name: (info.st_ino, info.st_size, info.st_mtime_ns) for name, info in found.items()}


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
