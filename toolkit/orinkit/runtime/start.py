# SPDX-License-Identifier: Apache-2.0
"""From a verified bundle to a scheduler that can serve it."""

from __future__ import annotations

from pathlib import Path

from orinkit.bundle import Bundle
from orinkit.engines import open_engine
from orinkit.engines.room import check_room, find_room
from orinkit.errors import BundleError
from orinkit.memory.needs import ENGINES
from orinkit.runtime.pipeline import open_pipeline
from orinkit.runtime.scheduler import Scheduler
from orinkit.runtime.tokenizer import FILES, Tokenizer

_FOLDER = "tokenizer"


def open_tokenizer(bundle: Bundle) -> Tokenizer:
    """The tokenizer of a bundle. Raises BundleError."""
    listed = {entry.path for entry in bundle.manifest.files}
    paths = {name: f"{_FOLDER}/{name}" for name in FILES}
    tokenizer = Tokenizer.parse({name: bundle.read(path) for name, path in paths.items() if path in listed})
    vocab = bundle.manifest.model.vocab
    if tokenizer.num_ids > vocab:
        raise BundleError(
            f"tokenizer: expected ids below the model's vocabulary of {vocab}, found {tokenizer.num_ids - 1}; "
            "export again with the tokenizer of this checkpoint"
        )
    return tokenizer


def start(bundle: Bundle, engine: str, root: Path = Path("/")) -> Scheduler:
    """Load the graph with the engine of that name, allocate everything, and stand ready for requests.

    Nothing is loaded where the memory of the system below `root` does not suffice for what the plan says.
    Raises BundleError, EngineError, ResourceError.
    """
    manifest = bundle.manifest
    if engine in ENGINES:
        check_room(manifest.model, manifest.settled, engine, find_room(engine, root))
    tokenizer = open_tokenizer(bundle)
    shapes = manifest.recipe.shapes
    pipeline = open_pipeline(open_engine(engine, bundle.graph, manifest.model), shapes)
    return Scheduler(pipeline, shapes, tokenizer, manifest.model)
