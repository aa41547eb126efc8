# SPDX-License-Identifier: Apache-2.0
"""What follows the graph in a step, on the stand-ins for CUDA and the kernels: seats and the next step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import standin
from host_kernels import HostKernels
from orinkit.engines.base import Limits, Seat
from orinkit.errors import EngineError
from orinkit.runtime.sampling import Sampling, settings_of

SLOTS, CAPACITY, VOCAB = 3, 32, 100
LIMITS = Limits(biases=4, stops=3, logprobs=2, run_ahead=2, snapshots=0)
LIBRARY: Any = HostKernels(Path(__file__))
SEAT = Seat((7, 8, 7), settings_of(Sampling()), {}, (5,), 20, num_logprobs=2)
PENALISED = replace(SEAT, settings=settings_of(Sampling(presence_penalty=1.0)))
IN_PROMPT = 0x8000


@pytest.fixture
def gpu() -> Iterator[Any]:
    with standin.installed():
        from orinkit.engines.gpu import Gpu

        yield Gpu()


def on_device(gpu: Any, address: int, shape: tuple[int, ...], dtype: Any) -> Any:
    """A copy of device memory."""
    host = gpu.pinned(shape, dtype)
    gpu.receive(host, address, host.array.nbytes)
    gpu.synchronise()
    return host.array


# Mirrors


@pytest.fixture
def mirror(gpu: Any) -> Any:
    from orinkit.engines.choosing import Mirror

    return Mirror(gpu, SLOTS, 4, np.int32)


def test_a_mirror_begins_with_zeros(gpu: Any, mirror: Any) -> None:
    assert not on_device(gpu, mirror.address, (SLOTS, 4), np.int32).any()


def test_a_row_is_sent_alone_and_only_as_far_as_asked(gpu: Any, mirror: Any) -> None:
    for slot in range(SLOTS):
        mirror.row(slot)[:] = 10 * slot + np.arange(4)
    mirror.send(1)
    mirror.send(2, 3)
    expected = [[0, 0, 0, 0], [10, 11, 12, 13], [20, 21, 22, 0]]
    assert on_device(gpu, mirror.address, (SLOTS, 4), np.int32).tolist() == expected
    assert on_device(gpu, mirror.at(2, 1), (2,), np.int32).tolist() == [21, 22]


def test_what_the_device_has_is_not_sent_again(gpu: Any, mirror: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, send = [], gpu.send

    def noted(address: int, *more: Any) -> None:
        sent.append(address)
        send(address, *more)

    monkeypatch.setattr(gpu, "send", noted)
    rows = [np.array(values, np.int32).tobytes() for values in ([1, 2, 3, 4], [1, 2], [5])]
    for slot, row in ((1, 0), (1, 0), (1, 1), (2, 0), (1, 2), (1, 2), (1, 0)):
        mirror.put(slot, rows[row])
    assert sent == [mirror.at(slot) for slot in (1, 2, 1, 1)]
    expected = [[0, 0, 0, 0], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert on_device(gpu, mirror.address, (SLOTS, 4), np.int32).tolist() == expected


# Structs


@pytest.mark.parametrize("name", ["sampling_slot", "step_entry"])
def test_structs_lie_in_memory_as_a_compiler_lays_them_out(gpu: Any, name: str) -> None:
    """NumPy does not pad, C does; an array of them has the stride of C's struct."""
    from orinkit.engines.choosing import struct_of

    fields = struct_of(LIBRARY, name)
    assert np.dtype(fields) == np.dtype(np.dtype(fields, align=True).descr)
    assert np.dtype(fields).itemsize % 8 == 0


# Seats


class Device:
    """What the device knows of the seats."""

    def __init__(self, gpu: Any) -> None:
        from orinkit.engines.choosing import Seats

        self.gpu, self.seats = gpu, Seats(gpu, LIBRARY, SLOTS, CAPACITY, VOCAB, LIMITS)

    def settings(self, slot: int) -> Any:
        return on_device(self.gpu, self.seats.settings.address, (SLOTS,), LIBRARY.dtype("sampling_slot"))[slot]

    def row(self, mirror: str, slot: int, width: int, dtype: Any) -> list[float]:
        address = getattr(self.seats, mirror).address
        found: list[float] = on_device(self.gpu, address, (SLOTS, width), dtype)[slot].tolist()
        return found

    def counts(self, slot: int) -> dict[int, int]:
        counts = on_device(self.gpu, self.seats.counts, (SLOTS, VOCAB), np.uint16)[slot]
        return {int(token): int(counts[token]) for token in np.flatnonzero(counts)}


