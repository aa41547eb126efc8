# SPDX-License-Identifier: Apache-2.0
"""What the runtime may expect of an engine, whichever it is.

    engine  = open_engine("onnxruntime", graph, model) a loaded graph that can execute
    caches  = engine.caches(slots, capacity, chunk)    state of every slot; allocated once
    context = engine.context(profile, caches)          one engine bound to one profile and one set of caches, for life
    logits  = context.run(inputs)                      one step

A context has no method that changes its profile or its caches.

An engine that can choose tokens where the logits are offers a pipeline instead (`Capturing`): whole decode steps as
captures, launched ahead of what the host has read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

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

    def spare(self, count: int) -> Spare:
        """Allocate `count` places that states of slots can be copied to; no step uses them."""


class Spare(Protocol):
    """Copies of what slots held at some time."""

    def save(self, slot: int, place: int, length: int) -> None:
        """Copy all states of a slot that holds `length` tokens, as they are behind the steps launched so far."""

    def restore(self, place: int, slot: int, length: int, has_rows: bool = False) -> None:
        """Copy back what was saved of `length` tokens, for the steps launched from here on.

        A slot that `has_rows` has those of these tokens still, and has had others appended at most: keys and values
        that nothing can have overwritten are left as they are.
        """


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


@dataclass(frozen=True)
class Limits:
    """The most that any request may ask of a pipeline; memory is made for it at start."""

    biases: int
    """Token ids of a logit bias."""
    stops: int
    """Token ids that end a sequence."""
    logprobs: int
    """Alternatives told of each token."""
    run_ahead: int
    """Least steps that are in flight while the next is launched."""
    snapshots: int
    """Places for copies of slots."""


@dataclass(frozen=True)
class Seat:
    """What a pipeline has to know of the sequence in a slot."""

    prompt: tuple[int, ...]
    settings: Mapping[str, float]
    """How its tokens are chosen: temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
    frequency_penalty and seed, as in runtime/sampling.py."""
    biases: Mapping[int, float]
    """Added to the logits of these token ids."""
    stops: tuple[int, ...]
    """Token ids that end the sequence."""
    max_length: int
    """Tokens, prompt included, at which the sequence ends."""
    num_logprobs: int = 0
    """Most likely tokens to tell of each token."""
    is_constrained: bool = False
    """Whether tokens come from the mask that `constrain` sets."""


class Chosen(NamedTuple):
    """The token that a step chose for the sequence in a slot; None where none can be chosen from its logits."""

    slot: int
    token: int | None
    logprob: float = 0.0
    """Natural logarithm of its probability under the model itself."""
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens with theirs, most likely first."""


class Pipeline(Protocol):
    """Steps that choose tokens and feed them to the next step, in the order of their launches.

    A sequence gets a seat before its first prefill; the prefill that wants its logits chooses its first token; from
    then on each `decode` that lists its slot chooses one more, until it meets a stop id or its longest length. What is
    launched for it after that chooses nothing.
    """

    @property
    def run_ahead(self) -> int:
        """Steps that may be in flight while the next is launched, more while one kind of step follows itself; 0: a
        launched step has been done."""

    @property
    def in_flight(self) -> int:
        """Launched steps that `collect` has not given yet."""

    @property
    def degraded(self) -> str | None:
        """Why steps run slower than they should, None where they do not."""

    @property
    def spare(self) -> Spare:
        """Copies of slots."""

    def seat(self, slot: int, seat: Seat) -> None:
        """Prepare a slot for a sequence. Raises EngineError."""

    def constrain(self, slot: int, mask: NDArray[np.uint32]) -> None:
        """Tokens that the sequence's next step may choose: bit id % 32 of word id / 32, uint32 [ceil(V/32)]. No step in
        flight may choose for the slot."""

    def leave(self, slot: int) -> None:
        """Choose no more tokens for a slot; steps already in flight may still do so."""

    def prefill(self, inputs: StepInputs) -> None:
        """Launch a chunk of each sequence's prompt. Raises EngineError."""

    def decode(self, slots: Sequence[int], longest: int) -> None:
        """Launch one token for each of `slots`, the longest of which then holds `longest`. Raises EngineError."""

    def collect(self, most: int) -> list[tuple[Chosen, ...]]:
        """Wait until at most `most` steps are in flight: what those that are done have chosen, oldest step first.

        Raises EngineError: a step failed; then nothing that is in flight can be trusted.
        """


@runtime_checkable
class Capturing(Protocol):
    """An engine that has a pipeline."""

    def pipeline(self, slots: int, capacity: int, chunk: int, limits: Limits) -> Pipeline:
        """Make caches, contexts and captures for good. Raises EngineError."""


class Program(Protocol):
    """A loaded model that is no decoder step: named arrays in, named arrays out."""

    @property
    def inputs(self) -> tuple[str, ...]: ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]: ...
