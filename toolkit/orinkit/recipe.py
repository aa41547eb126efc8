# SPDX-License-Identifier: Apache-2.0
"""A recipe: which model, how it is quantised, and the shapes that it is built for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from orinkit import config
from orinkit.errors import ConfigError

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Source:
    """Where the checkpoint comes from."""

    path: str
    """Folder with the checkpoint, relative to the recipe file."""
    repository: str | None = None
    """Hub repository, for provenance and for the download hint."""
    revision: str | None = None
    """Commit of that repository: 40 hexadecimal digits."""

    def validate(self) -> None:
        if not self.path or not self.path.isprintable():
            raise ConfigError(f"path: expected the path of a folder, found {self.path!r}")
        if self.repository is not None and not _REPOSITORY.fullmatch(self.repository):
            raise ConfigError("repository: expected ORGANISATION/NAME, found another form; never an address or a token")
        if self.revision is not None and not _COMMIT.fullmatch(self.revision):
            raise ConfigError(f"revision: expected the 40 hexadecimal digits of a commit, found {self.revision!r}")
        if self.revision is not None and self.repository is None:
            raise ConfigError("revision: expected a repository beside it, found none; add repository")


Named = Literal["int4-g32", "int4-g64", "int4-g128", "int8", "float16"]


@dataclass(frozen=True)
class Quantise:
    """How weights are stored."""

    method: Literal["none", "rtn", "awq", "gptq", "awq+gptq", "import"] = "awq+gptq"
    """`rtn` rounds each weight to the nearest of 16 levels; `awq` first scales channels by what text activates; `gptq`
    spreads rounding errors over the columns to come; `none` keeps every matrix in the activation type, for
    verification; `import` keeps the integers of a checkpoint that is quantised already."""
    group_size: Literal[32, 64, 128] = 128
    """Weights along the inner dimension that share one scale: fewer are more exact, larger and slower."""
    zeros: bool = False
    """Zero points beside the scales of INT4 groups: closer for 4 bits more per group. Not where an embedding shares the
    matrix."""
    head: Literal["auto", "int4", "int8", "float16"] = "int4"
    """The matrix that makes the logits; it is read whole for every token. `auto`: int4 where that stays within
    `head_kl` on calibration text, else int8."""
    head_kl: float | None = None
    """Largest mean KL divergence in nats that an int4 head alone may cause; left out: a quarter of the bound `kl_mean`
    of the whole export."""
    embedding: Literal["int4", "int8", "float16"] = "float16"
    """With a tied head of the same format the two share one copy."""
    gated_delta: Literal["int4", "int8", "float16"] = "int4"
    """Large projections of gated-delta layers; their a/b projections always stay wide."""
    bits: float | None = None
    """Bits per weight, scales included, that the matrices of the layers may take on average, and the head with them
    where it is `auto`. Each gets one of the formats below by what it costs on calibration text; those that would be
    int4 anyway have part in it, those with a format of their own have none."""
    formats: dict[str, Named] = field(default_factory=dict)
    """Single matrices by their names in the graph, such as `layers.3.down`, that are stored otherwise."""

    def validate(self) -> None:
        if self.zeros and self.method == "none":
            raise ConfigError("zeros: expected false with method none, which rounds nothing")
        if self.formats and self.method in ("none", "import"):
            raise ConfigError(f"formats: expected none with method {self.method}, which rounds no matrix of a layer")
        if self.bits is not None:
            _check_range("bits", self.bits, 4, 16)
            if self.method in ("none", "import"):
                raise ConfigError(f"bits: expected none with method {self.method}, which rounds no matrix of a layer")
        if self.head_kl is not None:
            _check_range("head_kl", self.head_kl, 0, 1e3)
            if self.head != "auto" or self.bits is not None:
                raise ConfigError("head_kl: expected head: auto and no bits beside it, found others; leave it out")


@dataclass(frozen=True)
class Calibration:
    """The text that activations are measured on; `rtn`, `none` and `import` need none."""

    text: str | None = None
    """A text file, a folder of them or JSON lines, relative to the recipe; without it, a text that orinkit brings."""
    sequences: int = 128
    tokens: int = 512
    """Length of each sequence."""

    def validate(self) -> None:
        _check_range("sequences", self.sequences, 1, 4096)
        _check_range("tokens", self.tokens, 16, 8192)


@dataclass(frozen=True)
class Bounds:
    """What an export may lose; a bound that is left out is the one for models of that size (docs/quality.md)."""

    perplexity_increase: float | None = None
    """Most per cent."""
    kl_mean: float | None = None
    """Largest mean KL divergence in nats."""
    top1: float | None = None
    """Least share of positions at which both models would choose the same token, 0 to 1."""

    def validate(self) -> None:
        for name, limit in (("perplexity_increase", 1e6), ("kl_mean", 1e3), ("top1", 1)):
            value = getattr(self, name)
            if value is not None:
                _check_range(name, value, 0, limit)


@dataclass(frozen=True)
class Evaluation:
    """The text on which an export is compared with the float model, and how far it may be from it."""

    text: str | None = None
    """As of `calibration`; without it, a text that orinkit brings and that its calibration text has nothing of."""
    sequences: int = 8
    tokens: int = 512
    """Length of each sequence, at most the capacity."""
    bounds: Bounds = field(default_factory=Bounds)

    def validate(self) -> None:
        _check_range("sequences", self.sequences, 1, 4096)
        _check_range("tokens", self.tokens, 16, 8192)


@dataclass(frozen=True)
class Shapes:
    """What the contexts are built for."""

    capacity: int
    """Longest sequence in tokens, prompt and answer together."""
    slots: int = 4
    """Sequences held at the same time."""
    chunk: int = 512
    """Most tokens of one prefill step."""
    snapshots: int = 2
    """Sequences whose beginning is kept for requests that begin alike; each takes the memory of a slot."""

    def validate(self) -> None:
        _check_range("capacity", self.capacity, 16, 1 << 20)
        _check_range("slots", self.slots, 1, 256)
        _check_range("chunk", self.chunk, 16, 8192)
        _check_range("snapshots", self.snapshots, 0, 256)
        if self.chunk > self.capacity:
            raise ConfigError(f"chunk: expected at most the capacity of {self.capacity} tokens, found {self.chunk}")


@dataclass(frozen=True)
class Golden:
    """Prompts whose greedy continuation a bundle must reproduce."""

    prompts: tuple[str, ...] = ("The capital of France is", "1 2 3 4 5 6 7 8", "def add(a, b):\n    return")
    """Plain text, given to the model without the chat template."""
    tokens: int = 16
    """Most tokens of each continuation."""

    def validate(self) -> None:
        if not self.prompts or not all(self.prompts):
            raise ConfigError("prompts: expected at least one prompt and none of them empty; write a sentence")
        _check_range("tokens", self.tokens, 1, 256)


@dataclass(frozen=True)
class Recipe:
    """One YAML file of `recipes/`."""

    name: str
    """At most 64 of a-z, 0-9, '.', '_' and '-'; the name of the shipped file."""
    checkpoint: Source
    shapes: Shapes
    quantise: Quantise = field(default_factory=Quantise)
    calibration: Calibration = field(default_factory=Calibration)
    evaluation: Evaluation = field(default_factory=Evaluation)
    activations: Literal["float16", "float32"] = "float16"
    """Type between ops; float32 is for verification on a host."""
    golden: Golden = field(default_factory=Golden)

    def with_formats(self, formats: Mapping[str, Named]) -> Recipe:
        """The same recipe with what was measured for it: these matrices are stored so."""
        stated = {**self.quantise.formats, **formats}
        return replace(self, quantise=replace(self.quantise, formats=stated))

    def validate(self) -> None:
        config.check_name("name", self.name)
        if self.activations == "float32" and self.quantise.method not in ("none", "import"):
            raise ConfigError(
                "activations: float32 is for verification without quantisation; set quantise: {method: none}, or "
                "{method: import} for a checkpoint that is quantised already"
            )


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}: expected {low} to {high}, found {value}")


def read(path: Path) -> Recipe:
    """The recipe at `path`. Raises ConfigError."""
    return config.read(path, Recipe)
