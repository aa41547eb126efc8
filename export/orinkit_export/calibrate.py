# SPDX-License-Identifier: Apache-2.0
"""Text to activation statistics, one layer at a time, in float32 through ONNX Runtime.

Only one layer's weights are in memory. The hidden rows between layers lie in memory-mapped files: `hidden-I.npy` is the
input of layer I, [sequences, tokens, H] float32, and exists only when it is complete. So a run that was killed goes on
at the layer with the highest number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from orinkit.engines import open_program
from orinkit.engines.base import Program
from orinkit.model import LayerSpec, ModelSpec
from orinkit.ops.description import rms_norm
from orinkit.recipe import Calibration
from orinkit.runtime.tokenizer import Tokenizer
from orinkit_export import graph, texts
from orinkit_export.disk import writing
from orinkit_export.folds import Arrays
from orinkit_export.progress import Advance
from orinkit_export.store import Entry

Float32 = NDArray[np.float32]

DEFAULT_TEXT = Path(__file__).with_name("calibration.txt")
"""What a recipe without a text of its own is calibrated on."""

PARTIAL = "next.npy"
_HIDDEN = re.compile(r"hidden-(\d+)\.npy")


@dataclass
class Statistics:
    """What is kept of the inputs of one linear: sums over tokens."""

    width: int
    tokens: int = 0
    gram: Float32 = field(init=False)
    mean_abs: Float32 = field(init=False)
    max_abs: Float32 = field(init=False)

    def __post_init__(self) -> None:
        self.gram = np.zeros((self.width, self.width), np.float32)
        self.mean_abs = np.zeros(self.width, np.float32)
        self.max_abs = np.zeros(self.width, np.float32)

    def add(self, x: Float32) -> None:
        """Inputs [T, K]; the means are exact at every moment."""
        magnitude = np.abs(x)
        before, self.tokens = self.tokens, self.tokens + len(x)
        kept = np.float32(before / self.tokens)
        self.gram *= kept
        self.gram += (x.T @ x) * np.float32(1 / self.tokens)
        self.mean_abs = self.mean_abs * kept + magnitude.sum(axis=0) / np.float32(self.tokens)
        self.max_abs = np.maximum(self.max_abs, magnitude.max(axis=0))


def sequences(settings: Calibration, folder: Path, tokenizer: Tokenizer) -> NDArray[np.int32]:
    """Token ids [sequences, tokens] from the recipe's text, in blocks spread evenly over it.

    Raises ConfigError: no such text, or too little of it.
    """
    source = DEFAULT_TEXT if settings.text is None else folder / settings.text
    return texts.sequences("calibration", source, settings.sequences, settings.tokens, tokenizer)


class Hidden:
    """The hidden rows on their way through the layers, in files of one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    @property
    def next_layer(self) -> int | None:
        """The layer whose input is complete; None before the first."""
        numbers = [int(match[1]) for path in self._folder.iterdir() if (match := _HIDDEN.fullmatch(path.name))]
        return max(numbers, default=None)

    def read(self, layer: int) -> Float32:
        """The input of `layer`, mapped."""
        return self.rows(self._path(layer).name)

    def write(self, shape: tuple[int, ...], rows: Iterator[Float32], name: str = PARTIAL) -> None:
        """Make the input of the next layer from one array per sequence; it counts from `commit` on. Rows of another
        `name` are those of a place within the layer, and are there until `remove` or `commit`.

        Written, not mapped: on a full disk a mapped file ends the process without a word.
        """
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        with writing(self._folder), (self._folder / name).open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in rows:
                file.write(np.ascontiguousarray(block, "<f4").data)

    def rows(self, name: str) -> Float32:
        """The rows of that name, mapped."""
        return np.asarray(np.load(self._folder / name, mmap_mode="r"))

    def remove(self, name: str) -> None:
        """Remove the rows of that name."""
        with writing(self._folder):
            (self._folder / name).unlink(missing_ok=True)

    def commit(self, layer: int) -> None:
        """What was written is the input of `layer`; the layer before is finished, and all its rows are removed."""
        with writing(self._folder):
            (self._folder / PARTIAL).rename(self._path(layer))
            for path in set(self._folder.glob("*.npy")) - {self._path(layer)}:
                path.unlink()

    def _path(self, layer: int) -> Path:
        return self._folder / f"hidden-{layer}.npy"


