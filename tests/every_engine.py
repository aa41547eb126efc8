# SPDX-License-Identifier: Apache-2.0
"""One bundle on each engine, for tests that have to pass on all of them: parametrise by ENGINES, or by EXACT.

onnxruntime       anywhere
tensorrt          anywhere: stand-ins for TensorRT, CUDA and the kernels, which are ours; ONNX Runtime computes
cuda              on a GPU, with build/kernels/liborin_kernels.so
tensorrt on cuda  on a GPU: the stand-in for TensorRT alone; the kernels compute, and captures are real
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import standin
from orinkit.bundle import Bundle
from orinkit.engines import open_engine
from orinkit.engines.base import Engine
from orinkit.recipe import Shapes
from orinkit.runtime.scheduler import Scheduler
from orinkit.runtime.start import start

EXACT = ("onnxruntime", "tensorrt")
"""Each sequence is computed by itself, so that its logits are the same whoever shares the steps, to the last bit."""
ON_GPU = tuple(pytest.param(name, marks=pytest.mark.gpu) for name in ("cuda", "tensorrt on cuda"))
ENGINES = (*EXACT, *ON_GPU)
LIBRARY = standin.ROOT / "build/kernels/liborin_kernels.so"


@dataclass(frozen=True)
class Served:
    """A bundle, and the engine that it is for."""

    bundle: Bundle
    engine: str

    @property
    def shapes(self) -> Shapes:
        return self.bundle.manifest.recipe.shapes

    def start(self) -> Scheduler:
        """A scheduler of its own."""
        return start(self.bundle, self.engine)

    def open(self) -> Engine:
        """The engine."""
        return open_engine(self.engine, self.bundle.graph, self.bundle.manifest.model)


@contextmanager
def served(name: str, source: Path, folder: Path, shapes: Shapes) -> Iterator[Served]:
    """A copy of the bundle `source` in `folder` for the engine of that name, which can be used within."""
    engine = name.split()[0]
    if name in ("cuda", "tensorrt on cuda"):
        _need_a_gpu()
    if engine == "tensorrt":
        with _tensorrt(name, source, folder, shapes) as bundle:
            yield Served(bundle, engine)
    else:
        kernels = LIBRARY.read_bytes() if engine == "cuda" else None
        yield Served(standin.board_bundle(source, folder, shapes=shapes, kernels=kernels), engine)


@contextmanager
def _tensorrt(name: str, source: Path, folder: Path, shapes: Shapes) -> Iterator[Bundle]:
    if name == "tensorrt":
        with standin.installed():
            standin.put_kernels()
            yield standin.built_bundle(source, folder, shapes, kernels=standin.HOST_KERNELS)
        return
    with standin.installed(execute="cuda", kernels=str(LIBRARY)):
        from orinkit.engines.trt_library import read_machine

        target = standin.this_target(sm=read_machine().sm)
        yield standin.built_bundle(source, folder, shapes, target, kernels=LIBRARY.read_bytes())


def _need_a_gpu() -> None:
    """Skip where there is none."""
    pytest.importorskip("cuda.bindings", reason="needs cuda-python", exc_type=ImportError)
    import gpu

    try:
        gpu.Stream()
    except RuntimeError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    if not LIBRARY.is_file():
        pytest.skip("needs `make kernels`")
