# SPDX-License-Identifier: Apache-2.0
"""Engines by name. Each lives in one module that is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from orinkit.config import nearest
from orinkit.engines.base import Engine
from orinkit.errors import EngineError
from orinkit.model import ModelSpec


def _onnxruntime(graph: Path, model: ModelSpec) -> Engine:
    try:
        module = importlib.import_module("orinkit.engines.ort")
    except ImportError as error:
        raise EngineError(f"this engine needs onnxruntime ({error}); run: pip install onnxruntime") from None
    windows = {f"kv_{index}": layer.attention.window for index, layer in enumerate(model.layers) if layer.attention}
    engine: Engine = module.OrtEngine(graph, windows)
    return engine


ENGINES: dict[str, Callable[[Path, ModelSpec], Engine]] = {"onnxruntime": _onnxruntime}
"""How each engine is opened."""


def open_engine(name: str, graph: Path, model: ModelSpec) -> Engine:
    """The engine `name` with the graph of `model` loaded. Raises EngineError."""
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}; {nearest(name, ENGINES)}")
    return ENGINES[name](graph, model)