class LayerRunner:
    """Runs single layers, part by part; layers of the same kind share their loaded programs."""

    def __init__(self, spec: ModelSpec, tokens: int) -> None:
        self._spec = spec
        self._tokens = tokens
        self._programs: dict[tuple[LayerSpec, str], tuple[Program, int]] = {}

    def run(
        self, index: int, arrays: Arrays, shared: Arrays, hidden: Float32, advance: Advance
    ) -> tuple[dict[str, Statistics], Iterator[Float32]]:
        """Statistics of layer `index` by point, filled while the output rows are drawn from the iterator.

        arrays: the layer's float weights; shared: the rope tables. Points: norm1 (input of the mixer's projections),
        mixer (of its output projection), norm2 (of gate_up), inner (of down).
        """
        layer = self._spec.layers[index]
        widths = {"norm1": self._spec.hidden, "mixer": mixer_width(layer), "norm2": self._spec.hidden}
        statistics = {name: Statistics(width) for name, width in (widths | {"inner": layer.intermediate}).items()}

        def rows() -> Iterator[Float32]:
            for sequence in hidden:
                results = self.layer(index, arrays, shared, np.ascontiguousarray(sequence))
                statistics["norm1"].add(rms_norm(sequence, arrays["norm1"], self._spec.norm_eps))
                statistics["mixer"].add(results["mixer"])
                statistics["norm2"].add(rms_norm(results["middle"], arrays["norm2"], self._spec.norm_eps))
                statistics["inner"].add(results["inner"])
                advance(len(sequence))
                yield results["out"]

        return statistics, rows()

    def forward(
        self, index: int, arrays: Arrays, shared: Arrays, hidden: Float32, advance: Advance
    ) -> Iterator[Float32]:
        """Output rows of layer `index`, sequence by sequence, without statistics; arguments as of `run`."""
        for sequence in hidden:
            yield self.layer(index, arrays, shared, np.ascontiguousarray(sequence))["out"]
            advance(len(sequence))

    def layer(self, index: int, arrays: Arrays, shared: Arrays, hidden: Float32) -> Mapping[str, Float32]:
        """What layer `index` makes of one sequence [T, H]: mixer, middle, inner and out (see graph.PARTS)."""
        rows = {"hidden": hidden}
        for part in graph.PARTS:
            rows[part] = self.part(part, index, arrays, shared, rows)
        return rows

    def part(self, part: str, index: int, arrays: Arrays, shared: Arrays, rows: Mapping[str, Float32]) -> Float32:
        """One of graph.PARTS of layer `index` for one sequence, made of `rows` by name [T, .]."""
        layer = self._spec.layers[index]
        first = self._programs.get((layer, part), (None, index))[1]
        weights = {f"layers.{first}.{name}": array for name, array in arrays.items()} | dict(shared)
        if (layer, part) not in self._programs:
            entries = {name: Entry(name, "float32", array.shape, 0, 0) for name, array in weights.items()}
            model = graph.layer_part(self._spec, index, entries, part)
            self._programs[layer, part] = (open_program(ir.to_proto(model).SerializeToString()), index)
        program = self._programs[layer, part][0]
        step = {
            "cu_seqlens": np.array([0, len(rows[graph.PARTS[part][0]])], np.int32),
            "past_lens": np.zeros(1, np.int32),
            "slots": np.zeros(1, np.int32),
        }
        known = set(program.inputs)
        given = step | _states(layer, first, self._tokens) | weights | dict(rows)
        results: Mapping[str, Float32] = program.run({name: array for name, array in given.items() if name in known})
        return results[part]


def mixer_width(layer: LayerSpec) -> int:
    """Columns that go into the output projection of a layer's mixer."""
    if layer.attention:
        return layer.attention.heads * layer.attention.head_dim
    return layer.gated_delta.z_dim if layer.gated_delta else 0


def _states(layer: LayerSpec, index: int, tokens: int) -> dict[str, Float32]:
    """Empty states of one slot."""
    if layer.attention:
        a = layer.attention
        return {f"kv_{index}": np.zeros((1, 2, a.kv_heads, tokens, a.head_dim), np.float32)}
    if layer.gated_delta is None:
        return {}
    d = layer.gated_delta
    return {
        f"conv_{index}": np.zeros((1, d.channels, d.conv_width - 1), np.float32),
        f"rec_{index}": np.zeros((1, d.value_heads, d.key_dim, d.value_dim), np.float32),
    }
