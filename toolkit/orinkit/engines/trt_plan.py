# SPDX-License-Identifier: Apache-2.0
"""A plan's file as TensorRT reads it."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import tensorrt as trt

from orinkit.engines.trt_library import Log
from orinkit.errors import PlanError


class PlanFile:
    """A plan, mapped as long as the object lives: TensorRT may read from it later."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def deserialise(self, runtime: trt.Runtime, log: Log) -> trt.ICudaEngine:
        """The engine. Raises PlanError: TensorRT refuses the plan."""
        streamed = getattr(trt, "IStreamReaderV2", None)
        source = self._bytes if streamed is None else _reader(streamed, memoryview(self._bytes))
        engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(source)
        if engine is None:
            raise PlanError(f"{self._path}: TensorRT refuses the plan: {log.reason()}; build it again")
        return engine


def _reader(base: Any, content: memoryview) -> Any:
    """A stream reader, which TensorRT has since 10.7: so the plan is never in memory twice."""

    class Reader(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._at = 0

        def read(self, num_bytes: int, stream: int) -> memoryview:  # noqa: ARG002  (TensorRT's signature)
            """The next bytes; the bindings copy them from this function's value to where TensorRT wants them."""
            part = content[self._at : self._at + num_bytes]
            self._at += len(part)
            return part

        def seek(self, offset: int, where: trt.SeekPosition) -> bool:
            base = {"SET": 0, "CUR": self._at, "END": len(content)}[where.name]
            self._at = base + offset
            return 0 <= self._at <= len(content)

    return Reader()
