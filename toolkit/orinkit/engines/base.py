# SPDX-License-Identifier: Apache-2.0
"""What the runtime may expect of an engine, whichever it is.

    engine  = open_engine("onnxruntime", graph, model) a loaded graph that can execute
    caches  = engine.caches(slots, capacity, chunk)    state of every slot; allocated once
    context = engine.context(profile, caches)          one engine bound to one profile and one set of caches, for life
    logits  = context.run(inputs)                      one step

A context has no method that changes its profile or its caches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Profile:
    """The largest step that a context is built for."""

    name: str
    tokens: int
    """Most tokens of all sequences together (T)."""
    sequences: int
    """Most sequences (B)."""
    logit_rows: int = 0
    """Most rows of logits (R); 0 = one for each sequence."""


@dataclass(frozen=True)
class StepInputs:
    """Graph inputs of one step that are not state; names and meaning as in docs/contract.md.

    input_ids int32 [T], cu_seqlens int32 [B+1], past_lens int32 [B], slots int32 [B] (-1 = padded row),
    logit_rows int32 [R] (-1 = no logits wanted).
    """

    input_ids: Int32
    cu_seqlens: Int32
    past_lens: Int32
    slots: Int32
    logit_rows: Int32


class Caches(Protocol):
    """State of every slot, in the engine's own memory."""

    @property
    def slots(self) -> int: ...

    @property
    def capacity(self) -> int:
        """Tokens that one slot can hold."""

    @property
    def nbytes(self) -> int: ...


class Context(Protocol):
    """One engine bound to one profile and one set of caches."""

    @property
    def profile(self) -> Profile: ...

    def run(self, inputs: StepInputs) -> Float32:
        """Execute one step: logits float32 [R, V]; rows of -1 are unspecified but finite. Caches advance in place.

        Raises EngineError.
        """


class Engine(Protocol):
    """A loaded graph that can execute."""

    @property
    def name(self) -> str: ...

    @property
    def can_capture(self) -> bool:
        """Whether a step can be captured as a CUDA graph."""

    def caches(self, slots: int, capacity: int, chunk: int) -> Caches:
        """Allocate the caches of `slots` sequences of `capacity` tokens, for steps of at most `chunk` tokens each."""

    def context(self, profile: Profile, caches: Caches) -> Context: ...


class Program(Protocol):
    """A loaded model that is no decoder step: named arrays in, named arrays out."""

    @property
    def inputs(self) -> tuple[str, ...]: ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]: ...
