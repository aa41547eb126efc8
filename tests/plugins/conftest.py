# SPDX-License-Identifier: Apache-2.0
"""The kernel library and a stream, for tests that need a GPU; elsewhere they are skipped by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orinkit.engines.kernels import KernelLibrary

LIBRARY = Path(__file__).parents[2] / "build/kernels/liborin_kernels.so"


@pytest.fixture(scope="session")
def stream() -> Any:
    gpu = pytest.importorskip("gpu", reason="needs cuda-bindings", exc_type=ImportError)
    try:
        return gpu.Stream()
    except RuntimeError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")


@pytest.fixture(scope="session")
def kernels(stream: Any) -> KernelLibrary:
    return KernelLibrary(LIBRARY)
