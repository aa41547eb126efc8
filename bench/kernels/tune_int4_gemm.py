# SPDX-License-Identifier: Apache-2.0
"""Measures the choices that the INT4 GEMM has above 16 tokens on the GPU of this machine, and writes its table.

PYTHONPATH=toolkit:tests python bench/kernels/tune_int4_gemm.py [--library PATH] [--model NAME ...] [--table PATH]

Every legal choice is measured in a captured chain with weights of its own for each launch; the fastest of a range of
tokens is measured again, at both ends, in turns with what select.h's costs choose. Build the
library again afterwards: the table is compiled into it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import tuned_table
from bench_int4_gemm import GROUP, Bench
from tuned_table import TABLE, TOKENS, Choice, Tile, Tuned, first_of

import gpu
import measure
from int4_gemm_cases import MODEL_SHAPES
from orinkit.engines.kernels import KernelLibrary

ROOT = Path(__file__).parents[2]
LEAST = 1.03
"""A gain below it is not worth an entry."""
SAME = 1.01
"""What times of one choice differ by."""


class Tuner:
    """Times of choices on one GPU."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self._bench, self._folder = bench, folder
        self._device = bench.kernels.device
        self._tiles, _ = self._ask([])

    def _ask(self, cases: list[tuple[int, int, int]]) -> tuple[list[Tile], list[Choice]]:
        return tuned_table.ask(self._folder, self._device.sm_count, self._device.shared_bytes, cases)

    def microseconds(self, tokens: int, n: int, k: int, choice: Choice, repeats: int) -> float:
        tile = self._tiles.index(Tile(choice.tile_tokens, choice.tile_rows, choice.tile_shares)) + 2
        wishes = {"tile": tile, "splits": choice.splits, "blocks": choice.group_m}
        return self._bench.gemm(tokens, n, k, False, repeats=repeats, **wishes)

    def gain(self, tokens: int, n: int, k: int, choice: Choice, chosen: Choice) -> float:
        """How many times faster than `chosen` a choice is, in turns with it."""
        times = [[self.microseconds(tokens, n, k, one, 10) for one in (chosen, choice)] for _ in range(3)]
        return sorted(slow / fast for slow, fast in times)[1]

    def entries(self, n: int, k: int) -> Iterator[Tuned]:
        """What is fastest at the end of a range, if it pays there or at its beginning, and costs at neither."""
        cases = [(tokens, n, k) for last in TOKENS for tokens in (first_of(last), last)]
        _, chosen = self._ask(cases)
        for last, at_first, at_last in zip(TOKENS, chosen[::2], chosen[1::2], strict=True):
            choices = tuned_table.candidates(last, n, k, self._tiles, self._device.sm_count)
            fastest = min(choices, key=lambda choice: self.microseconds(last, n, k, choice, 3))
            first = first_of(last)
            gains = [self.gain(first, n, k, fastest, at_first), self.gain(last, n, k, fastest, at_last)]
            told = " and ".join(f"{gain:.2f}" for gain in gains)
            print(f"{first:5} to {last:4} tokens, {n}x{k}: {astuple(fastest)} is {told} times as fast", flush=True)
            if min(gains) > 1 / SAME and max(gains) > LEAST:
                device = self._device
                yield Tuned(device.sm_count, device.shared_bytes, n, k, GROUP, first, last, *astuple(fastest))


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", type=Path, default=ROOT / "build/kernels/liborin_kernels.so")
    parser.add_argument("--model", action="append", choices=sorted(MODEL_SHAPES))
    parser.add_argument("--table", type=Path, default=TABLE)
    args = parser.parse_args()
    stream = gpu.Stream()
    bench = Bench.make(KernelLibrary(args.library), stream)
    shapes = sorted({shape for model in args.model or MODEL_SHAPES for shape in MODEL_SHAPES[model]})
    facts = measure.machine()
    origin = f"measured {facts['date'][:10]}, driver {facts['driver_version']}; faster than select.h's costs by {LEAST}"
    with tempfile.TemporaryDirectory() as folder:
        tuner = Tuner(bench, Path(folder))
        found = [entry for n, k in shapes for entry in tuner.entries(n, k)]
    tuned_table.write(facts["name"], origin, found, args.table)


if __name__ == "__main__":
    main()
