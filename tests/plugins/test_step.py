# SPDX-License-Identifier: Apache-2.0
"""The step kernels: lengths, tokens, counts and the ring advance on the device as the host would advance them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from orinkit.engines.kernels import KernelLibrary
from orinkit.errors import EngineError
from orinkit.runtime.sampling import History, Sampling, sample
from sampling_cases import IN_PROMPT, Row, Sampler, counts_of, described, gpu_array, is_explained

pytestmark = pytest.mark.gpu

IDLE, RUNNING, STOPPED, FULL, FAILED = -1, 0, 1, 2, 3
MAX_STOPS = 3


class Ring:
    """Pinned memory that the device writes: entries of `steps` steps, and how many steps are complete."""

    def __init__(self, steps: int, rows: int, max_logprobs: int) -> None:
        from cuda.bindings import runtime as rt

        from gpu import check

        entry = described("step_entry_fields")
        pair = np.dtype([("id", "i4"), ("logprob", "f4")])
        self.dtype = np.dtype([*((name, entry[name]) for name in entry.names or ()), ("top", pair, (max_logprobs,))])
        size = 8 + steps * rows * self.dtype.itemsize
        self.pointer = int(check(rt.cudaHostAlloc(size, rt.cudaHostAllocMapped)))
        memory = (ctypes.c_uint8 * size).from_address(self.pointer)
        ctypes.memset(self.pointer, 0xFF, size)
        self.head = np.frombuffer(memoryview(memory), np.uint64, 1)
        self.head[0] = 0
        self.entries = np.frombuffer(memoryview(memory), self.dtype, steps * rows, 8).reshape(steps, rows)


class Stepper:
    """Device memory of decode rows and one launch of the step kernel."""

    def __init__(self, kernels: KernelLibrary, rows: int, given: dict[str, Any], ring: Ring, **pointers: Any) -> None:
        self._kernels = kernels
        self.arrays = {name: gpu_array(array) for name, array in given.items()}
        self.clock = gpu_array(np.zeros(1, np.uint64))
        names = ("top_ids", "top_logprobs", "logit_rows", "destinations", "next_logit_rows", "counts")
        values = dict.fromkeys(names) | {name: array.pointer for name, array in self.arrays.items()}
        values |= {"clock": self.clock.pointer, "head": ring.pointer, "ring": ring.pointer + 8} | pointers
        sizes = {
            "rows": rows,
            "max_stops": MAX_STOPS,
            "max_logprobs": ring.dtype["top"].shape[0],
            "ring_steps": ring.entries.shape[0],
            "ring_rows": ring.entries.shape[1],
        }
        self.arguments = kernels.arguments("step", **{"vocab": 100, **sizes, **values})

    def launch(self, stream: Any) -> None:
        self._kernels.launch("step", self.arguments, stream.handle)


def stops(num_slots: int, **of_slot: list[int]) -> Any:
    table = np.full((num_slots, MAX_STOPS), -1, np.int32)
    for slot, ids in of_slot.items():
        table[int(slot[1:]), : len(ids)] = ids
    return table


def test_a_decode_step_in_place(kernels: KernelLibrary, stream: Any) -> None:
    """Rows: running, stopped, full, failed, padded, not wanted."""
    ring = Ring(4, 8, 2)
    counts = np.zeros((7, 100), np.uint16)
    counts[0, 50], counts[2, 3], counts[4, 8] = 0x7FFF, IN_PROMPT, IN_PROMPT | 0x7FFF
    given = {
        "tokens": np.array([50, 3, 8, -1, 77, 78], np.int32),
        "logprobs": np.array([-0.5, -1.5, -2.5, 0, 0, 0], np.float32),
        "top_ids": np.arange(12, dtype=np.int32).reshape(6, 2),
        "top_logprobs": -np.arange(12, dtype=np.float32).reshape(6, 2),
        "slots": np.array([0, 2, 4, 6, -1, 1], np.int32),
        "past_lens": np.array([10, 20, 30, 40, 0, 60], np.int32),
        "cu_seqlens": np.arange(7, dtype=np.int32),
        "logit_rows": np.array([0, 1, 2, 3, 4, -1], np.int32),
        "next_ids": np.array([1, 2, 3, 4, -1, 6], np.int32),
        "stop_ids": stops(7, s0=[4, 5], s2=[9, 3], s4=[]),
        "max_lens": np.array([13, 0, 90, 0, 32, 0, 90], np.int32),
        "counts": counts,
    }
    stepper = Stepper(kernels, 6, given, ring, next_slots=None, next_past_lens=None)
    for name in ("slots", "past_lens", "logit_rows"):
        setattr(stepper.arguments, f"next_{name}", stepper.arrays[name].pointer)
    stepper.launch(stream)
    stream.sync()
    after = {name: array.read() for name, array in stepper.arrays.items()}
    assert after["next_ids"].tolist() == [50, -1, -1, -1, -1, 6]
    assert after["slots"].tolist() == [0, -1, -1, -1, -1, 1]
    assert after["past_lens"].tolist() == [11, 0, 0, 0, 0, 60]
    assert after["logit_rows"].tolist() == [0, -1, -1, -1, 4, -1]
    counts[2, 3] += 1
    assert np.array_equal(after["counts"], counts), "full counts stay full"
    assert stepper.clock.read()[0] == 1
    assert kernels.query("step_head", stepper.arguments) == 1
    entries = ring.entries[0, :6]
    assert entries["step"].tolist() == [0] * 6
    assert entries["slot"].tolist() == [0, 2, 4, 6, -1, 1]
    assert entries["state"].tolist() == [RUNNING, STOPPED, FULL, FAILED, IDLE, IDLE]
    assert entries["token"].tolist() == [50, 3, 8, -1, -1, -1]
    assert entries["logprob"].tolist() == [-0.5, -1.5, -2.5, 0, 0, 0]
    assert np.array_equal(entries["top"]["id"], given["top_ids"])
    assert np.array_equal(entries["top"]["logprob"], given["top_logprobs"])
    assert (ring.entries.view(np.uint8).reshape(4, 8, -1)[0, 6:] == 0xFF).all()
    assert (ring.entries.view(np.uint8).reshape(4, 8, -1)[1:] == 0xFF).all()


def test_a_prefill_step_hands_over_to_rows_of_the_decode_step(kernels: KernelLibrary, stream: Any) -> None:
    ring = Ring(2, 3, 0)
    given = {
        "tokens": np.array([7, 8, 9], np.int32),
        "logprobs": np.zeros(3, np.float32),
        "slots": np.array([5, 1, 3], np.int32),
        "past_lens": np.array([64, 0, 0], np.int32),
        "cu_seqlens": np.array([0, 10, 74, 80], np.int32),
        "logit_rows": np.array([9, -1, 79], np.int32),
        "destinations": np.array([3, 0, 1], np.int32),
        "next_ids": np.array([20, 21, 22, 23], np.int32),
        "next_slots": np.array([0, -1, 2, -1], np.int32),
        "next_past_lens": np.array([30, 0, 32, 0], np.int32),
        "next_logit_rows": np.array([0, -1, 2, -1], np.int32),
        "stop_ids": stops(6),
        "max_lens": np.full(6, 90, np.int32),
    }
    stepper = Stepper(kernels, 3, given, ring)
    stepper.launch(stream)
    stream.sync()
    after = {name: array.read() for name, array in stepper.arrays.items()}
    assert after["next_ids"].tolist() == [20, 9, 22, 7]
    assert after["next_slots"].tolist() == [0, 3, 2, 5]
    assert after["next_past_lens"].tolist() == [30, 6, 32, 74]
    assert after["next_logit_rows"].tolist() == [0, 1, 2, 3]
    assert ring.entries[0]["state"].tolist() == [RUNNING, IDLE, RUNNING]


def test_prompts_are_marked_in_cleared_slots(kernels: KernelLibrary, stream: Any) -> None:
    rng = np.random.default_rng(1)
    vocab, before = 5001, np.full((4, 5001), 0x1234, np.uint16)
    prompts = [rng.integers(vocab, size=size) for size in (700, 0, 40, 9)]
    slots = np.array([2, 0, -1, 1], np.int32)
    arrays = {
        "ids": gpu_array(np.concatenate(prompts).astype(np.int32)),
        "cu_seqlens": gpu_array(np.cumsum([0, *map(len, prompts)]).astype(np.int32)),
        "slots": gpu_array(slots),
        "counts": gpu_array(before),
    }
    pointers = {name: array.pointer for name, array in arrays.items()}
    arguments = kernels.arguments("prompt", **pointers, tokens=749, sequences=4, vocab=vocab)
    kernels.launch("prompt", arguments, stream.handle)
    stream.sync()
    expected = before.copy()
    for prompt, slot in zip(prompts, slots, strict=True):
        if slot >= 0:
            expected[slot] = counts_of(History.of(prompt.tolist()), vocab)
    assert np.array_equal(arrays["counts"].read(), expected)


def test_replays_without_the_host_are_what_the_host_would_do(kernels: KernelLibrary, stream: Any) -> None:
    """Sampling and step in one capture, launched again and again; the host only reads the ring."""
    rng = np.random.default_rng(2)
    vocab, num_rows, steps = 500, 6, 40
    settings = Sampling(temperature=1.2, top_p=0.95, repetition_penalty=1.3, frequency_penalty=0.2)
    rows = []
    for seed in range(num_rows):
        sampling = Sampling(**{**vars(settings), "seed": seed})
        history = History.of(rng.integers(vocab, size=20).tolist())
        rows.append(Row((2 * rng.standard_normal(vocab)).astype(np.float32), sampling, history, 20 + seed))
    sampler = Sampler(kernels, rows, num_logprobs=3)
    slots = sampler.arrays["slots"].read()
    sampler.arrays["past_lens"].write(np.array([row.position - 1 for row in rows], np.int32))
    sampler.arrays["cu_seqlens"].write(np.arange(num_rows + 1, dtype=np.int32))
    ring = Ring(steps, num_rows, 3)
    num_slots = int(slots.max()) + 1
    stop_ids = np.full((num_slots, MAX_STOPS), -1, np.int32)
    stop_ids[slots[1]] = rng.integers(vocab, size=MAX_STOPS)
    max_lens = np.full(num_slots, 10_000, np.int32)
    max_lens[slots[2]] = rows[2].position + 7
    given = {"next_ids": np.zeros(num_rows, np.int32), "stop_ids": stop_ids, "max_lens": max_lens}
    shared = {name: sampler.arrays[name].pointer for name in sampler.arrays if name in STEP_INPUTS}
    nexts = {"next_slots": shared["slots"], "next_past_lens": shared["past_lens"]}
    stepper = Stepper(kernels, num_rows, given, ring, **shared, **nexts, vocab=vocab)

    def step() -> None:
        sampler.launch(stream)
        stepper.launch(stream)

    replay = stream.capture(step)
    for _ in range(steps):
        replay()
    while kernels.query("step_head", stepper.arguments) < steps:
        pass
    assert (ring.entries["step"] == np.arange(steps)[:, None]).all()
    for row, slot, entries in zip(rows, slots, ring.entries.T, strict=True):
        follow(row, entries, stop_ids[slot].tolist(), int(max_lens[slot]))


STEP_INPUTS = (
    *("tokens", "logprobs", "top_ids", "top_logprobs"),
    *("slots", "past_lens", "cu_seqlens", "counts"),
)


def follow(row: Row, entries: Any, stop_ids: list[int], max_len: int) -> None:
    """Do what the device did with one row, on the host."""
    position, state = row.position, RUNNING
    for entry in entries:
        if state != RUNNING:
            assert entry["state"] == IDLE
            assert entry["token"] == -1
            continue
        now = Row(row.logits, row.sampling, row.history, position)
        expected = sample(now.logits, now.history, now.sampling, position)
        token = int(entry["token"])
        assert token == expected.token or is_explained(now, token)
        assert entry["logprob"] == pytest.approx(expected.logprob, abs=2e-5)
        assert entry["top"]["id"].tolist() == np.argsort(-row.logits, kind="stable")[:3].tolist()
        row.history.add(token)
        position += 1
        state = STOPPED if token in stop_ids else FULL if position >= max_len else RUNNING
        assert entry["state"] == state


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rows": 1025}, "rows: expected 1 to 1024, found 1025"),
        ({"ring_steps": 0}, "ring_steps: expected 1 or more, found 0"),
        ({"ring_rows": 0}, "ring_rows: expected at least 1, found 0"),
    ],
)
def test_a_wrong_argument_is_named(change: dict[str, int], sentence: str, kernels: KernelLibrary, stream: Any) -> None:
    given = {name: np.zeros(1, np.int32) for name in BLANK}
    stepper = Stepper(kernels, 1, given, Ring(1, 1, 0))
    for name, value in change.items():
        setattr(stepper.arguments, name, value)
    with pytest.raises(EngineError, match=sentence):
        stepper.launch(stream)


BLANK = (
    *("tokens", "logprobs", "slots", "past_lens", "cu_seqlens", "next_ids", "next_slots", "next_past_lens"),
    *("stop_ids", "max_lens"),
)
