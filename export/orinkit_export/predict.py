# SPDX-License-Identifier: Apache-2.0
"""What a recipe will need and reach on a target, before anything is built: memory, whether it fits, speed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orinkit import recipe as recipes
from orinkit.errors import CheckpointError, ConfigError
from orinkit.memory import speed as rates
from orinkit.memory.fit import SYSTEM, Change, Fit, changes, fit
from orinkit.memory.needs import ENGINES, MemoryPlan, Parts, decode_sizes, memory_plan
from orinkit.memory.speed import Decode, Prefill, Speed
from orinkit.model import ModelSpec
from orinkit.recipe import Recipe
from orinkit.target import Gpu, Target
from orinkit_export import architectures, plan, quantise
from orinkit_export.checkpoint import CONFIG, Checkpoint
from orinkit_export.safetensors import parse_object

DEPTHS = (0, 2048, 8192)
PROMPTS = (128, 512, 2048)


@dataclass(frozen=True)
class Subject:
    """What is planned for: the recipe and what is known of its model."""

    recipe: Recipe
    spec: ModelSpec
    parts: Parts | None
    """Stored tensors by the checkpoint's weights; None: only config.json was there."""


@dataclass(frozen=True)
class Prediction:
    """All that `orin-export plan` tells."""

    recipe: str
    target: str
    is_exact: bool
    """Whether sizes come from the checkpoint's weights rather than from config.json alone."""
    memory: MemoryPlan
    fit: Fit | None
    changes: tuple[Change, ...]
    decode: tuple[Decode, ...]
    prefill: tuple[Prefill, ...]
    assumptions: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the board's memory suffices; a target without a board's facts counts as one that has enough."""
        return self.fit is None or self.fit.spare >= 0


def read(recipe_path: Path, checkpoint: Path | None = None) -> Subject:
    """The recipe with its checkpoint's facts; config.json suffices. Raises ConfigError, CheckpointError."""
    chosen = recipes.read(recipe_path)
    folder = checkpoint or recipe_path.parent / chosen.checkpoint.path
    if any(folder.glob("*.safetensors")):
        found = plan.read(recipe_path, checkpoint)
        sizes = {weight.name: (quantise.stored_bytes(weight, chosen),) for weight in found.stored()}
        return Subject(chosen, found.spec, sizes)
    spec = architectures.model_spec(_config_alone(folder, chosen).text_config)
    if chosen.shapes.capacity > spec.max_positions:
        raise ConfigError(
            f"{recipe_path}: shapes: capacity: expected at most the model's {spec.max_positions} positions, "
            f"found {chosen.shapes.capacity}"
        )
    return Subject(chosen, spec, None)


def predict(subject: Subject, target: Target, engine: str | None = None) -> Prediction:
    """What `engine` will need and reach; without it TensorRT, where the target has it. Raises ConfigError."""
    engine = engine or ("tensorrt" if target.stack.tensorrt else "onnxruntime")
    if engine not in ENGINES:
        raise ConfigError(f"engine: expected one of {', '.join(ENGINES)}, found {engine!r}")
    gpu, spec, recipe = target.board.gpu, subject.spec, subject.recipe
    memory = memory_plan(spec, recipe, engine, subject.parts, gpu.sm_count if gpu else None)
    found = fit(memory.total(), gpu) if gpu else None
    missing = -found.spare if found else 0
    speed = Speed(spec, recipe, gpu, subject.parts) if gpu and engine != "onnxruntime" else None
    return Prediction(
        recipe.name,
        target.id,
        subject.parts is not None,
        memory,
        found,
        changes(spec, recipe, engine, missing) if missing > 0 else (),
        tuple(_decodes(speed, recipe)) if speed else (),
        tuple(_prefills(speed, recipe)) if speed else (),
        tuple(_assumptions(gpu, is_timed=speed is not None)) if gpu else (),
    )


def as_data(found: Prediction) -> dict[str, Any]:
    """The prediction as JSON takes it; sizes in bytes, times in seconds."""
    data = asdict(found)
    data["memory"]["total_bytes"] = found.memory.total()
    if found.fit is not None:
        data["fit"] |= {"have": found.fit.have, "spare": found.fit.spare, "fits": found.fits}
    for kind in ("decode", "prefill"):
        for entry, step in zip(data[kind], getattr(found, kind), strict=True):
            entry["tokens_per_second"] = step.tokens_per_second
    return data


def _config_alone(folder: Path, recipe: Recipe) -> Checkpoint:
    """A checkpoint of which only config.json is there."""
    path = folder / CONFIG
    if not path.is_file():
        source = recipe.checkpoint.repository
        hint = f"; get it with: hf download {source} {CONFIG} --local-dir {folder}" if source else ""
        raise CheckpointError(f"{path}: no such file{hint}")
    return Checkpoint(folder, parse_object(path.read_bytes(), path), False, {})


def _decodes(speed: Speed, recipe: Recipe) -> Iterator[Decode]:
    shapes = recipe.shapes
    for batch in decode_sizes(shapes.slots):
        for depth in (*(depth for depth in DEPTHS if depth < shapes.capacity), shapes.capacity):
            yield speed.decode(batch, depth)


def _prefills(speed: Speed, recipe: Recipe) -> Iterator[Prefill]:
    capacity = recipe.shapes.capacity
    for tokens in (*(tokens for tokens in PROMPTS if tokens < capacity), capacity):
        found = speed.prefill(tokens)
        if found is not None:
            yield found


def _assumptions(gpu: Gpu, is_timed: bool) -> Iterator[str]:
    yield f"the system holds {SYSTEM / 1e9:.1f} GB itself (no desktop)"
    if is_timed:
        yield f"{rates.BANDWIDTH_SHARE:.0%} of the nominal {gpu.bandwidth_gbs:g} GB/s are reached"
        yield f"each kernel costs {gpu.launch_us:g} us beside what it reads"
    if is_timed and gpu.clock_mhz is not None:
        rate = rates.MATRIX_RATE.get(gpu.sm, rates.NEWER_MATRIX_RATE) * gpu.sm_count * gpu.clock_mhz * 1e6
        yield f"{rates.MATRIX_SHARE:.0%} of {rate / 1e12:.1f} TFLOP/s are reached in prefill"
    if is_timed:
        yield "clocks are those of the fastest power mode, and the board does not throttle"
