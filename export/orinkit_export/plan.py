# SPDX-License-Identifier: Apache-2.0
"""What a build reads, opened and found to fit together before anything is written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orinkit import config, recipe
from orinkit.errors import BundleError, CheckpointError, ConfigError, RequestError
from orinkit.memory.formats import NAMED, candidates, is_undecided
from orinkit.model import ModelSpec
from orinkit.recipe import Recipe
from orinkit.runtime.tokenizer import TOKENIZER, Tokenizer
from orinkit_export import architectures, calibrate, imports, quantise, streams, texts
from orinkit_export.checkpoint import Checkpoint
from orinkit_export.safetensors import parse_object
from orinkit_export.weights import Weight, Weights

EVALUATION_TEXT = Path(__file__).with_name("evaluation.txt")
"""What a recipe without a text of its own is evaluated on; nothing of it is in the calibration text."""

PROBED = 4, 256
"""Sequences and tokens of each on which formats are tried: means over so many positions tell matrices apart."""

RUN = 64
"""Letters on which an expression that doubles its steps with each of them runs into the limit of the library."""
RUNS = (("a", "!"), ("0", "!"), (" ", "!"), (".", "a"), ("\n", "a"))
"""What is repeated, and what then ends the text, so that what has matched so far must be given up."""


@dataclass(frozen=True)
class Plan:
    """A recipe and its checkpoint with its facts and its tokenizer."""

    recipe: Recipe
    checkpoint: Checkpoint
    spec: ModelSpec
    tokenizer: Tokenizer
    folder: Path
    """Where the recipe lies; its texts are relative to it."""

    @cached_property
    def calibration_ids(self) -> NDArray[np.int32]:
        """Token ids [sequences, tokens] of the calibration text. Raises ConfigError."""
        return calibrate.sequences(self.recipe.calibration, self.folder, self.tokenizer)

    @cached_property
    def probe_ids(self) -> NDArray[np.int32]:
        """Token ids [S, T] of the part of the calibration text on which formats are tried. Raises ConfigError."""
        ids, (count, tokens) = self.calibration_ids, PROBED
        chosen = np.linspace(0, len(ids) - 1, min(len(ids), count)).astype(np.intp)
        return ids[np.unique(chosen), :tokens]

    @cached_property
    def evaluation_ids(self) -> NDArray[np.int32]:
        """Token ids [sequences, tokens] of the evaluation text. Raises ConfigError."""
        settings = self.recipe.evaluation
        source = EVALUATION_TEXT if settings.text is None else self.folder / settings.text
        tokens = min(settings.tokens, self.recipe.shapes.capacity)
        return texts.sequences("evaluation", source, settings.sequences, tokens, self.tokenizer)

    def embedding(self) -> Weight:
        """The embedding's rows."""
        return next(weight for weight in self.stored() if weight.role == "embedding")

    def head(self) -> Weight:
        """The head's rows; the embedding's where they are one tensor."""
        return next((weight for weight in self.stored() if weight.name == "head.weight"), self.embedding())

    def parameters(self) -> int:
        """How many weights the model has; those that embedding and head share count once."""
        counted = (w for w in self.stored() if w.sources and not (w.role == "head" and self.spec.tied))
        return sum(math.prod(weight.shape) for weight in counted)

    def stored(self) -> list[Weight]:
        """The weights that the graph's data file holds, none read yet."""
        weights = Weights(self.checkpoint, self.spec, self.recipe.shapes.capacity)
        return list(quantise.stored(weights, self.recipe, self.spec.tied))

    def undecided(self) -> list[Weight]:
        """The weights for which the recipe leaves it to a measurement how they are stored."""
        return [weight for weight in self.stored() if is_undecided(self.recipe, weight.name, weight.role)]

    @property
    def is_calibrated(self) -> bool:
        """Whether the calibration text is read at all."""
        return self.recipe.quantise.method in quantise.CALIBRATED or bool(self.undecided())

    def unused(self) -> dict[str, int]:
        """How many of the checkpoint's tensors no weight is made of, by the first two parts of their names."""
        used = {name for weight in self.stored() for name in weight.sources}
        return dict(Counter(".".join(name.split(".")[:2]) for name in self.checkpoint.unused(used)))

    def data_bytes(self) -> int:
        """Size of the data file but for alignment."""
        return sum(quantise.stored_bytes(weight, self.recipe) for weight in self.stored())

    def hidden_bytes(self) -> int:
        """Size of the files of hidden rows: input and output of a layer for each text that is run, and what lies
        between where weights are rounded by the calibration text (streams.py)."""
        undecided, pair = len(self.undecided()), 2 * self.spec.hidden
        values = pair * self.evaluation_ids.size
        if self.recipe.quantise.method in quantise.CALIBRATED:
            values += streams.most_columns(self.spec) * self.calibration_ids.size
        if undecided:
            values += pair * self.probe_ids.size * (1 + undecided)
        return 4 * values


