# SPDX-License-Identifier: Apache-2.0
"""What follows the graph in a step of the `cuda` engine: a token is chosen from each row of logits, sequences advance,
and the host is told through a ring in pinned memory (plugins/kernels/sampling and step).

    seats      [slots, ..] how each slot's tokens are chosen; written from pinned mirrors, row by row
    next       the inputs of the decode step; row r belongs to slot r, or is padding
    ring       [steps, slots] what the steps have chosen; `head` counts the steps that are complete
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orinkit.engines.base import Chosen, Limits, Seat
from orinkit.engines.bound import STEP_INPUTS
from orinkit.engines.gpu import Gpu
from orinkit.engines.kernels import KernelLibrary
from orinkit.errors import EngineError
from orinkit.memory.arena import aligned

RING_STEPS = 32
"""Steps that the ring holds; far more than may be in flight."""

IDLE, FAILED = -1, 3
"""States of a ring entry, RowState in plugins/kernels/step/params.h: no token was wanted; none can be chosen."""

_KINDS = {"D": "<d", "U": "<Q", "I": "<i", "F": "<f"}
"""NumPy and `struct` call them the same."""
_ENTRY = ("step", "slot", "token", "logprob", "state")

_NEUTRAL = {"repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
"""Penalties with which no step looks at a slot's counts."""


def struct_of(library: KernelLibrary, name: str) -> list[tuple[str, str]]:
    """The fields of a struct of the library, as of a NumPy dtype."""
    return [(field, _KINDS[kind]) for field, kind in library.fields(name).items()]


def packing(fields: Sequence[tuple[str, str]]) -> struct.Struct:
    """The same fields for `struct`."""
    return struct.Struct("<" + "".join(kind.removeprefix("<") for _, kind in fields))


class Mirror:
    """An array of one row for each slot, in device memory and in pinned memory from which rows are sent."""

    def __init__(self, gpu: Gpu, slots: int, width: int, dtype: Any) -> None:
        self._gpu = gpu
        self.host = gpu.pinned((slots, width), dtype)
        self._memory = gpu.allocate(self.host.array.nbytes)
        self._bytes = self.host.array.view(np.uint8).reshape(-1).data
        self.host.array.view(np.uint8).fill(0)
        self._stride = self.host.array.nbytes // slots
        self.address = self._memory.address
        gpu.send(self.address, self.host, self.host.array.nbytes)

    def row(self, slot: int) -> NDArray[Any]:
        """The pinned row of a slot, to be written and then sent."""
        row: NDArray[Any] = self.host.array[slot]
        return row

    def at(self, slot: int, index: int = 0) -> int:
        """The device address of an element."""
        return self.address + slot * self._stride + index * self.host.array.itemsize

    def put(self, slot: int, values: bytes) -> None:
        """Enqueue what a slot's row begins with, unless the device has been sent the same already."""
        start = slot * self._stride
        row = self._bytes[start : start + len(values)]
        if row != values:
            row[:] = values
            self._gpu.send(self.address + start, self.host, len(values), start)

    def send(self, slot: int, count: int | None = None) -> None:
        """Enqueue a copy of the first `count` elements of a slot's row, or of all."""
        nbytes = self._stride if count is None else count * self.host.array.itemsize
        self._gpu.send(self.at(slot), self.host, nbytes, slot * self._stride)


