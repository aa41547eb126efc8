# SPDX-License-Identifier: Apache-2.0
"""The `cuda` engine: the bundle's graph by our own kernels, on any NVIDIA GPU from SM80, without TensorRT.

Weights are read once, in the kernels' layout, and shared by all contexts. A context holds its launches with every
address fixed; contexts never run at the same time, so they share one arena for values between ops and scratch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from orinkit.engines.base import Caches, Context, Float32, Limits, Pipeline, Profile, StepInputs
from orinkit.engines.bound import BoundStep, StepArrays, shape_of
from orinkit.engines.gpu import Gpu, Memory
from orinkit.engines.kernels import KernelLibrary
from orinkit.engines.program import PACKED, Node, Program, Weight, read_program
from orinkit.engines.slabs import Slabs
from orinkit.engines.spare import DeviceSpare, SlotState, state_sizes
from orinkit.errors import EngineError
from orinkit.memory.arena import aligned
from orinkit.memory.rings import ring_rows
from orinkit.model import ModelSpec


class CudaCaches:
    """Every state as one array [S, ...] in device memory; contents mean nothing where no sequence has been."""

    def __init__(self, gpu: Gpu, program: Program, rows: Mapping[str, int], slots: int, capacity: int) -> None:
        self._gpu, self._slots, self._capacity = gpu, slots, capacity
        self.rows = dict(rows)
        shapes = {
            name: (slots, *(rows[name] if size is None else size for size in state.sizes))
            for name, state in program.states.items()
        }
        dtypes = {name: state.dtype for name, state in program.states.items()}
        self.sizes = state_sizes(shapes, dtypes)
        """Bytes of each state of all slots."""
        self._memory = Slabs(gpu, self.sizes.values())
        self.addresses = {name: self._memory.take(size) for name, size in self.sizes.items()}
        self._states = {n: SlotState.of(self.addresses[n], shape, dtypes[n]) for n, shape in shapes.items()}

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes

    def spare(self, count: int) -> DeviceSpare:
        return DeviceSpare(self._gpu, self._states, count, self._capacity)


class CudaEngine:
    """A graph whose weights lie in device memory."""

    name = "cuda"
    can_capture = True

    def __init__(self, graph: Path, data: Path, model: ModelSpec, library: Path) -> None:
        """Load graph, weights and kernels. Raises EngineError, GraphError."""
        self.gpu = Gpu()
        self.library = KernelLibrary(library)
        self.program = read_program(graph)
        self._windows = {f"kv_{i}": layer.attention.window for i, layer in enumerate(model.layers) if layer.attention}
        self._arena: Memory | None = None
        self._load(np.memmap(data, np.uint8, "r"))

    @property
    def weight_bytes(self) -> int:
        return self._weights.nbytes

    def caches(self, slots: int, capacity: int, chunk: int) -> CudaCaches:
        """Allocate the states of `slots` sequences. Raises EngineError: longer than the graph's tables."""
        longest = min(
            (w.shape[0] for name, w in self.program.weights.items() if name.startswith("rope.")), default=None
        )
        if longest is not None and capacity > longest:
            raise EngineError(
                f"expected a capacity of at most {longest}, which the graph was made for, found {capacity}"
            )
        rows = {
            name: ring_rows(self._windows.get(name, 0), capacity, chunk)
            for name, state in self.program.states.items()
            if None in state.sizes
        }
        return CudaCaches(self.gpu, self.program, rows, slots, capacity)

    def context(self, profile: Profile, caches: Caches) -> Context:
        if not isinstance(caches, CudaCaches):
            raise EngineError("expected caches made by this engine; call caches() first")
        return CudaContext(self, profile, caches)

    @property
    def vocab(self) -> int:
        """Width of the logits."""
        return self.program.vocab

    def bind(self, profile: Profile, caches: CudaCaches, addresses: Mapping[str, int]) -> BoundStep:
        """The step of a profile with inputs and logits at `addresses`. Raises EngineError."""
        return BoundStep(self, profile, caches, addresses)

    def pipeline(self, slots: int, capacity: int, chunk: int, limits: Limits) -> Pipeline:
        """Caches, contexts and captures, in this order. Raises EngineError."""
        from orinkit.engines.cuda_pipeline import CudaPipeline

        return CudaPipeline(self, self.caches(slots, capacity, chunk), chunk, limits)

    def arena(self, nbytes: int) -> Memory:
        """The memory that contexts share: that of the first context, or a larger one if it does not suffice."""
        if self._arena is None or self._arena.nbytes < nbytes:
            self._arena = self.gpu.allocate(nbytes)
        return self._arena

    def addresses(self, node: Node) -> dict[str, int]:
        """Where the weights of a node lie, by their names in the graph."""
        names = [name for name in node.inputs.values() if name in self.program.weights]
        return {name: self._addresses[name] for name in names}

    def _load(self, data: np.memmap[tuple[int], np.dtype[np.uint8]]) -> None:
        weights = self.program.weights
        used = {name for node in self.program.nodes for name in node.inputs.values() if name in weights}
        in_order = sorted(used, key=lambda name: weights[name].offset)
        self._weights = Slabs(self.gpu, (weights[name].nbytes for name in in_order))
        self._addresses = {name: self._weights.take(weights[name].nbytes) for name in in_order}
        for name in used - self.program.packed:
            self._copy(self._addresses[name], weights[name], data)
        staging = self.gpu.allocate(sum(self._largest(self.program.packed)))
        products = {n.inputs["weight"]: n for n in self.program.nodes if n.op_type == "OrinInt4Gemm"}
        for node in products.values():
            self._pack(node, staging, data)
        self.gpu.synchronise()

    def _largest(self, names: frozenset[str]) -> Iterator[int]:
        """Bytes of the largest tensor of each kind that is packed."""
        for part in PACKED:
            sizes = [aligned(self.program.weights[name].nbytes) for name in names if name.endswith(part)]
            yield max(sizes, default=0)

    def _pack(self, node: Node, staging: Memory, data: np.memmap[tuple[int], np.dtype[np.uint8]]) -> None:
        """The weights of one product, converted on the device to the kernels' layout."""
        start, fields = staging.address, dict.fromkeys(self.library.fields("int4_layout"), 0)
        for part in PACKED:
            if part in node.inputs:
                name = node.inputs[part]
                weight = self.program.weights[name]
                self._copy(start, weight, data)
                fields |= {part: start, f"{part}_out": self._addresses[name]}
                start += aligned(weight.nbytes)
        fields |= {name: node.attributes[name] for name in ("n", "k", "group_size")}
        self.library.launch("int4_layout", self.library.arguments("int4_layout", **fields), self.gpu.stream)
        self.gpu.synchronise()

    def _copy(self, address: int, weight: Weight, data: np.memmap[tuple[int], np.dtype[np.uint8]]) -> None:
        self.gpu.upload(address, np.ascontiguousarray(data[weight.offset : weight.offset + weight.nbytes]))


