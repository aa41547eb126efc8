# SPDX-License-Identifier: Apache-2.0
"""A real GPU under the stand-in: what `host.py` says of host memory, and graphs computed by orinkit's kernels."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
from cuda.bindings import runtime as rt

from orinkit.engines.base import Profile
from orinkit.engines.bound import BoundStep
from orinkit.engines.deploy import PACKED
from orinkit.engines.gpu import Gpu, Memory, check
from orinkit.engines.kernels import KernelLibrary
from orinkit.engines.launches import StepShape
from orinkit.engines.program import Node, Program, Weight, read_program

from .settings import SETTINGS

_faults: list[str] = []


def lost() -> str:
    error, *_ = rt.cudaPeekAtLastError()
    return "".join(_faults) or (error.name if error == rt.cudaError_t.cudaErrorIllegalAddress else "")


def lose() -> None:
    _faults.append(rt.cudaError_t.cudaErrorIllegalAddress.name)


def is_capturing(stream: int) -> bool:
    return bool(check(rt.cudaStreamIsCapturing(stream)) == rt.cudaStreamCaptureStatus.cudaStreamCaptureStatusActive)


def spoil_capture(stream: int) -> None:
    rt.cudaStreamSynchronize(stream)


def enqueue(stream: int, work: Callable[[], None]) -> bool:
    work()
    return True


def scratch(address: int, nbytes: int, stream: int) -> None:
    check(rt.cudaMemsetAsync(address, 0xFF, nbytes, stream))


class _Deployed(Program):
    """Everything whose name says so is in the kernel layout, the table of an embedding too."""

    @property
    def packed(self) -> frozenset[str]:
        return frozenset(name for name in self.weights if name.endswith(PACKED))


class Executor:
    """One graph; in the place of a `CudaEngine` for the steps that it binds, whose weights and states are given."""

    def __init__(self, model: ir.Model) -> None:
        self.program = _program(model)
        self.gpu = Gpu()
        self.library = KernelLibrary(Path(SETTINGS["kernels"]))
        self._steps: dict[Any, BoundStep] = {}
        tables = (weight.shape[0] for name, weight in self.program.weights.items() if name.startswith("rope."))
        self._longest = min(tables, default=1 << 20)

    def run(self, stream: int, addresses: Mapping[str, int], sizes: Mapping[str, int], most: Mapping[str, int]) -> None:
        """Enqueue a step, bound when it first runs and so before any capture; lengths are unknown, as to plugins."""
        for name in self.program.states:
            if addresses[f"{name}_out"] != addresses[name]:
                raise AssertionError(f"{name}: expected its output at the address of its input")
        key = (stream, tuple(sorted(addresses.items())), tuple(most.items()))
        if key not in self._steps:
            self._steps[key] = self._bind(stream, addresses, most)
        tokens, sequences = sizes["input_ids"], sizes["slots"]
        longest_step = 1 if tokens <= sequences else min(tokens, self._longest)
        self._steps[key].enqueue(StepShape(tokens, sequences, sizes["logit_rows"], longest_step, self._longest))

    def arena(self, nbytes: int) -> Memory:
        """As a `CudaEngine` has it, though not shared."""
        return self.gpu.allocate(nbytes)

    def addresses(self, node: Node) -> dict[str, int]:  # noqa: ARG002  (those of all values are given)
        return {}

    def _bind(self, stream: int, addresses: Mapping[str, int], most: Mapping[str, int]) -> BoundStep:
        self.gpu.stream = stream
        rows = {name: state.sizes[2] for name, state in self.program.states.items() if name.startswith("kv_")}
        caches: Any = SimpleNamespace(rows=rows, capacity=self._longest, addresses={})
        profile = Profile("any", most["input_ids"], most["slots"], most["logit_rows"])
        engine: Any = self
        return BoundStep(engine, profile, caches, addresses)


executor = Executor
"""What computes a plan."""


def _program(model: ir.Model) -> Program:
    """The nodes, with every weight as an input of the graph."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "deploy.onnx")
        ir.save(model, path)
        program = read_program(path)
    known = {"input_ids", "cu_seqlens", "past_lens", "slots", "logit_rows", *program.states}
    weights = {str(v.name): _weight(v) for v in model.graph.inputs if v.name not in known}
    return _Deployed(**vars(replace(program, weights=weights)))


def _weight(value: ir.Value) -> Weight:
    shape = tuple(int(size) for size in value.shape or ())  # type: ignore[arg-type]
    return Weight(value.dtype.numpy().name if value.dtype else "", shape, 0, 0)