class Seats:
    """How the tokens of each slot are chosen, in device memory."""

    def __init__(self, gpu: Gpu, library: KernelLibrary, slots: int, capacity: int, vocab: int, limits: Limits) -> None:
        self._gpu, self._library, self._vocab, self._limits = gpu, library, vocab, limits
        fields = struct_of(library, "sampling_slot")
        self._names, self._pack = tuple(name for name, _ in fields), packing(fields).pack
        self.settings = Mirror(gpu, slots, 1, np.dtype(fields))
        self.bias_ids = Mirror(gpu, slots, limits.biases, np.int32)
        self.bias_values = Mirror(gpu, slots, limits.biases, np.float64)
        self.masks = Mirror(gpu, slots, -(-vocab // 32), np.uint32)
        self.stops = Mirror(gpu, slots, limits.stops, np.int32)
        self.max_lengths = Mirror(gpu, slots, 1, np.int32)
        self._prompts = Mirror(gpu, slots, 3 + capacity, np.int32)
        self._counts = gpu.allocate(2 * slots * vocab)
        self.counts = self._counts.address
        marks = [self._mark(slot) for slot in range(slots)]
        self._marks = [(arguments, library.bound("prompt", arguments)) for arguments in marks]

    def put(self, slot: int, seat: Seat) -> None:
        """Enqueue all that steps read of a slot. Raises EngineError: more than the limits allow."""
        limits = self._limits
        found = (len(seat.biases), len(seat.stops), seat.num_logprobs)
        if any(n > most for n, most in zip(found, (limits.biases, limits.stops, limits.logprobs), strict=True)):
            raise EngineError(
                f"slot {slot}: expected at most {limits.biases} biases, {limits.stops} stop ids and {limits.logprobs} "
                f"log-probabilities, found {found[0]}, {found[1]} and {found[2]}"
            )
        more = {"num_biases": found[0], "num_logprobs": found[2], "is_constrained": int(seat.is_constrained)}
        values = {**seat.settings, **more}
        self.settings.put(slot, self._pack(*(values[name] for name in self._names)))
        self.stops.put(slot, struct.pack(f"{limits.stops}i", *seat.stops, *[-1] * (limits.stops - found[1])))
        self.max_lengths.put(slot, struct.pack("i", seat.max_length))
        if seat.biases:
            for mirror, biases in ((self.bias_ids, list(seat.biases)), (self.bias_values, list(seat.biases.values()))):
                mirror.row(slot)[: found[0]] = biases
                mirror.send(slot, found[0])
        if any(values[name] != neutral for name, neutral in _NEUTRAL.items()):
            self._mark_prompt(slot, seat.prompt)

    def _mark_prompt(self, slot: int, prompt: tuple[int, ...]) -> None:
        """Enqueue the counts of a sequence that starts: none but that its prompt's tokens stand in the prompt."""
        count = len(prompt)
        # Twice as fast as by NumPy, and nothing else here takes time that grows with the prompt.
        struct.pack_into(f"{3 + count}i", self._prompts.row(slot).data, 0, 0, count, slot, *prompt)
        self._prompts.send(slot, 3 + count)
        arguments, mark = self._marks[slot]
        arguments.tokens = count
        mark(self._gpu.stream)

    def _mark(self, slot: int) -> ctypes.Structure:
        """The launch that reads a slot's row of prompts, for a prompt of no tokens yet."""
        return self._library.arguments(
            "prompt",
            ids=self._prompts.at(slot, 3),
            cu_seqlens=self._prompts.at(slot),
            slots=self._prompts.at(slot, 2),
            counts=self.counts,
            tokens=0,
            sequences=1,
            vocab=self._vocab,
        )


class Ring:
    """What the device tells the host: an entry for each row of a step, and how many steps are complete."""

    def __init__(self, gpu: Gpu, library: KernelLibrary, rows: int, limits: Limits) -> None:
        fields = struct_of(library, "step_entry")
        if (names := tuple(name for name, _ in fields)) != _ENTRY:
            raise EngineError(f"expected a kernel library whose ring entries are {_ENTRY}, found {names}")
        top = [("top", [("id", "<i4"), ("logprob", "<f4")], (limits.logprobs,))] if limits.logprobs else []
        self._entries = gpu.pinned((RING_STEPS, rows), np.dtype([*fields, *top]))
        # Not by NumPy, which takes a microsecond for a field and many for the first one after a sleep.
        self._unpack = packing(fields).unpack_from
        self._bytes = self._entries.array.view(np.uint8).reshape(-1).data
        self._stride = self._entries.array.itemsize
        self._rows = rows
        self._head = gpu.pinned((1,), np.uint64)
        self._told = self._head.array.data
        self._clock = gpu.allocate(8)
        self._gpu = gpu
        self.addresses = {"ring": self._entries.address, "head": self._head.address, "clock": self._clock.address}
        self.restart()

    def restart(self) -> None:
        """Count from step 0 again; nothing may be in flight.

        Entries that no step has written say so: step 0 of fewer rows leaves the others as they are, which may be zeros.
        """
        self._entries.array["state"] = IDLE
        self._head.array[0] = 0
        self._gpu.fill(self._clock.address, 0, 8)

    def may_have_told(self, step: int) -> bool:
        """Whether the head is beyond a step; its entries may not be visible yet."""
        return self._told[0] > step

    def read(self, step: int, rows: int, logprobs: dict[int, int]) -> tuple[Chosen, ...]:
        """What a complete step of `rows` rows has chosen; `logprobs`: how many alternatives each slot wants to know."""
        found, place = [], step % RING_STEPS
        for row in range(rows):
            at = (place * self._rows + row) * self._stride
            told, slot, token, logprob, state = self._unpack(self._bytes, at)
            if told != step or state == IDLE:
                continue
            if state == FAILED:
                found.append(Chosen(slot, None))
                continue
            wanted = logprobs.get(slot)
            top = self._entries.array["top"][place, row, :wanted].tolist() if wanted else ()
            found.append(Chosen(slot, token, logprob, tuple(top)))
        return tuple(found)


class Choosing:
    """The launches that end a step, for steps of up to `rows` rows whose logits lie at one address."""

    def __init__(
        self, gpu: Gpu, library: KernelLibrary, slots: int, capacity: int, vocab: int, logits: int, limits: Limits
    ) -> None:
        self._gpu, self._library, self._limits = gpu, library, limits
        self._vocab, self._logits, self._slots = vocab, logits, slots
        self.seats = Seats(gpu, library, slots, capacity, vocab, limits)
        self.ring = Ring(gpu, library, slots, limits)
        width = aligned(4 * (slots + 1)) // 4  # TensorRT wants each input aligned
        self._next = Mirror(gpu, len(STEP_INPUTS), width, np.int32)
        self.next = {name: self._next.at(index) for index, name in enumerate(STEP_INPUTS)}
        for index, name in enumerate(STEP_INPUTS):
            values = np.arange(width) if name == "cu_seqlens" else 0 if name == "past_lens" else -1
            self._next.row(index)[:] = values
            self._next.send(index)
        pairs = max(1, slots * limits.logprobs)
        sizes = {"tokens": slots, "logprobs": slots, "errors": slots, "top_ids": pairs, "top_logprobs": pairs}
        self._outputs = {name: gpu.allocate(4 * size) for name, size in sizes.items()}
        probe = self._sampling(dict.fromkeys(STEP_INPUTS, 0), slots, 0, 0)
        self._zeroed = gpu.allocate(library.query("sampling_counters", probe))
        gpu.fill(self._zeroed.address, 0, self._zeroed.nbytes)
        self._scratch = gpu.allocate(aligned(library.query("sampling_workspace", probe)))
        self._head: Callable[[], int] = lambda: 0

    def bind(self, inputs: dict[str, int], rows: int, destinations: int | None) -> Callable[[], None]:
        """The function that enqueues both launches for a step of `rows` rows with these inputs."""
        sampling = self._sampling(inputs, rows, self._zeroed.address, self._scratch.address)
        advance = self._advance(inputs, rows, destinations)
        self._head = self._library.bound_query("step_head", advance)

        def enqueue() -> None:
            self._library.launch("sampling", sampling, self._gpu.stream)
            self._library.launch("step", advance, self._gpu.stream)

        return enqueue

    def num_complete(self) -> int:
        """Steps whose entries can be read."""
        return self._head()

    def has_told(self, step: int) -> bool:
        """Whether the entries of a step can be read; a plain look first, for the ordered one costs more."""
        return self.ring.may_have_told(step) and self._head() > step

    def pad(self, slot: int) -> None:
        """Enqueue making a slot's row of the decode step padding."""
        for name in ("input_ids", "slots", "logit_rows"):
            self._gpu.fill(self.next[name] + 4 * slot, 0xFF, 4)
        self._gpu.fill(self.next["past_lens"] + 4 * slot, 0, 4)

    def _sampling(self, inputs: dict[str, int], rows: int, counters: int, workspace: int) -> ctypes.Structure:
        seats = self.seats
        return self._library.arguments(
            "sampling",
            logits=self._logits,
            **{name: inputs[name] for name in ("slots", "past_lens", "cu_seqlens", "logit_rows")},
            settings=seats.settings.address,
            counts=seats.counts,
            bias_ids=seats.bias_ids.address,
            bias_values=seats.bias_values.address,
            mask=seats.masks.address,
            **{name: memory.address for name, memory in self._outputs.items()},
            counters=counters,
            workspace=workspace,
            rows=rows,
            vocab=self._vocab,
            max_biases=self._limits.biases,
            max_logprobs=self._limits.logprobs,
        )

    def _advance(self, inputs: dict[str, int], rows: int, destinations: int | None) -> ctypes.Structure:
        outputs, seats = self._outputs, self.seats
        return self._library.arguments(
            "step",
            **{name: outputs[name].address for name in ("tokens", "logprobs", "top_ids", "top_logprobs")},
            **{name: inputs[name] for name in ("slots", "past_lens", "cu_seqlens", "logit_rows")},
            destinations=destinations,
            next_ids=self.next["input_ids"],
            next_slots=self.next["slots"],
            next_past_lens=self.next["past_lens"],
            next_logit_rows=self.next["logit_rows"],
            counts=seats.counts,
            stop_ids=seats.stops.address,
            max_lens=seats.max_lengths.address,
            **self.ring.addresses,
            rows=rows,
            vocab=self._vocab,
            max_stops=self._limits.stops,
            max_logprobs=self._limits.logprobs,
            ring_steps=RING_STEPS,
            ring_rows=self._slots,
        )
