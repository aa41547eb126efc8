# SPDX-License-Identifier: Apache-2.0
"""Rows to sample from, how they lie in device memory, and when a token other than the reference's is explained."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orinkit.engines.kernels import KernelLibrary
from orinkit.runtime.philox import gumbel
from orinkit.runtime.sampling import MAX_BIASES, History, Sampling

Array = NDArray[Any]

LIBRARY = Path(__file__).parents[1] / "build/kernels/liborin_kernels.so"

IN_PROMPT = 0x8000
"""Bit of a count in device memory that says: the token stands in the prompt."""
MASS_TOLERANCE = 1e-6
"""Share of the mass by which a token may lie on the other side of top-p than in float64."""
DRAW_TOLERANCE = 4e-6
"""Difference of scores plus Gumbel numbers that float32 may not tell apart."""


TIE_DIGITS = 9
"""Decimals from which scores count as equal, so that the lower id comes first."""


@dataclass(frozen=True)
class Row:
    """One row of logits and all that its token depends on."""

    logits: NDArray[np.float32]
    sampling: Sampling
    history: History
    position: int


def random_sampling(rng: np.random.Generator, vocab: int) -> Sampling:
    """Settings with each option on or off."""

    def pick(*values: Any) -> Any:
        return values[rng.integers(len(values))]

    biased = rng.choice(vocab, size=min(vocab, int(pick(0, 0, 3, 300))), replace=False)
    return Sampling(
        temperature=pick(0.01, 0.3, 0.7, 1.0, 1.3, 2.0),
        top_k=pick(0, 0, 1, 5, 20, 50, 1000, vocab + 1),
        top_p=pick(1.0, 1.0, 0.0, 0.3, 0.8, 0.95, 0.999),
        min_p=pick(0.0, 0.0, 0.001, 0.05, 0.5, 1.0),
        repetition_penalty=pick(1.0, 1.0, 1.1, 2.0, 0.5),
        presence_penalty=pick(0.0, 0.0, 0.7, -0.3),
        frequency_penalty=pick(0.0, 0.0, 0.2, -0.1),
        logit_bias={int(token): float(rng.normal() * 3) for token in biased},
        seed=int(rng.integers(2**64, dtype=np.uint64)),
    )


def random_row(rng: np.random.Generator, vocab: int, kind: str) -> Row:
    """`kind`: peaked (as a model's logits are), flat, or tied (few different values)."""
    logits = rng.standard_normal(vocab)
    if kind == "peaked":
        logits = 2 * logits - 5
        logits[rng.integers(vocab, size=min(vocab, 40))] += rng.exponential(4, size=min(vocab, 40)) + 6
    if kind == "tied":
        logits = np.round(logits * 2) / 2
    history = History.of(rng.integers(vocab, size=50).tolist())
    for token in rng.integers(vocab, size=30):
        history.add(int(token))
    return Row(logits.astype(np.float32), random_sampling(rng, vocab), history, int(rng.integers(1, 100_000)))


def counts_of(history: History, vocab: int) -> NDArray[np.uint16]:
    """The slot's row of `counts`. Tokens of the output alone have no prompt bit."""
    counts = np.zeros(vocab, np.uint16)
    for token in history.seen:
        counts[token] |= 0 if token in history.output else IN_PROMPT
    for token, count in history.output.items():
        counts[token] += count
    return counts


def settings_of(dtype: np.dtype[Any], sampling: Sampling, num_logprobs: int = 0, is_constrained: int = 0) -> Array:
    """The slot's struct."""
    named = {name: getattr(sampling, name, 0) for name in dtype.names or ()}
    named |= {"num_biases": len(sampling.logit_bias), "num_logprobs": num_logprobs, "is_constrained": is_constrained}
    return np.array(tuple(named.values()), dtype)


def biases_of(rows: Sequence[Row]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """bias_ids and bias_values of one slot per row."""
    ids = np.full((len(rows), MAX_BIASES), 2**31 - 1, np.int32)
    values = np.full((len(rows), MAX_BIASES), np.nan)
    for at, row in enumerate(rows):
        count = len(row.sampling.logit_bias)
        ids[at, :count] = list(row.sampling.logit_bias)
        values[at, :count] = list(row.sampling.logit_bias.values())
    return ids, values


def is_explained(row: Row, token: int) -> bool:
    """Whether float64 sums that are off by less than the tolerances could have chosen `token`."""
    s = row.sampling
    scores = row.logits.astype(np.float64)
    for biased, bias in s.logit_bias.items():
        scores[biased] += bias
    for seen in row.history.seen:
        scores[seen] = scores[seen] * s.repetition_penalty if scores[seen] < 0 else scores[seen] / s.repetition_penalty
    for written, count in row.history.output.items():
        scores[written] -= s.presence_penalty + s.frequency_penalty * count
    scores = np.round((scores - scores.max()) / s.temperature, TIE_DIGITS)
    order = np.argsort(-scores, kind="stable")[: s.top_k or None]
    masses = np.exp(scores[order])
    before = (np.cumsum(masses) - masses) / masses.sum()
    least = math.log(s.min_p) - 1e-9 if s.min_p else -math.inf
    may = order[(before < s.top_p + MASS_TOLERANCE) & (scores[order] >= least)]
    must = order[(before < max(s.top_p, 1e-12) - MASS_TOLERANCE) & (scores[order] >= least)]
    drawn = scores + gumbel(np.arange(len(scores)), row.position, s.seed)
    return token in may and bool(np.all(drawn[must] <= drawn[token] + DRAW_TOLERANCE))


def described(function: str) -> np.dtype[Any]:
    """The struct that `orin_<function>` of the kernel library describes."""
    describe = getattr(ctypes.CDLL(str(LIBRARY)), f"orin_{function}")
    describe.restype = ctypes.c_char_p
    kinds = {"D": "f8", "U": "u8", "I": "i4", "F": "f4"}
    pairs = (line.split() for line in describe().decode().splitlines())
    return np.dtype([(name, kinds[kind]) for kind, name in pairs])


class Sampler:
    """Device memory for `rows` and one launch of the sampling kernels over it.

    Row r is in slot `slots[r]`; slots of nobody hold 0xFF. Outputs and workspace are poisoned before each run.
    """

    def __init__(
        self,
        kernels: KernelLibrary,
        rows: Sequence[Row],
        num_logprobs: int = 0,
        masks: Array | None = None,
        unwanted: Sequence[int] = (),
    ) -> None:
        self._kernels = kernels
        vocab = len(rows[0].logits)
        num_rows, num_slots = len(rows), len(rows) + 3
        slots = np.random.default_rng(num_rows).permutation(num_slots)[:num_rows].astype(np.int32)
        ids, values = biases_of(rows)
        dtype = described("sampling_slot_fields")
        settings = [settings_of(dtype, row.sampling, num_logprobs, int(masks is not None)) for row in rows]
        logits = np.stack([row.logits for row in rows])
        logits[list(unwanted)] = np.nan
        lengths = np.array([row.position for row in rows], np.int32)
        tokens = np.minimum(lengths, 1 + np.arange(num_rows, dtype=np.int32) % 3)
        given: dict[str, Array] = {
            "logits": logits,
            "slots": np.where(np.isin(np.arange(num_rows), list(unwanted)), -1, slots).astype(np.int32),
            "past_lens": lengths - tokens,
            "cu_seqlens": np.concatenate([[0], np.cumsum(tokens)]).astype(np.int32),
            "settings": _in_slots(np.stack(settings), slots, num_slots),
            "counts": _in_slots(np.stack([counts_of(row.history, vocab) for row in rows]), slots, num_slots),
            "bias_ids": _in_slots(ids, slots, num_slots),
            "bias_values": _in_slots(values, slots, num_slots),
        }
        if masks is not None:
            given["mask"] = _in_slots(masks, slots, num_slots)
        outputs = {name: np.zeros(num_rows, kind) for name, kind in _OUTPUTS.items()}
        shape = (num_rows, max(1, num_logprobs))
        outputs |= {"top_ids": np.zeros(shape, np.int32), "top_logprobs": np.zeros(shape, np.float32)}
        self.arrays = {name: gpu_array(array) for name, array in (given | outputs).items()}
        self._outputs = outputs
        self._sizes = {"rows": num_rows, "vocab": vocab, "max_biases": MAX_BIASES, "max_logprobs": num_logprobs}
        pointers = dict.fromkeys(("logit_rows", "mask", "counters", "workspace")) | {
            name: array.pointer for name, array in self.arrays.items()
        }
        blank = kernels.arguments("sampling", **pointers, **self._sizes)
        self.counters = gpu_array(np.zeros(kernels.query("sampling_counters", blank), np.uint8))
        self._poison = np.full(kernels.query("sampling_workspace", blank), 0xFF, np.uint8)
        self._workspace = gpu_array(self._poison)
        pointers |= {"counters": self.counters.pointer, "workspace": self._workspace.pointer}
        self.arguments = kernels.arguments("sampling", **pointers, **self._sizes)

    def launch(self, stream: Any) -> None:
        self._kernels.launch("sampling", self.arguments, stream.handle)

    def poison(self) -> None:
        self._workspace.write(self._poison)
        for name, array in self._outputs.items():
            self.arrays[name].write(np.full(array.shape, 0x7FFFFFFF, np.int32).view(array.dtype))

    def run(self, stream: Any) -> dict[str, Array]:
        """Outputs by name."""
        self.poison()
        self.launch(stream)
        stream.sync()
        return self.read()

    def read(self) -> dict[str, Array]:
        return {name: self.arrays[name].read() for name in self._outputs}


_OUTPUTS = {"tokens": np.int32, "logprobs": np.float32, "errors": np.int32}


def _in_slots(rows: Array, slots: Array, num_slots: int) -> Array:
    """`rows` at `slots` of an array for all slots; 0xFF elsewhere."""
    every = np.frombuffer(b"\xff" * (num_slots * rows[0].nbytes), rows.dtype).reshape(num_slots, *rows.shape[1:]).copy()
    every[slots] = rows
    return every


def gpu_array(array: Array) -> Any:
    """A copy in device memory."""
    import gpu

    return gpu.Array(array)