def read(recipe_path: Path, checkpoint: Path | None = None, allow_nonfinite: bool = False) -> Plan:
    """The recipe and its checkpoint; `checkpoint` replaces the folder that the recipe names.

    Raises ConfigError, CheckpointError.
    """
    chosen = recipe.read(recipe_path)
    source = chosen.checkpoint
    folder = checkpoint or recipe_path.parent / source.path
    if not folder.is_dir() and source.repository:
        revision = f" --revision {source.revision}" if source.revision else ""
        raise CheckpointError(
            f"{folder}: no such folder; get the checkpoint with: "
            f"hf download {source.repository}{revision} --local-dir {folder}"
        )
    opened = Checkpoint.open(folder, allow_nonfinite)
    spec = architectures.model_spec(opened.text_config, _generation_config(opened))
    imports.check_method(chosen.quantise.method, opened, recipe_path)
    plan = Plan(chosen, opened, spec, _tokenizer(opened, spec), recipe_path.parent)
    if chosen.shapes.capacity > plan.spec.max_positions:
        raise ConfigError(
            f"{recipe_path}: shapes: capacity: expected at most the model's {plan.spec.max_positions} positions, "
            f"found {chosen.shapes.capacity}"
        )
    tokens = chosen.calibration.tokens
    if plan.is_calibrated and tokens > chosen.shapes.capacity:
        raise ConfigError(
            f"{recipe_path}: calibration: tokens: expected at most the capacity of {chosen.shapes.capacity}, found "
            f"{tokens}; shorten the sequences, or take more of them"
        )
    _check_formats(plan, recipe_path)
    _check_bits(plan, recipe_path)
    for weight in plan.stored():
        quantise.check_shape(weight, chosen)
        if not weight.integers:
            _check_size(weight, opened)
    _check_prompts(plan, recipe_path)
    return plan


def _generation_config(checkpoint: Checkpoint) -> Mapping[str, Any]:
    path = checkpoint.tokenizer_files().get("generation_config.json")
    return parse_object(path.read_bytes(), path) if path else {}


def _tokenizer(checkpoint: Checkpoint, spec: ModelSpec) -> Tokenizer:
    """The tokenizer, with ids that the model has and a chat template, if any, that can put a question.

    Raises CheckpointError.
    """
    folder, files = checkpoint.folder, checkpoint.tokenizer_files()
    if TOKENIZER not in files:
        raise CheckpointError(
            f"{folder}: expected {TOKENIZER}, found none; download it, or save the tokenizer again with the "
            "transformers library"
        )
    try:
        tokenizer = Tokenizer.parse({name: path.read_bytes() for name, path in files.items()})
        if tokenizer.template is not None:
            with suppress(RequestError):  # a template may insist on more than a question
                tokenizer.template.render([{"role": "user", "content": "Hello"}])
        _check_patterns(tokenizer)
    except BundleError as error:
        raise CheckpointError(f"{folder}: {error} (a file of the checkpoint: get it again or correct it)") from None
    last = max(tokenizer.num_ids - 1, *spec.eos, 0)
    if last >= spec.vocab:
        raise CheckpointError(
            f"{folder}: expected token ids below the vocabulary of {spec.vocab} in config.json, found {last}; get "
            "tokenizer and weights of one checkpoint"
        )
    return tokenizer


def _check_patterns(tokenizer: Tokenizer) -> None:
    """Try texts that let a regular expression such as (a+)+$ backtrack without end. Raises BundleError."""
    for letter, last in RUNS:
        text = letter * RUN + last
        try:
            tokenizer.encode(text, len(text))
        except RequestError as error:
            found = f"{error} ({letter * 8}...{last})"
            raise BundleError(f"{TOKENIZER}: expected one that splits every text, found: {found}") from None


def _check_formats(plan: Plan, recipe_path: Path) -> None:
    """Refuse formats for matrices that the model does not have."""
    known = {weight.name.removesuffix(".weight") for weight in plan.stored() if weight.role in NAMED} | {"head"}
    for name in plan.recipe.quantise.formats:
        if name not in known:
            raise ConfigError(
                f"{recipe_path}: quantise: formats: expected matrices of the model, found {name!r}; "
                f"{config.nearest(name, known)}"
            )


def _check_bits(plan: Plan, recipe_path: Path) -> None:
    """Refuse a budget that not even the narrowest formats keep to."""
    bits, undecided = plan.recipe.quantise.bits, plan.undecided()
    size = sum(math.prod(weight.shape) for weight in undecided)
    narrow = (candidates(plan.recipe, weight.role, weight.shape)[0].parts(weight.shape) for weight in undecided)
    least = 8 * sum(map(sum, narrow)) / size if size else 0.0
    if bits is not None and bits < least:
        raise ConfigError(f"{recipe_path}: quantise: bits: expected at least {least:.3f} for this model, found {bits}")


def _check_size(weight: Weight, checkpoint: Checkpoint) -> None:
    """Refuse a weight whose tensors are missing or cannot make up its shape, before any is read."""
    found = sum(math.prod(checkpoint.shape(name)) for name in weight.sources)
    expected = math.prod(weight.shape)
    if weight.sources and found != expected:
        shapes = ", ".join(f"{name} {list(checkpoint.shape(name))}" for name in weight.sources)
        raise CheckpointError(
            f"{checkpoint.folder}: {weight.name}: expected {expected} weights for {list(weight.shape)} by config.json, "
            f"found {found} in {shapes}; does config.json fit the weights?"
        )


def _check_prompts(plan: Plan, recipe_path: Path) -> None:
    """Refuse golden prompts that leave no room for their tokens."""
    shapes, golden = plan.recipe.shapes, plan.recipe.golden
    room = shapes.capacity - golden.tokens
    for prompt in golden.prompts:
        where = f"{recipe_path}: golden: prompts: {prompt[:40]!r}"
        try:
            count = len(plan.tokenizer.encode(prompt, shapes.capacity))
        except RequestError as error:
            raise ConfigError(f"{where}: {error}") from None
        if not 1 <= count <= room:
            raise ConfigError(
                f"{where}: expected 1 to {room} tokens, found {count}: the capacity of {shapes.capacity} tokens has to "
                f"hold it with {golden.tokens} more; change the prompt or the capacity"
            )