class CudaContext:
    """One profile and one set of caches, whose logits go to the host."""

    def __init__(self, engine: CudaEngine, profile: Profile, caches: CudaCaches) -> None:
        self._gpu, self._profile, self._capacity = engine.gpu, profile, caches.capacity
        rows, vocab = profile.logit_rows or profile.sequences, engine.program.vocab
        self._inputs = StepArrays(engine.gpu, profile)
        self._logits = engine.gpu.allocate(4 * rows * vocab)
        self._received = engine.gpu.pinned((rows, vocab), np.float32)
        self.step = BoundStep(engine, profile, caches, self._inputs.addresses | {"logits": self._logits.address})

    @property
    def profile(self) -> Profile:
        return self._profile

    def run(self, inputs: StepInputs) -> Float32:
        """One step, enqueued kernel by kernel."""
        shape = shape_of(inputs)
        if shape.max_length > self._capacity:
            raise EngineError(f"expected at most {self._capacity} tokens in a slot, found {shape.max_length}")
        self._inputs.send(inputs)
        self.step.enqueue(shape)
        self._gpu.receive(self._received, self._logits.address, 4 * shape.logit_rows * self._received.array.shape[1])
        self._gpu.synchronise()
        logits: Float32 = self._received.array[: shape.logit_rows]
        return logits