def test_a_seat_is_what_steps_read(gpu: Any) -> None:
    device = Device(gpu)
    settings = settings_of(Sampling(temperature=0.5, top_k=3, top_p=0.9, presence_penalty=1.5, seed=(1 << 64) - 1))
    seat = Seat((1, 9, 9), settings, {4: 2.5, 6: -1.0}, (5, 2), 17, num_logprobs=1, is_constrained=True)
    device.seats.put(1, seat)
    found = device.settings(1)
    assert {name: found[name].item() for name in settings} == settings
    assert (found["num_biases"], found["num_logprobs"], found["is_constrained"]) == (2, 1, 1)
    assert device.row("bias_ids", 1, 4, np.int32)[:2] == [4, 6]
    assert device.row("bias_values", 1, 4, np.float64)[:2] == [2.5, -1.0]
    assert device.row("stops", 1, 3, np.int32) == [5, 2, -1]
    assert device.row("max_lengths", 1, 1, np.int32) == [17]
    assert device.counts(1) == {1: IN_PROMPT, 9: IN_PROMPT}


def test_nothing_is_left_of_who_sat_there_before(gpu: Any) -> None:
    device = Device(gpu)
    before = replace(PENALISED, biases={1: 1.0, 2: 2.0}, stops=(5, 6, 7), is_constrained=True, prompt=(3,) * 9)
    device.seats.put(0, before)
    device.seats.put(0, replace(PENALISED, prompt=(4,)))
    found = device.settings(0)
    assert (found["num_biases"], found["is_constrained"]) == (0, 0)
    assert device.row("stops", 0, 3, np.int32) == [5, -1, -1]
    assert device.counts(0) == {4: IN_PROMPT}


