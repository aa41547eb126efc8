# SPDX-License-Identifier: Apache-2.0
"""A step of the `cuda` engine with every address fixed: where its inputs lie, and its launches.

Contexts never run at the same time, so values between ops and scratch lie in one arena that they share; what kernels
expect to find at zero, and leave so, does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise, product
from operator import add
from typing import TYPE_CHECKING

import numpy as np

from orinkit.engines.base import Profile, StepInputs
from orinkit.engines.beside import joined
from orinkit.engines.gpu import Gpu, Memory
from orinkit.engines.launches import Launch, StepShape, make_launch, output_width, settle
from orinkit.engines.program import Program
from orinkit.memory.arena import Value, aligned, place

if TYPE_CHECKING:
    from orinkit.engines.cuda import CudaCaches, CudaEngine

ZEROED = ("counters", "semaphores")
"""Fields of launchers for memory that is zeroed once and that launches leave at zero."""

STEP_INPUTS = ("input_ids", "cu_seqlens", "past_lens", "slots", "logit_rows")


def shape_of(inputs: StepInputs) -> StepShape:
    """The sizes of a step."""
    lengths = [end - start for start, end in pairwise(inputs.cu_seqlens.tolist())]
    longest = max(map(add, inputs.past_lens.tolist(), lengths), default=0)
    return StepShape(len(inputs.input_ids), len(inputs.slots), len(inputs.logit_rows), max(lengths, default=0), longest)


class StepArrays:
    """The inputs of a profile's steps in device memory, and two sides of pinned memory that they come from: the next
    step's are written while the last one's are on their way."""

    def __init__(self, gpu: Gpu, profile: Profile, *more: str) -> None:
        """`more` arrays of one value for each sequence, beside the inputs of the graph."""
        rows = profile.logit_rows or profile.sequences
        counts = (profile.tokens, profile.sequences + 1, profile.sequences, profile.sequences, rows)
        sizes = dict(zip(STEP_INPUTS, counts, strict=True))
        sizes |= dict.fromkeys(more, profile.sequences)
        ends = np.cumsum([aligned(4 * size) // 4 for size in sizes.values()]).tolist()  # TensorRT wants them aligned
        self._starts = dict(zip(sizes, [0, *ends[:-1]], strict=True))
        self._gpu = gpu
        self._memory = gpu.allocate(aligned(4 * ends[-1]))
        self._sides = [(gpu.pinned((ends[-1],), np.int32), gpu.event()) for _ in range(2)]
        self.addresses = {name: self._memory.address + 4 * start for name, start in self._starts.items()}

    def send(self, inputs: StepInputs, tokens: int = 0, **more: np.ndarray[tuple[int], np.dtype[np.int32]]) -> None:
        """Enqueue a copy of all arrays, with tokens of nobody behind those of the step up to `tokens`."""
        self._sides.reverse()
        staged, sent = self._sides[0]
        self._gpu.wait(sent)
        for name, start in self._starts.items():
            values = more[name] if name in more else getattr(inputs, name)
            staged.array[start : start + len(values)] = values
        first = self._starts["input_ids"]
        staged.array[first + len(inputs.input_ids) : first + tokens] = -1
        self._gpu.send(self._memory.address, staged, staged.array.nbytes)
        self._gpu.record(sent)


class BoundStep:
    """The launches of one profile over one set of caches."""

    def __init__(self, engine: CudaEngine, profile: Profile, caches: CudaCaches, addresses: Mapping[str, int]) -> None:
        """`addresses` of the step's inputs and logits. Raises EngineError."""
        self._engine = engine  # its weights lie at the addresses of the launches
        self._caches = caches
        rows = profile.logit_rows or profile.sequences
        self.launches, self._memory = _plan(engine, profile, caches, {**addresses, **caches.addresses}, rows)

    def enqueue(self, shape: StepShape) -> None:
        """Enqueue the launches of a step whose inputs lie in device memory already.

        They are those of sequences as long as the caches: the scratch was asked for these, and a capture has them too.
        """
        stream, shape = self._engine.gpu.stream, replace(shape, max_length=self._caches.capacity)
        for launch in self.launches:
            launch.set(shape)
            launch.enqueue(stream)


def _plan(
    engine: CudaEngine, profile: Profile, caches: CudaCaches, fixed: Mapping[str, int], rows: int
) -> tuple[list[Launch], tuple[Memory, Memory]]:
    """The launches of a context, and the memory that they use: the arena, and counters that they keep at zero.

    Values between ops and scratch lie in the arena that contexts share; what must stay zero does not.
    """
    offsets, end = _layout(engine.program, profile.tokens)
    sized = _launches(engine, caches, dict(fixed) | offsets)
    scratch, zeroed = _scratch(engine, sized, profile, rows, caches)
    arena = engine.arena(end + scratch)
    counters = engine.gpu.allocate(zeroed)
    engine.gpu.fill(counters.address, 0, counters.nbytes)
    places = {name: arena.address + offset for name, offset in offsets.items()}
    made = _launches(engine, caches, dict(fixed) | places)
    for launch in made:
        fields = engine.library.fields(launch.launcher)
        for name, address in (("workspace", arena.address + end), *((name, counters.address) for name in ZEROED)):
            if name in fields:
                setattr(launch.arguments, name, address)
    together = list(joined(engine.library, made)) if profile.tokens == 1 else made
    settle(together)
    return together, (arena, counters)


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
        values = {name: (kind, getattr(launch.arguments, name)) for name, kind in fields.items()}
        key = (launch.launcher, *(bool(value) if kind == "P" else value for kind, value in values.values()))
        if key in seen:
            continue
        seen.add(key)
        for tokens, sequences in product(range(1, profile.tokens + 1), range(1, profile.sequences + 1)):
            launch.set(StepShape(tokens, sequences, min(rows, tokens), tokens, caches.capacity))
            for kind, names in (("workspace", ("workspace",)), ("zeroed", ZEROED)):
                for name in names:
                    if name in fields:
                        found = engine.library.query(f"{launch.launcher}_{name}", launch.arguments)
                        most[kind] = max(most[kind], found)
    return aligned(most["workspace"]), aligned(most["zeroed"])
