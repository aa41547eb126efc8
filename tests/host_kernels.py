# SPDX-License-Identifier: Apache-2.0
"""The kernels behind a step (sampling, step, prompt) on host memory, for the stand-in for CUDA. Ours, for tests only.

Structs are those of the headers; tokens are chosen by runtime/sampling.py, which the kernels must agree with.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orinkit.errors import EngineError, NumericError
from orinkit.runtime.sampling import History, Sampling, sample

KERNELS = Path(__file__).parents[1] / "plugins/kernels"
_DEFINE = re.compile(r"#define ORIN_(\w+)_FIELDS\([\w, ]+\)((?:.*\\\n)*.*\n)")
_FIELD = re.compile(r"\b([A-Z])\((\w+)\)")
_CTYPES: dict[str, Any] = {"P": ctypes.c_void_p, "I": ctypes.c_int32, "F": ctypes.c_float}
_KINDS = {"D": "<f8", "U": "<u8", "I": "<i4", "F": "<f4"}
_IN_PROMPT, _COUNT = 0x8000, 0x7FFF
_IDLE, _RUNNING, _STOPPED, _FULL, _FAILED = -1, 0, 1, 2, 3


def _structs() -> dict[str, dict[str, str]]:
    """Fields of every struct, by the names of the launchers."""
    found = {}
    for header in sorted(KERNELS.glob("*/*.h")):
        for name, body in _DEFINE.findall(header.read_text(encoding="utf-8")):
            found[name.lower()] = {field: kind for kind, field in _FIELD.findall(body)}
    return found


def _array(address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Memory as an array that writes through."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw: Any = (ctypes.c_byte * nbytes).from_address(address)
    return np.frombuffer(raw, dtype).reshape(shape)


class HostKernels:
    """In the place of `orinkit.engines.kernels.KernelLibrary`."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise EngineError(f"{path}: cannot be loaded")
        self._structs = _structs()

    def fields(self, launcher: str) -> dict[str, str]:
        return self._structs[launcher]

    def arguments(self, launcher: str, **values: Any) -> ctypes.Structure:
        fields = self._structs[launcher]
        assert set(values) == set(fields), set(values) ^ set(fields)
        layout = [(name, _CTYPES[kind]) for name, kind in fields.items()]
        struct: type[ctypes.Structure] = type(launcher, (ctypes.Structure,), {"_fields_": layout})
        return struct(**values)

    def bound(self, launcher: str, arguments: ctypes.Structure) -> Any:
        return lambda stream: self.launch(launcher, arguments, stream)

    def launch(self, launcher: str, arguments: ctypes.Structure, stream: int) -> None:
        from cuda.bindings import runtime as rt

        values = {name: getattr(arguments, name) for name in self._structs[launcher]}
        run = {"sampling": _sampling, "step": _step, "prompt": _prompt}[launcher]
        rt.DEVICE.enqueue(stream, lambda: run(self, values))

    def query(self, function: str, arguments: Any) -> int:
        if function == "step_head":
            return int(_array(arguments.head, (1,), np.uint64)[0])
        return 1024

    def bound_query(self, function: str, arguments: Any) -> Any:
        return lambda: self.query(function, arguments)

    def dtype(self, name: str) -> np.dtype[Any]:
        return np.dtype([(field, _KINDS[kind]) for field, kind in self._structs[name].items()])


