# SPDX-License-Identifier: Apache-2.0
"""Engines by name. Each lives in one module that is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orinkit.bundle.folder import opened_again
from orinkit.bundle.manifest import DATA, KERNELS
from orinkit.config import nearest
from orinkit.engines.base import Engine, Program
from orinkit.errors import EngineError
from orinkit.model import ModelSpec


def _ort() -> Any:
    try:
        return importlib.import_module("orinkit.engines.ort")
    except ImportError as error:
        raise EngineError(f"this engine needs onnxruntime ({error}); run: pip install onnxruntime") from None


def _onnxruntime(graph: Path, model: ModelSpec) -> Engine:
    windows = {f"kv_{index}": layer.attention.window for index, layer in enumerate(model.layers) if layer.attention}
    engine: Engine = _ort().OrtEngine(graph, windows)
    return engine


def _cuda(graph: Path, model: ModelSpec) -> Engine:
    try:
        module = importlib.import_module("orinkit.engines.cuda")
    except ImportError as error:
        raise EngineError(f"this engine needs two more packages ({error}); run: pip install orinkit[cuda]") from None
    engine: Engine = module.CudaEngine(graph, graph.parent / DATA, model, graph.parent / KERNELS)
    return engine


def _tensorrt(graph: Path, _: ModelSpec) -> Engine:
    try:
        module = importlib.import_module("orinkit.engines.trt")
    except ImportError as error:
        raise EngineError(
            f"this engine needs TensorRT's Python bindings, which come with JetPack, and cuda-python ({error}); run it "
            "on a board with the system's Python, see docs/on-the-board.md"
        ) from None
    engine: Engine = module.open_plan(opened_again(graph.parent))
    return engine


ENGINES: dict[str, Callable[[Path, ModelSpec], Engine]] = {
    "onnxruntime": _onnxruntime,
    "cuda": _cuda,
    "tensorrt": _tensorrt,
}
"""How each engine is opened."""


def open_engine(name: str, graph: Path, model: ModelSpec) -> Engine:
    """The engine `name` with the graph of `model` loaded. Raises EngineError."""
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}; {nearest(name, ENGINES)}")
    return ENGINES[name](graph, model)


def open_program(model: bytes) -> Program:
    """Any ONNX model, executed by ONNX Runtime. Raises EngineError."""
    program: Program = _ort().OrtProgram(model)
    return program
