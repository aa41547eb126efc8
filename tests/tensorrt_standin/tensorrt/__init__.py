# SPDX-License-Identifier: Apache-2.0
"""A stand-in for TensorRT's Python bindings. Ours, and only for tests: it is not NVIDIA's, and shares no code with it.

It has the names that orinkit uses, keeps the rules that TensorRT documents, and computes a plan by ONNX Runtime, on the
host memory of a stand-in for CUDA, or by orinkit's kernels on a real GPU. The environment variable TENSORRT_STANDIN
(JSON) says which release it plays, where it computes and how it fails; `settings.py` lists the keys.
"""

from __future__ import annotations

from .building import Builder, IBuilderConfig, INetworkDefinition, IOptimizationProfile, ITensor, ITimingCache
from .enums import (
    BuilderFlag,
    DataType,
    ErrorCodeTRT,
    ExecutionContextAllocationStrategy,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    TensorIOMode,
)
from .interfaces import IErrorRecorder, IHostMemory, ILogger, IPluginRegistry, IProgressMonitor
from .parsing import OnnxParser, ParserError
from .running import ICudaEngine, IExecutionContext, Runtime
from .settings import VERSION, number

__version__ = VERSION

__all__ = [
    "Builder",
    "BuilderFlag",
    "DataType",
    "ErrorCodeTRT",
    "ExecutionContextAllocationStrategy",
    "IBuilderConfig",
    "ICudaEngine",
    "IErrorRecorder",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IPluginRegistry",
    "IProgressMonitor",
    "ITensor",
    "ITimingCache",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "Runtime",
    "TensorIOMode",
]

if number(VERSION) >= (10, 7):
    from .enums import SeekPosition
    from .interfaces import IStreamReaderV2

    __all__ += ["IStreamReaderV2", "SeekPosition"]
