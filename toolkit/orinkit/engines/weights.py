# SPDX-License-Identifier: Apache-2.0
"""A deploy graph's weights in device memory: each once, for all contexts, INT4 in the kernel layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orinkit import int4
from orinkit.engines.deploy import DeployWeights, PackedMatrix, WeightInput
from orinkit.engines.gpu import Gpu
from orinkit.engines.slabs import Slabs
from orinkit.errors import BundleError

BLOCK_ROWS = 512 * int4.STRIPE_ROWS
"""Rows that are permuted at a time: a head of a few hundred thousand would take gigabytes of indices."""


class LoadedWeights:
    """Addresses of weight inputs by name."""

    def __init__(self, gpu: Gpu, stored: DeployWeights, data: Path) -> None:
        """Read `data`, the bundle's weights, to the device. Raises BundleError, DeviceError."""
        self._gpu = gpu
        in_order = sorted(stored.weights, key=lambda weight: weight.offset)
        self._memory = Slabs(gpu, (weight.nbytes for weight in in_order))
        self._data = np.memmap(data, np.uint8, "r")
        self._inputs: Mapping[str, WeightInput] = {weight.name: weight for weight in stored.weights}
        self.addresses = {weight.name: self._memory.take(weight.nbytes) for weight in in_order}
        in_matrices = {name for matrix in stored.packed for name in (matrix.weight, matrix.scales, matrix.zeros)}
        for weight in stored.weights:
            if weight.name not in in_matrices:
                gpu.upload(self.addresses[weight.name], np.ascontiguousarray(self._array(weight.name)))
        for matrix in stored.packed:
            self._pack(matrix)
        del self._data

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes

    def _array(self, name: str) -> NDArray[Any]:
        weight = self._inputs[name]
        end = weight.offset + weight.nbytes
        wanted = int(np.prod(weight.shape)) * np.dtype(weight.dtype).itemsize
        if end > len(self._data) or wanted != weight.nbytes:
            raise BundleError(f"{name}: expected {wanted} bytes in the data file, found fewer; export the bundle again")
        return self._data[weight.offset : end].view(weight.dtype).reshape(weight.shape)

    def _pack(self, matrix: PackedMatrix) -> None:
        """One matrix, block by block: a block of whole stripes keeps its place in the kernel layout."""
        weight, scales = self._array(matrix.weight), self._array(matrix.scales)
        zeros = None if matrix.zeros is None else self._array(matrix.zeros)
        for start in range(0, len(weight), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            packed = int4.to_kernel_layout(weight[block], scales[block], None if zeros is None else zeros[block])
            for name, part in zip((matrix.weight, matrix.scales, matrix.zeros), packed, strict=True):
                if name is not None and part is not None:
                    self._gpu.upload(self.addresses[name] + start * (part.nbytes // len(part)), part)
