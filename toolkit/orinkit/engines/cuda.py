# SPDX-License-Identifier: Apache-2.0
"""The `cuda` engine: the bundle's graph by our own kernels, on any NVIDIA GPU from SM80, without TensorRT.

Weights are read once, in the kernels' layout, and shared by all contexts. A context holds its launches with every
address fixed; contexts never run at the same time, so they share one arena for values between ops and scratch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from orinkit.engines.base import Caches, Context, Float32, Profile, StepInputs
from orinkit.engines.gpu import Gpu, Memory
from orinkit.engines.kernels import KernelLibrary
from orinkit.engines.launches import Launch, StepShape, make_launch, output_width
from orinkit.engines.program import PACKED, Node, Program, Weight, read_program
from orinkit.engines.slabs import Slabs
from orinkit.errors import EngineError
from orinkit.memory.arena import Value, aligned, place
from orinkit.memory.rings import ring_rows
from orinkit.model import ModelSpec

ZEROED = ("counters", "semaphores")
"""Fields of launchers for memory that is zeroed once and that launches leave at zero."""

STEP_INPUTS = ("input_ids", "cu_seqlens", "past_lens", "slots", "logit_rows")


class CudaCaches:
    """Every state as one array [S, ...] in device memory; contents mean nothing where no sequence has been."""

    def __init__(self, gpu: Gpu, program: Program, rows: Mapping[str, int], slots: int, capacity: int) -> None:
        self._slots, self._capacity = slots, capacity
        self.rows = dict(rows)
        nbytes = {}
        for name, state in program.states.items():
            sizes = [size if size is not None else rows[name] for size in state.sizes]
            nbytes[name] = slots * int(np.prod(sizes)) * np.dtype(state.dtype).itemsize
        self._memory = Slabs(gpu, nbytes.values())
        self.addresses = {name: self._memory.take(size) for name, size in nbytes.items()}

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def nbytes(self) -> int:
        return self._memory.nbytes


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
        """Allocate the states of `slots` sequences."""
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
    """One profile and one set of caches, with every address fixed."""

    def __init__(self, engine: CudaEngine, profile: Profile, caches: CudaCaches) -> None:
        self._gpu, self._library, self._profile, self._caches = engine.gpu, engine.library, profile, caches
        rows = profile.logit_rows or profile.sequences
        vocab = engine.program.vocab
        counts = (profile.tokens, profile.sequences + 1, profile.sequences, profile.sequences, rows)
        self._inputs = self._gpu.allocate(aligned(4 * sum(counts)))
        self._staged = self._gpu.pinned((sum(counts),), np.int32)
        self._starts = dict(zip(STEP_INPUTS, np.cumsum((0, *counts[:-1])).tolist(), strict=True))
        self._logits = self._gpu.allocate(4 * rows * vocab)
        self._received = self._gpu.pinned((rows, vocab), np.float32)
        addresses = {name: self._inputs.address + 4 * start for name, start in self._starts.items()}
        addresses |= caches.addresses | {"logits": self._logits.address}
        self.launches, self._counters = _plan(engine, profile, caches, addresses, rows)

    @property
    def profile(self) -> Profile:
        return self._profile

    def run(self, inputs: StepInputs) -> Float32:
        """One step, enqueued kernel by kernel."""
        self._send(inputs)
        lengths = np.diff(inputs.cu_seqlens)
        rows = len(inputs.logit_rows)
        longest = int((inputs.past_lens + lengths).max(initial=0))
        if longest > self._caches.capacity:
            raise EngineError(f"expected at most {self._caches.capacity} tokens in a slot, found {longest}")
        self.enqueue(StepShape(len(inputs.input_ids), len(inputs.slots), rows, int(lengths.max(initial=0)), longest))
        self._gpu.receive(self._received, self._logits.address, 4 * rows * self._received.array.shape[1])
        self._gpu.synchronise()
        logits: Float32 = self._received.array[:rows]
        return logits

    def enqueue(self, shape: StepShape) -> None:
        """Enqueue the launches of a step whose inputs lie in device memory already."""
        for launch in self.launches:
            launch.set(shape)
            self._library.launch(launch.launcher, launch.arguments, self._gpu.stream)

    def _send(self, inputs: StepInputs) -> None:
        for name, start in self._starts.items():
            values = getattr(inputs, name)
            self._staged.array[start : start + len(values)] = values
        self._gpu.send(self._inputs.address, self._staged, self._staged.array.nbytes)


def _plan(
    engine: CudaEngine, profile: Profile, caches: CudaCaches, fixed: Mapping[str, int], rows: int
) -> tuple[list[Launch], Memory]:
    """The launches of a context, and the counters that they keep at zero.

    Values between ops and scratch lie in the arena that contexts share; what must stay zero does not.
    """
    offsets, end = _layout(engine.program, profile.tokens)
    sized = _launches(engine, caches, dict(fixed) | offsets)
    scratch, zeroed = _scratch(engine, sized, profile, rows, caches)
    arena = engine.arena(end + scratch)
    counters = engine.gpu.allocate(zeroed)
    engine.gpu.zero(counters.address, counters.nbytes)
    places = {name: arena.address + offset for name, offset in offsets.items()}
    made = _launches(engine, caches, dict(fixed) | places)
    for launch in made:
        fields = engine.library.fields(launch.launcher)
        for name, address in (("workspace", arena.address + end), *((name, counters.address) for name in ZEROED)):
            if name in fields:
                setattr(launch.arguments, name, address)
    return made, counters


def _launches(engine: CudaEngine, caches: CudaCaches, addresses: Mapping[str, int]) -> list[Launch]:
    return [
        make_launch(engine.library, engine.program, node, {**addresses, **engine.addresses(node)}, caches.rows)
        for node in engine.program.nodes
    ]


def _layout(program: Program, tokens: int) -> tuple[dict[str, int], int]:
    """Offsets in the arena of the values between ops, and their end."""
    nodes = program.nodes
    return place([Value(n.outputs[0], 2 * tokens * output_width(n), tuple(n.inputs.values())) for n in nodes])


def _scratch(
    engine: CudaEngine, launches: list[Launch], profile: Profile, rows: int, caches: CudaCaches
) -> tuple[int, int]:
    """Most bytes of workspace, and of counters, that any launch asks for in any step of the profile."""
    most = {"workspace": 0, "zeroed": 1}
    seen = set()
    for launch in launches:
        launch.set(StepShape(profile.tokens, profile.sequences, rows, profile.tokens, caches.capacity))
        fields = engine.library.fields(launch.launcher)
        key = (launch.launcher, *(getattr(launch.arguments, name) for name, kind in fields.items() if kind != "P"))
        if key in seen:
            continue
        seen.add(key)
        for tokens in range(1, profile.tokens + 1):
            launch.set(StepShape(tokens, profile.sequences, min(rows, tokens), tokens, caches.capacity))
            for kind, names in (("workspace", ("workspace",)), ("zeroed", ZEROED)):
                for name in names:
                    if name in fields:
                        found = engine.library.query(f"{launch.launcher}_{name}", launch.arguments)
                        most[kind] = max(most[kind], found)
    return aligned(most["workspace"]), aligned(most["zeroed"])
