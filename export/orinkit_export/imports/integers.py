# SPDX-License-Identifier: Apache-2.0
"""One matrix of the graph made of the integers of a checkpoint's modules: fused, by group, none of them rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orinkit import int4
from orinkit.errors import CheckpointError
from orinkit_export.checkpoint import Checkpoint
from orinkit_export.imports.module import Format, Int32, Module, refuse

Array = NDArray[Any]
Part = Callable[[str, int], Array]
"""The rows of a module by its name and their number."""
Fuse = Callable[[Part], Array]
"""The rows of a matrix, put together from those of its modules."""


@dataclass(frozen=True)
class Integers:
    """A matrix [N, K] in its stored form; nothing is read before it is asked for."""

    modules: tuple[Module, ...]
    fuse: Fuse
    is_gathered: bool
    """Whether the inputs come in the order of the groups without being told to."""

    @property
    def shape(self) -> tuple[int, int]:
        return sum(module.shape[0] for module in self.modules), self.modules[0].shape[1]

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(source for module in self.modules for source in module.sources)

    @property
    def order(self) -> Int32 | None:
        return self.modules[0].order

    @property
    def layout(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """dtype and shape of what `tensors` gives, by suffix."""
        rows, columns = self.shape
        groups = columns // self.modules[0].group_size
        layout: dict[str, tuple[str, tuple[int, ...]]] = {
            "weight": ("int8", (rows, columns // 2)),
            "scales": ("float16", (rows, groups)),
        }
        if any(module.has_zeros for module in self.modules):
            layout["zeros"] = ("int8", (rows, -(-groups // 2)))
        if self.order is not None and not self.is_gathered:
            layout["columns"] = ("int32", (columns,))
        return layout

    @property
    def nbytes(self) -> int:
        return sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in self.layout.values())

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """The tensors of `layout`, of which `columns` [K] says where each column of the weight finds its input.

        Raises CheckpointError: another number of rows, scales or zero points that cannot be kept.
        """
        layout, order = self.layout, self.order
        values = self._fused(lambda module: module.read_values())
        yield "weight", int4.pack(values if order is None else values[:, order])
        yield "scales", self._fused(lambda module: module.read_scales())
        zeros = self._fused(lambda module: module.zeros())  # read in any case: what is symmetric is checked
        if "zeros" in layout:
            yield "zeros", int4.pack(zeros)
        if order is not None and "columns" in layout:
            yield "columns", order

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """W [N, K] in float32, in one block."""
        tensors = dict(self.tensors())
        weight = int4.dequantise(tensors["weight"], tensors["scales"], tensors.get("zeros"))
        if "columns" in tensors:
            weight = weight[:, np.argsort(tensors["columns"])]
        yield weight

    def _fused(self, read: Callable[[Module], Array]) -> Array:
        by_name = {module.name: module for module in self.modules}

        def part(name: str, rows: int) -> Array:
            if by_name[name].shape[0] != rows:
                raise CheckpointError(
                    f"{name}: expected {rows} rows by config.json, found {by_name[name].shape[0]}; "
                    "does config.json fit the weights?"
                )
            return read(by_name[name])

        return self.fuse(part)


def integers(
    stored: Format,
    checkpoint: Checkpoint,
    names: Sequence[str],
    shape: tuple[int, int],
    fuse: Fuse,
    is_gathered: bool = False,
) -> Integers | None:
    """The matrix of `shape` that `fuse` makes of the modules `names`; None if they are wide.

    Raises CheckpointError: only some of them are quantised, not in the same groups of columns, or of other sizes.
    """
    wide = [name for name in names if f"{name}.{stored.marker}" not in checkpoint]
    if len(wide) == len(names):
        return None
    what = "projections that share an input"
    if wide:
        refuse(wide[0], f"expected all {what} to be quantised or none, found this one wide among {', '.join(names)}")
    modules = tuple(stored.module(checkpoint, name) for name in names)
    first = modules[0]
    if (sum(module.shape[0] for module in modules), *{module.shape[1] for module in modules}) != shape:
        sizes = ", ".join(f"{module.name} {list(module.shape)}" for module in modules)
        raise CheckpointError(
            f"expected {list(shape)} weights by config.json, found {sizes}; does config.json fit the weights?"
        )
    for module in modules[1:]:
        if module.group_size != first.group_size:
            refuse(module.name, f"expected groups of {first.group_size} as in {first.name}, found {module.group_size}")
        if _bytes(module.order) != _bytes(first.order):
            refuse(module.name, f"expected one g_idx for {what}, found another than in {first.name}")
    return Integers(modules, fuse, is_gathered)


def _bytes(order: Int32 | None) -> bytes:
    return b"" if order is None else order.tobytes()