def _rows(a: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Row, slot and length after the step of each row whose token is wanted."""
    count = a["rows"]
    slots, past, wanted = (_array(a[name], (count,), np.int32) for name in ("slots", "past_lens", "logit_rows"))
    edges = _array(a["cu_seqlens"], (count + 1,), np.int32)
    lengths = past + np.diff(edges)
    return [(r, int(slots[r]), int(lengths[r])) for r in range(count) if slots[r] >= 0 and wanted[r] >= 0]


def _sampling(library: HostKernels, a: dict[str, Any]) -> None:
    rows, vocab, most = a["rows"], a["vocab"], a["max_logprobs"]
    tokens, logprobs = _array(a["tokens"], (rows,), np.int32), _array(a["logprobs"], (rows,), np.float32)
    tokens[:] = -1
    for row, slot, length in _rows(a):
        settings = _array(a["settings"], (slot + 1,), library.dtype("sampling_slot"))[slot]
        counts = _array(a["counts"], (slot + 1, vocab), np.uint16)[slot]
        output = Counter({int(i): int(counts[i] & _COUNT) for i in np.flatnonzero(counts & _COUNT)})
        history = History(set(np.flatnonzero(counts).tolist()), output)
        biases = int(settings["num_biases"])
        ids = _array(a["bias_ids"], (slot + 1, a["max_biases"]), np.int32)[slot, :biases].tolist()
        values = _array(a["bias_values"], (slot + 1, a["max_biases"]), np.float64)[slot, :biases].tolist()
        mask = _array(a["mask"], (slot + 1, -(-vocab // 32)), np.uint32)[slot] if settings["is_constrained"] else None
        sampling = Sampling(
            **{name: settings[name].item() for name in ("temperature", "top_p", "min_p", "repetition_penalty")},
            **{name: settings[name].item() for name in ("presence_penalty", "frequency_penalty", "seed", "top_k")},
            logit_bias=dict(zip(ids, values, strict=True)),
        )
        logits = _array(a["logits"], (rows, vocab), np.float32)[row]
        wanted = int(settings["num_logprobs"])
        try:
            choice = sample(logits, history, sampling, length, num_logprobs=wanted, mask=mask)
        except NumericError:
            continue
        tokens[row], logprobs[row] = choice.token, choice.logprob
        for index, (token, logprob) in enumerate(choice.top):
            _array(a["top_ids"], (rows, most), np.int32)[row, index] = token
            _array(a["top_logprobs"], (rows, most), np.float32)[row, index] = logprob


def _step(library: HostKernels, a: dict[str, Any]) -> None:
    rows, most = a["rows"], a["max_logprobs"]
    clock = _array(a["clock"], (1,), np.uint64)
    entry = np.dtype([*library.dtype("step_entry").descr, ("top", [("id", "<i4"), ("logprob", "<f4")], (most,))])
    ring = _array(a["ring"], (a["ring_steps"], a["ring_rows"]), entry)[int(clock[0]) % a["ring_steps"]]
    tokens, logprobs = _array(a["tokens"], (rows,), np.int32), _array(a["logprobs"], (rows,), np.float32)
    ring[:rows]["step"], ring[:rows]["state"] = clock[0], _IDLE
    ids, probabilities = (_array(a[n], (rows, most), d) for n, d in (("top_ids", "i4"), ("top_logprobs", "f4")))
    for row, slot, length in _rows(a):
        token = int(tokens[row])
        state = _outcome(a, slot, token, length)
        ring[row]["slot"], ring[row]["token"], ring[row]["state"] = slot, token, state
        ring[row]["logprob"] = logprobs[row]
        ring[row]["top"]["id"], ring[row]["top"]["logprob"] = ids[row], probabilities[row]
        if token >= 0:
            counts = _array(a["counts"], (slot + 1, a["vocab"]), np.uint16)[slot]
            counts[token] += int(counts[token] & _COUNT) < _COUNT
        to = int(_array(a["destinations"], (rows,), np.int32)[row]) if a["destinations"] else row
        if to >= 0:
            runs = state == _RUNNING
            for name, value, padding in (
                ("next_ids", token, -1),
                ("next_slots", slot, -1),
                ("next_past_lens", length, 0),
                ("next_logit_rows", to, -1),
            ):
                _array(a[name] + 4 * to, (1,), np.int32)[0] = value if runs else padding
    clock[0] += 1
    _array(a["head"], (1,), np.uint64)[0] = clock[0]


def _outcome(a: dict[str, Any], slot: int, token: int, length: int) -> int:
    if token < 0:
        return _FAILED
    if token in _array(a["stop_ids"], (slot + 1, a["max_stops"]), np.int32)[slot]:
        return _STOPPED
    return _FULL if length + 1 >= _array(a["max_lens"], (slot + 1,), np.int32)[slot] else _RUNNING


def _prompt(_: HostKernels, a: dict[str, Any]) -> None:
    edges = _array(a["cu_seqlens"], (a["sequences"] + 1,), np.int32)
    for index, slot in enumerate(_array(a["slots"], (a["sequences"],), np.int32)):
        if slot >= 0:
            counts = _array(a["counts"], (int(slot) + 1, a["vocab"]), np.uint16)[slot]
            counts[:] = 0
            counts[_array(a["ids"], (a["tokens"],), np.int32)[edges[index] : edges[index + 1]]] = _IN_PROMPT
