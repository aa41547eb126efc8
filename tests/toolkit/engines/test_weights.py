# SPDX-License-Identifier: Apache-2.0
"""Weights in (the stand-in's) device memory: the file's bytes, products in the kernel layout."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import standin
from orinkit import int4
from orinkit.engines.deploy import DeployWeights, PackedMatrix, WeightInput
from orinkit.errors import BundleError

ROWS, K, GROUP = 4100, 96, 32
"""More rows than are permuted at a time, and neither rows nor columns whole stripes and chunks."""


@pytest.fixture
def gpu() -> Iterator[Any]:
    with standin.installed():
        from orinkit.engines.gpu import Gpu

        yield Gpu()


def arrays() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "w.packed": rng.integers(-128, 128, (ROWS, K // 2)).astype(np.int8),
        "s.packed": rng.standard_normal((ROWS, K // GROUP)).astype(np.float16),
        "z.packed": rng.integers(-128, 128, (ROWS, 2)).astype(np.int8),
        "norm": rng.standard_normal(K).astype(np.float32),
    }


def stored(folder: Path, shift: int = 0) -> tuple[DeployWeights, Path]:
    inputs, data, path = [], b"", folder / "model.data"
    for name, array in arrays().items():
        inputs.append(WeightInput(name, array.dtype.name, array.shape, len(data) + shift, array.nbytes))
        data += array.tobytes()
    path.write_bytes(data)
    return DeployWeights(tuple(inputs), (PackedMatrix("w.packed", "s.packed", "z.packed"),)), path


def on_device(address: int, array: Any) -> Any:
    raw: Any = (ctypes.c_byte * array.nbytes).from_address(address)
    return np.frombuffer(raw, array.dtype).reshape(array.shape)


def test_every_weight_is_where_its_address_says(gpu: Any, tmp_path: Path) -> None:
    from orinkit.engines.weights import LoadedWeights

    index, data = stored(tmp_path)
    loaded = LoadedWeights(gpu, index, data)
    expected = arrays()
    parts = int4.to_kernel_layout(expected["w.packed"], expected["s.packed"], expected["z.packed"])
    expected |= dict(zip(("w.packed", "s.packed", "z.packed"), parts, strict=True))
    for name, array in expected.items():
        assert np.array_equal(on_device(loaded.addresses[name], array), array), name
    assert loaded.nbytes >= sum(array.nbytes for array in expected.values())
    assert all(address % 256 == 0 for address in loaded.addresses.values())


def test_an_index_that_leads_beyond_the_file_is_refused(gpu: Any, tmp_path: Path) -> None:
    from orinkit.engines.weights import LoadedWeights

    index, data = stored(tmp_path, shift=256)
    with pytest.raises(BundleError, match="bytes in the data file, found fewer; export the bundle again"):
        LoadedWeights(gpu, index, data)
