# SPDX-License-Identifier: Apache-2.0
"""Steps with every address fixed: what lies where, what is copied when, and which sizes the launches get."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import standin
from host_kernels import HostKernels
from orinkit.engines.base import Profile, StepInputs
from orinkit.engines.program import Node, Program, read_program
from orinkit.runtime.batch import Batch, Row, Sizes

PROFILE = Profile("prefill", 8, 3)


@pytest.fixture
def gpu() -> Iterator[Any]:
    with standin.installed():
        from orinkit.engines.gpu import Gpu

        yield Gpu()


@pytest.fixture(scope="module")
def program(demo_bundle: Path) -> Program:
    return read_program(demo_bundle / "model.onnx")


class Library(HostKernels):
    """Notes what is launched, with which sizes; asks for most scratch in steps of five tokens."""

    def __init__(self) -> None:
        super().__init__(Path(__file__))
        self.launched: list[tuple[str, int, int]] = []
        self.takes_beside = True

    def launch(self, launcher: str, arguments: Any, stream: int) -> None:
        self.launched.append((launcher, arguments.tokens, stream))

    def query(self, function: str, arguments: Any) -> int:
        if function.endswith("takes_beside"):
            return int(self.takes_beside)
        return {1: 100, 5: 4096}.get(arguments.tokens, 512) + (64 if function.endswith("semaphores") else 0)


@dataclass
class Loaded:
    """An engine as far as a step needs it; its weights lie nowhere."""

    gpu: Any
    program: Program
    library: Library = field(default_factory=Library)
    arenas: list[Any] = field(default_factory=list)

    def arena(self, nbytes: int) -> Any:
        if not self.arenas or self.arenas[-1].nbytes < nbytes:
            self.arenas.append(self.gpu.allocate(nbytes))
        return self.arenas[-1]

    def addresses(self, node: Node) -> dict[str, int]:
        return dict.fromkeys((name for name in node.inputs.values() if name in self.program.weights), 256)


@dataclass
class Caches:
    """As far as a step needs them."""

    addresses: dict[str, int]
    rows: dict[str, int]
    capacity: int = 64
    slots: int = 3


def bound(gpu: Any, program: Program, profile: Profile, engine: Loaded | None = None) -> tuple[Loaded, Any]:
    from orinkit.engines.bound import STEP_INPUTS, BoundStep

    made: Any = engine or Loaded(gpu, program)
    caches: Any = Caches(dict.fromkeys(program.states, 512), dict.fromkeys(program.states, 64))
    return made, BoundStep(made, profile, caches, dict.fromkeys((*STEP_INPUTS, "logits"), 1024))


# The sizes of a step


def test_sizes_come_from_what_is_padded_and_lengths_from_what_is_real(gpu: Any) -> None:
    """Case R2: the grid is that of the padded step, the longest sequence is a real one."""
    from orinkit.engines.bound import shape_of
    from orinkit.engines.launches import StepShape

    rows = [Row(2, 7, (1, 2, 3)), Row(0, 12, (4,))]
    assert shape_of(Batch.of(rows, PROFILE).inputs()) == StepShape(4, 2, 2, 3, 13)
    assert shape_of(Batch.of(rows, PROFILE, Sizes(8, 3, 3)).inputs()) == StepShape(8, 3, 3, 3, 13)


def test_a_step_of_padding_alone_has_sizes(gpu: Any) -> None:
    from orinkit.engines.bound import shape_of
    from orinkit.engines.launches import StepShape

    padding = np.full(2, -1, np.int32)
    inputs = StepInputs(padding, np.zeros(3, np.int32), np.zeros(2, np.int32), padding, padding)
    assert shape_of(inputs) == StepShape(2, 2, 2, 0, 0)


# Inputs on their way to the device


def read(gpu: Any, address: int, count: int) -> list[int]:
    host = gpu.pinned((count,), np.int32)
    gpu.receive(host, address, 4 * count)
    gpu.synchronise()
    found: list[int] = host.array.tolist()
    return found


def step(*lengths: int) -> StepInputs:
    rows = [Row(slot, 5 * slot, tuple(range(1, length + 1))) for slot, length in enumerate(lengths)]
    return Batch.of(rows, PROFILE).inputs()


def test_inputs_arrive_each_at_its_aligned_address(gpu: Any) -> None:
    from orinkit.engines.bound import STEP_INPUTS, StepArrays

    arrays = StepArrays(gpu, PROFILE, "destinations")
    arrays.send(step(4, 1), destinations=np.array([0, -1], np.int32))
    found = {name: read(gpu, address, 2) for name, address in arrays.addresses.items()}
    assert list(found) == [*STEP_INPUTS, "destinations"]
    assert list(found.values()) == [[1, 2], [0, 4], [0, 5], [0, 1], [3, 4], [0, -1]]
    assert all(address % 256 == 0 for address in arrays.addresses.values())


def test_tokens_of_nobody_follow_those_of_the_step(gpu: Any) -> None:
    from orinkit.engines.bound import StepArrays

    arrays = StepArrays(gpu, PROFILE)
    arrays.send(step(4, 4))
    arrays.send(step(4, 4))
    arrays.send(step(4, 1), tokens=7)
    assert read(gpu, arrays.addresses["input_ids"], 7) == [1, 2, 3, 4, 1, -1, -1]
    assert read(gpu, arrays.addresses["cu_seqlens"], 3) == [0, 4, 5]


def test_the_next_inputs_are_written_while_the_last_ones_are_on_their_way(gpu: Any) -> None:
    """The copy is enqueued, so what it copies must stay until it runs."""
    from orinkit.engines.bound import StepArrays

    arrays, kept = StepArrays(gpu, PROFILE), gpu.allocate(32)

    def work() -> None:
        arrays.send(step(3, 2))
        gpu.copy((kept.address, 32), (arrays.addresses["input_ids"], 32), 32, 1)
        arrays.send(step(1, 1))

    gpu.capture(work)()
    assert read(gpu, kept.address, 5) == [1, 2, 3, 1, 2]
    assert read(gpu, arrays.addresses["input_ids"], 2) == [1, 1]


def test_a_side_is_written_once_its_last_copy_has_been_made(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from orinkit.engines.bound import StepArrays

    arrays, seen = StepArrays(gpu, PROFILE), []
    monkeypatch.setattr(gpu, "wait", lambda event: seen.append(("wait", event)))
    monkeypatch.setattr(gpu, "record", lambda event: seen.append(("record", event)))
    for _ in range(3):
        arrays.send(step(1))
    (_, one), (_, two) = seen[0], seen[2]
    assert one != two
    both = [[("wait", event), ("record", event)] for event in (one, two, one)]
    assert seen == [pair for pairs in both for pair in pairs]


# Launches


def test_contexts_share_one_arena_when_the_largest_is_made_first(gpu: Any, program: Program) -> None:
    engine, prefill = bound(gpu, program, PROFILE)
    _, decode = bound(gpu, program, Profile("decode", 2, 2), engine)
    (arena,) = engine.arenas
    for each in (prefill, decode):
        places = [launch.arguments.y for launch in each.launches[:-1]]
        assert all(arena.address <= place < arena.address + arena.nbytes for place in places)
        assert each.launches[-1].arguments.y == 1024


def test_scratch_is_the_most_that_any_number_of_tokens_asks_for(gpu: Any, program: Program) -> None:
    from orinkit.engines.bound import _layout

    engine, made = bound(gpu, program, PROFILE)
    (arena,) = engine.arenas
    values = _layout(program, PROFILE.tokens)[1]
    assert arena.nbytes == values + 4096
    fields = [(launch, engine.library.fields(launch.launcher)) for launch in made.launches]
    scratch = {launch.arguments.workspace for launch, names in fields if "workspace" in names}
    assert scratch == {arena.address + values}


def test_scratch_suffices_for_fewer_sequences(gpu: Any, program: Program) -> None:
    """Attention splits the keys of two sequences more than those of three."""

    class Splitting(Library):
        def query(self, function: str, arguments: Any) -> int:
            return 8192 if getattr(arguments, "sequences", None) == 2 else super().query(function, arguments)

    split, _ = bound(gpu, program, PROFILE, Loaded(gpu, program, Splitting()))
    without, _ = bound(gpu, program, PROFILE)
    assert split.arenas[0].nbytes == without.arenas[0].nbytes + 4096


def test_scratch_is_asked_for_by_inputs_too(gpu: Any, program: Program) -> None:
    """Of two products of the same sizes the second has an order of columns."""

    class Gathering(Library):
        def query(self, function: str, arguments: Any) -> int:
            return 8192 if getattr(arguments, "columns", None) else super().query(function, arguments)

    def ordered(node: Node) -> Node:
        order = {"columns": node.inputs["scales"]} if node.name == "layers.1.down" else {}
        return replace(node, inputs={**node.inputs, **order})

    changed = replace(program, nodes=tuple(map(ordered, program.nodes)))
    with_order, _ = bound(gpu, changed, PROFILE, Loaded(gpu, changed, Gathering()))
    without, _ = bound(gpu, program, PROFILE, Loaded(gpu, program, Gathering()))
    assert with_order.arenas[0].nbytes == without.arenas[0].nbytes + 4096


def test_what_must_stay_zero_is_zero_and_lies_outside_of_the_arena(gpu: Any, program: Program) -> None:
    from orinkit.engines.bound import ZEROED

    engine, made = bound(gpu, program, PROFILE)
    (arena,) = engine.arenas
    found = {
        getattr(launch.arguments, name)
        for launch in made.launches
        for name in ZEROED
        if name in engine.library.fields(launch.launcher)
    }
    (counters,) = found
    assert not arena.address <= counters < arena.address + arena.nbytes
    assert set(ctypes.string_at(counters, 4096 + 64)) == {0}


def test_a_step_enqueues_every_node_in_order_with_its_sizes(gpu: Any, program: Program) -> None:
    from orinkit.engines.launches import StepShape

    engine, made = bound(gpu, program, PROFILE)
    made.enqueue(StepShape(5, 3, 2, 4, 60))
    names = {"OrinEmbedding": "embedding", "OrinInt4Gemm": "int4_gemm", "OrinLinear": "linear"}
    names |= {"OrinAttention": "attention", "OrinGatedDelta": "gated_delta"}
    assert [launcher for launcher, *_ in engine.library.launched] == [names[node.op_type] for node in program.nodes]
    assert {each.arguments.settled for each in made.launches if each.launcher in ("attention", "gated_delta")} == {1}
    assert [tokens for _, tokens, _ in engine.library.launched] == [5] * (len(program.nodes) - 1) + [2]
    assert {stream for *_, stream in engine.library.launched} == {gpu.stream}


def test_scratch_and_steps_are_those_of_the_longest_sequence(gpu: Any, program: Program) -> None:
    """Whatever a step's own length: attention splits others in other ways, and may ask for more."""
    from orinkit.engines.launches import StepShape

    asked: set[int] = set()

    class Asked(Library):
        def query(self, function: str, arguments: Any) -> int:
            asked.add(getattr(arguments, "max_length", 64))
            return super().query(function, arguments)

    _, made = bound(gpu, program, PROFILE, Loaded(gpu, program, Asked()))
    made.enqueue(StepShape(5, 3, 2, 4, 60))
    attention = [each for each in made.launches if each.launcher == "attention"]
    assert asked == {each.arguments.max_length for each in attention} == {64}


# Products beside others


@pytest.mark.parametrize("takes", [True, False])
def test_the_gates_are_computed_beside_the_projections_of_one_token(gpu: Any, program: Program, takes: bool) -> None:
    engine = Loaded(gpu, program)
    engine.library.takes_beside = takes
    _, one = bound(gpu, program, Profile("decode 1", 1, 1), engine)
    gates = [node for node in program.nodes if node.name.endswith(".ba")]
    assert gates
    assert len(one.launches) == len(program.nodes) - takes * len(gates)
    large = [launch for launch in one.launches if launch.launcher == "int4_gemm"]
    pairs = {launch.name: launch for launch in large if launch.arguments.beside}
    assert set(pairs) == ({f"{gate.name[:-3]}.qkvz and {gate.name}" for gate in gates} if takes else set())
    for launch in pairs.values():
        (small,) = launch.holds
        assert launch.arguments.beside == ctypes.addressof(small)
        assert small.x == launch.arguments.x
        assert small.y not in (0, launch.arguments.y, launch.arguments.x)
    _, two = bound(gpu, program, Profile("decode 2", 2, 2), engine)
    assert len(two.launches) == len(program.nodes)
