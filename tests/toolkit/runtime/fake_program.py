# SPDX-License-Identifier: Apache-2.0
"""A bundle that the fake engine can serve, and `orin-run` with that engine, as a program: python -m <this module>."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from orinkit.bundle import GoldenCase, write
from orinkit.cli import main
from orinkit.engines import ENGINES
from orinkit.engines.base import Engine
from orinkit.model import ModelSpec
from orinkit.recipe import Shapes
from toolkit.bundle.samples import manifest
from toolkit.runtime.fake_engine import FakeEngine
from toolkit.runtime.serving import SPEC
from toolkit.runtime.tiny_tokenizer import TEMPLATE, byte_level


def make_bundle(
    folder: Path,
    cases: Sequence[GoldenCase] = (),
    capacity: int = 256,
    vocab: int = SPEC.vocab,
    slots: int = 2,
    template: str = TEMPLATE,
) -> Path:
    """Write a bundle whose graph is nothing, for the fake engine needs none."""
    files = {
        "model.onnx": b"",
        "model.data": b"",
        "tokenizer/tokenizer.json": byte_level().to_str().encode(),
        "tokenizer/chat_template.jinja": template.encode(),
    }
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    sample = manifest()
    recipe = replace(sample.recipe, shapes=Shapes(capacity=capacity, slots=slots, chunk=16))
    write(folder, replace(sample, recipe=recipe, model=replace(SPEC, vocab=vocab, eos=()), golden=tuple(cases)))
    return folder


def open_fake(graph: Path, model: ModelSpec) -> Engine:
    return FakeEngine(model.vocab)


if __name__ == "__main__":
    ENGINES["fake"] = open_fake
    main()
