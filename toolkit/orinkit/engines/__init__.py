# SPDX-License-Identifier: Apache-2.0
"""Engines by name. Each lives in one module that is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from orinkit.bundle import Bundle
from orinkit.config import nearest
from orinkit.engines.base import Engine
from orinkit.errors import EngineError


def _onnxruntime(bundle: Bundle) -> Engine:
    try:
        module = importlib.import_module("orinkit.engines.ort")
    except ImportError as error:
        raise EngineError(
            f"the onnxruntime engine needs the package onnxruntime ({error}); pip install onnxruntime"
        ) from None
    layers = enumerate(bundle.manifest.model.layers)
    windows = {f"kv_{index}": layer.attention.window for index, layer in layers if layer.attention}
    engine: Engine = module.OrtEngine(bundle.graph, windows)
    return engine


ENGINES: dict[str, Callable[[Bundle], Engine]] = {"onnxruntime": _onnxruntime}
"""How each engine is opened."""


def open_engine(name: str, bundle: Bundle) -> Engine:
    """The engine `name` with the bundle's graph loaded. Raises EngineError."""
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}; {nearest(name, ENGINES)}")
    return ENGINES[name](bundle)
