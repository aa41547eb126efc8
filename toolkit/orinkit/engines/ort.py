# SPDX-License-Identifier: Apache-2.0
"""The `onnxruntime` engine: the graph's function bodies on the CPU; the numerical reference and the default anywhere.

The bodies compute one sequence, so a step runs its sequences one by one; a step is not captured. The caches are NumPy
arrays; a run gets its slot's rows as both input and output, at one address, so that the state is updated in place.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from orinkit.engines.base import Caches, Context, Float32, Profile, StepInputs
from orinkit.errors import EngineError
from orinkit.memory.rings import ring_rows

_DTYPES = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
_STATE_PREFIXES = ("kv_", "conv_", "rec_")


class OrtCaches:
    """Every state as one array [S, ...]; a slot's rows are contiguous."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], slots: int, capacity: int, chunk: int) -> None:
        self.arrays = dict(arrays)
        self.chunk = chunk
        self._slots = slots
        self._capacity = capacity

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def spare(self, count: int) -> OrtSpare:
        return OrtSpare(self, count)


class OrtSpare:
    """Copies of slots; see `engines.base.Spare`."""

    def __init__(self, caches: OrtCaches, count: int) -> None:
        self._caches = caches
        self._places = {name: np.zeros((count, *array.shape[1:]), array.dtype) for name, array in caches.arrays.items()}
        self._overwritten = [
            name for name, array in caches.arrays.items() if array.ndim != 5 or array.shape[3] < caches.capacity
        ]
        """All but keys and values that have a row for each token of the capacity."""

    def save(self, slot: int, place: int, length: int) -> None:
        for name, array in self._caches.arrays.items():
            _copy(self._places[name][place], array[slot], length)

    def restore(self, place: int, slot: int, length: int, has_rows: bool = False) -> None:
        for name in self._overwritten if has_rows else self._places:
            _copy(self._caches.arrays[name][slot], self._places[name][place], length)


def _copy(to: NDArray[Any], source: NDArray[Any], length: int) -> None:
    """A state of one slot: of keys and values [2, Hkv, C, D] the rows that `length` tokens fill."""
    if source.ndim == 4:
        to[:, :, :length] = source[:, :, :length]
    else:
        to[...] = source


class OrtContext:
    """One profile and one set of caches."""

    def __init__(self, session: onnxruntime.InferenceSession, profile: Profile, caches: OrtCaches) -> None:
        self._session = session
        self._profile = profile
        self._caches = caches

    @property
    def profile(self) -> Profile:
        return self._profile

    def run(self, inputs: StepInputs) -> Float32:
        """One step, sequence by sequence."""
        self._check(inputs)
        vocab = self._session.get_outputs()[0].shape[1]
        logits = np.zeros((len(inputs.logit_rows), vocab), np.float32)
        edges = inputs.cu_seqlens
        for start, end, past, slot in zip(edges[:-1], edges[1:], inputs.past_lens, inputs.slots, strict=True):
            if slot < 0 or start == end:
                continue
            rows = np.flatnonzero((inputs.logit_rows >= start) & (inputs.logit_rows < end))
            wanted = inputs.logit_rows[rows] - start
            logits[rows] = self._run_one(inputs.input_ids[start:end], int(past), int(slot), wanted)
        return logits

    def _check(self, inputs: StepInputs) -> None:
        """Refuse what is beyond the profile or the caches before any state has changed."""
        tokens, sequences = len(inputs.input_ids), len(inputs.slots)
        if tokens > self._profile.tokens or sequences > self._profile.sequences:
            raise EngineError(f"expected a step within {self._profile}, found {tokens} tokens of {sequences} sequences")
        caches, real = self._caches, inputs.slots >= 0
        counts = np.diff(inputs.cu_seqlens)[real]
        for what, limit, found in (
            ("slots up to", caches.slots - 1, inputs.slots[real]),
            ("tokens of a sequence up to", caches.chunk, counts),
            ("tokens in a slot up to", caches.capacity, inputs.past_lens[real] + counts),
        ):
            if (found > limit).any():
                raise EngineError(f"expected {what} {limit}, found {found.max()}")

    def _run_one(self, ids: NDArray[np.int32], past: int, slot: int, rows: NDArray[np.int32]) -> Float32:
        binding = self._session.io_binding()
        step = {
            "input_ids": np.ascontiguousarray(ids),
            "cu_seqlens": np.array([0, len(ids)], np.int32),
            "past_lens": np.array([past], np.int32),
            "slots": np.zeros(1, np.int32),
            "logit_rows": np.ascontiguousarray(rows, np.int32),
        }
        binding.bind_output("logits")
        for name, array in step.items():
            binding.bind_cpu_input(name, array)
        for name, array in self._caches.arrays.items():
            view = array[slot : slot + 1]
            binding.bind_input(name, "cpu", 0, view.dtype, view.shape, view.ctypes.data)
            binding.bind_output(f"{name}_out", "cpu", 0, view.dtype, view.shape, view.ctypes.data)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # noqa: BLE001  (onnxruntime's exceptions share no base class)
            raise EngineError(f"onnxruntime failed to execute a step of {len(ids)} tokens: {error}") from None
        return np.asarray(binding.get_outputs()[0].numpy(), np.float32)


class OrtProgram:
    """Any model given as bytes, for work that is no decoder step (calibration runs single layers)."""

    def __init__(self, model: bytes) -> None:
        """Load `model`. Raises EngineError."""
        self._session = _session(model, spinning=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(value.name for value in self._session.get_inputs())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name. Raises EngineError."""
        names = [value.name for value in self._session.get_outputs()]
        try:
            results = self._session.run(names, dict(inputs))
        except Exception as error:  # noqa: BLE001  (onnxruntime's exceptions share no base class)
            raise EngineError(f"onnxruntime failed to execute: {error}") from None
        return dict(zip(names, results, strict=True))


class OrtEngine:
    """A graph loaded by ONNX Runtime."""

    name = "onnxruntime"
    can_capture = False

    def __init__(self, graph: Path, windows: Mapping[str, int], threads: int = 0) -> None:
        """Load `graph`; `windows` gives the window of each windowed kv input; `threads` 0 = all cores.

        Raises EngineError.
        """
        self._session = _session(graph, threads)
        self._windows = dict(windows)

    def caches(self, slots: int, capacity: int, chunk: int) -> OrtCaches:
        """Zeroed caches."""
        arrays = {}
        for value in self._session.get_inputs():
            if value.name.startswith(_STATE_PREFIXES):
                rows = ring_rows(self._windows.get(value.name, 0), capacity, chunk)
                shape = [slots, *(rows if isinstance(size, str) else size for size in value.shape[1:])]
                arrays[value.name] = np.zeros(shape, _DTYPES[value.type])
        return OrtCaches(arrays, slots, capacity, chunk)

    def context(self, profile: Profile, caches: Caches) -> Context:
        if not isinstance(caches, OrtCaches):
            raise EngineError("expected caches made by this engine; call caches() first")
        return OrtContext(self._session, profile, caches)


def _session(model: Path | bytes, threads: int = 0, spinning: bool = True) -> onnxruntime.InferenceSession:
    """`spinning` threads loop until the next run: decode's short steps begin sooner, and whatever else computes between
    two runs has no cores (calibration's NumPy took twice as long).
    """
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  (onnxruntime's exceptions share no base class)
        name = model if isinstance(model, Path) else "a model"
        raise EngineError(f"onnxruntime cannot load {name}: {error}") from None