@pytest.mark.parametrize("penalty", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_only_who_has_a_penalty_has_counts(gpu: Any, penalty: str) -> None:
    device = Device(gpu)
    for value, expected in ((1.5, 3), (None, 3), (0.5, 5)):
        settings = settings_of(Sampling()) | ({penalty: value} if value else {})
        device.seats.put(0, replace(SEAT, settings=settings, prompt=(expected if value else 4,) * 9))
        assert device.counts(0) == {expected: IN_PROMPT}


def test_the_neighbours_keep_their_seats(gpu: Any) -> None:
    device = Device(gpu)
    for slot in range(SLOTS):
        device.seats.put(slot, replace(PENALISED, prompt=(slot,), max_length=10 + slot, biases={slot: 1.0}))
    device.seats.put(1, replace(PENALISED, prompt=(50,)))
    for slot in (0, 2):
        assert device.counts(slot) == {slot: IN_PROMPT}
        assert device.row("max_lengths", slot, 1, np.int32) == [10 + slot]
        assert (device.settings(slot)["num_biases"], device.row("bias_ids", slot, 4, np.int32)[0]) == (1, slot)


@pytest.mark.parametrize(
    "more", [{"biases": dict.fromkeys(range(5), 1.0)}, {"stops": (1, 2, 3, 4)}, {"num_logprobs": 3}]
)
def test_more_than_the_limits_is_refused_and_changes_nothing(gpu: Any, more: dict[str, Any]) -> None:
    device = Device(gpu)
    device.seats.put(0, PENALISED)
    expected = "expected at most 4 biases, 3 stop ids and 2 log-probabilities, found"
    with pytest.raises(EngineError, match=expected):
        device.seats.put(0, replace(PENALISED, prompt=(1,), max_length=9, is_constrained=True, **more))
    assert device.counts(0) == {7: IN_PROMPT, 8: IN_PROMPT}
    assert (device.settings(0)["is_constrained"], device.settings(0)["num_biases"]) == (0, 0)
    assert device.row("stops", 0, 3, np.int32) == [5, -1, -1]
    assert device.row("max_lengths", 0, 1, np.int32) == [20]


# The end of a step


class Model:
    """Stands for the graph: it has left logits whose best ids are known."""

    def __init__(self, gpu: Any) -> None:
        from orinkit.engines.choosing import Choosing

        self.gpu = gpu
        self.logits = gpu.pinned((SLOTS, VOCAB), np.float32)
        self.logits.array[:] = 0
        self.choosing = Choosing(gpu, LIBRARY, SLOTS, CAPACITY, VOCAB, self.logits.address, LIMITS)
        self.inputs = gpu.pinned((6, SLOTS + 1), np.int32)

    def prefill_end(self, slots: list[int], lengths: list[int], wanted: list[bool]) -> Any:
        """The end of a prefill of these slots, as a function to enqueue it."""
        count = len(slots)
        ends = [sum(lengths[: index + 1]) for index in range(count)]
        rows = [end - 1 if wants else -1 for end, wants in zip(ends, wanted, strict=True)]
        names = ("input_ids", "cu_seqlens", "past_lens", "slots", "logit_rows", "destinations")
        to = [slot if wants else -1 for slot, wants in zip(slots, wanted, strict=True)]
        values = ([0] * count, [0, *ends], [0] * count, slots, rows, to)
        for index, each in enumerate(values):
            self.inputs.array[index, : len(each)] = each
        at = {name: self.inputs.address + 4 * (SLOTS + 1) * index for index, name in enumerate(names)}
        return self.choosing.bind(at, count, at["destinations"])

    def best(self, *tokens: int) -> None:
        """Row by row."""
        self.logits.array[:] = 0
        for row, token in enumerate(tokens):
            self.logits.array[row, token] = 9

    def next(self, name: str) -> list[int]:
        found: list[int] = on_device(self.gpu, self.choosing.next[name], (SLOTS,), np.int32).tolist()
        return found


@pytest.fixture
def model(gpu: Any) -> Model:
    return Model(gpu)


def test_the_decode_step_is_padding_at_first(gpu: Any, model: Model) -> None:
    assert [model.next(name) for name in ("input_ids", "slots", "logit_rows")] == [[-1] * SLOTS] * 3
    assert model.next("past_lens") == [0] * SLOTS
    assert on_device(gpu, model.choosing.next["cu_seqlens"], (SLOTS + 1,), np.int32).tolist() == [0, 1, 2, 3]


def test_a_prefill_puts_its_sequences_into_the_rows_of_their_slots(model: Model) -> None:
    """The one whose prompt goes on stays out of decode and is told nothing."""
    for slot in (2, 0):
        model.choosing.seats.put(slot, SEAT)
    model.best(33, 44)
    model.prefill_end([2, 0], [3, 3], [True, False])()
    assert model.next("input_ids") == [-1, -1, 33]
    assert model.next("slots") == [-1, -1, 2]
    assert model.next("past_lens") == [0, 0, 3]
    assert model.next("logit_rows") == [-1, -1, 2]
    assert model.choosing.num_complete() == 1
    assert [(chosen.slot, chosen.token) for chosen in model.choosing.ring.read(0, 2, {})] == [(2, 33)]


def test_each_decode_step_feeds_the_next_until_a_stop(model: Model) -> None:
    for slot in (0, 1):
        model.choosing.seats.put(slot, SEAT)
    model.best(33, 44)
    model.prefill_end([0, 1], [3, 3], [True, True])()
    decode = model.choosing.bind(model.choosing.next, 2, None)
    model.best(5, 46)
    decode()
    assert (model.next("input_ids"), model.next("past_lens")) == ([-1, 46, -1], [0, 4, 0])
    model.best(60, 47)
    decode()
    told = [[(c.slot, c.token) for c in model.choosing.ring.read(step, 2, {})] for step in range(3)]
    assert told == [[(0, 33), (1, 44)], [(0, 5), (1, 46)], [(1, 47)]]


def test_a_sequence_ends_at_its_longest_length(model: Model) -> None:
    model.choosing.seats.put(0, replace(SEAT, max_length=5))
    model.best(33)
    model.prefill_end([0], [3], [True])()
    decode = model.choosing.bind(model.choosing.next, 1, None)
    for _ in range(3):
        decode()
    assert [len(model.choosing.ring.read(step, 1, {})) for step in range(4)] == [1, 1, 0, 0]
    assert model.next("slots") == [-1] * SLOTS


def test_logits_that_are_no_numbers_choose_nothing_and_end_the_row(model: Model) -> None:
    for slot in (0, 1):
        model.choosing.seats.put(slot, SEAT)
    model.best(33, 44)
    model.logits.array[0, 3] = np.nan
    model.prefill_end([0, 1], [3, 3], [True, True])()
    assert [chosen.token for chosen in model.choosing.ring.read(0, 2, {})] == [None, 44]
    assert model.next("slots") == [-1, 1, -1]


def test_a_slot_that_leaves_is_padding_and_no_other_is(model: Model) -> None:
    for slot in (0, 1):
        model.choosing.seats.put(slot, SEAT)
    model.best(33, 44)
    model.prefill_end([0, 1], [3, 3], [True, True])()
    model.choosing.pad(0)
    assert [model.next(name) for name in ("input_ids", "slots", "logit_rows")] == [
        [-1, 44, -1],
        [-1, 1, -1],
        [-1, 1, -1],
    ]
    assert model.next("past_lens") == [0, 3, 0]
