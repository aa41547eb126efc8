# SPDX-License-Identifier: Apache-2.0
"""What ways to quantise lose, at the same bits, on texts that none of them has seen.

    python bench/quantisation.py CHECKPOINT --text NAME=FILE --text NAME=FILE:0.95 [--outliers] [--out FILE]

`:0.95` takes the last 5 % of a file. Every way quantises the same matrices, the head among them, of the same float
model with the same calibration text (orinkit's own), and runs in float32: only the weights differ. With --outliers the
model gets outlier channels first: folds run backwards with large factors, so its function stays what it is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import outliers
import published_awq
from numpy.typing import NDArray

from orinkit import int4
from orinkit.ops.description import rms_norm
from orinkit.recipe import Calibration
from orinkit_export import plan as plans
from orinkit_export import prepare, quantise, rounding, store, texts
from orinkit_export.calibrate import LayerRunner, Statistics
from orinkit_export.evaluate import STEP, Comparison, Quality, summary
from orinkit_export.folds import Arrays
from orinkit_export.layerwise import POINTS
from orinkit_export.levels import Levels
from orinkit_export.plan import Plan
from orinkit_export.weights import Weight

Float32 = NDArray[np.float32]

GROUP_SIZE = published_awq.GROUP_SIZE
SEARCHED = 8
"""Calibration sequences that published AWQ runs for each of its candidates."""


def planned(checkpoint: Path, sequences: int, tokens: int) -> Plan:
    """The checkpoint with the default recipe."""
    shapes = f"shapes: {{capacity: {max(tokens, 512)}, slots: 1, chunk: 256}}"
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(f"name: bench\ncheckpoint: {{path: {checkpoint.resolve()}}}\n{shapes}\n", encoding="utf-8")
        found = plans.read(recipe)
    calibration = Calibration(None, sequences, tokens)
    return replace(found, recipe=replace(found.recipe, calibration=calibration))


def floats(plan: Plan) -> Arrays:
    """All weights of the float model by name."""
    return {weight.name: outliers.read(weight) for weight in plan.stored()}


def is_quantised(plan: Plan) -> Callable[[Weight], bool]:
    return lambda weight: quantise.chosen_format(weight, plan.recipe).kind == "int4"


def plain(plan: Plan) -> Arrays:
    """s = absmax / 7 and the nearest integers."""
    arrays = floats(plan)
    for weight in filter(is_quantised(plan), plan.stored()):
        array = arrays[weight.name]
        largest = np.abs(array).reshape(len(array), -1, GROUP_SIZE).max(axis=2)
        scales = (largest / 7).astype(np.float16)
        scales[scales == 0] = 1
        arrays[weight.name] = rounding.nearest(array, Levels(scales)).dequantised()
    return arrays


def ours(plan: Plan) -> Arrays:
    """As `orin-export build` stores it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with store.TensorWriter(folder) as writer:
            for weight, gram, rounded in prepare.weights(plan, folder):
                quantise.store(writer, weight, plan.recipe, gram, rounded)
        entries, data = store.read_index(folder), np.memmap(folder / store.DATA, np.uint8, "r")

        def tensor(name: str) -> NDArray[Any]:
            entry = entries[name]
            return data[entry.offset :][: entry.nbytes].view(entry.dtype).reshape(entry.shape)

        def wide(name: str) -> Float32:
            stem = name.removesuffix(".weight")
            if f"{stem}.scales" in entries:
                zeros = tensor(f"{stem}.zeros") if f"{stem}.zeros" in entries else None
                return int4.dequantise(tensor(name), tensor(f"{stem}.scales"), zeros)
            if f"{stem}.scale" in entries:
                return np.asarray(tensor(name) * tensor(f"{stem}.scale").astype(np.float32)[:, None], np.float32)
            return np.array(tensor(name), np.float32)

        return {name: wide(name) for name in entries if not name.endswith((".scales", ".scale", ".zeros"))}


def published(plan: Plan) -> Arrays:
    """AWQ as published, the head with clipped ranges."""
    arrays, ids = floats(plan), plan.calibration_ids
    shared = {name: array for name, array in arrays.items() if name.startswith("rope.")}
    runner = LayerRunner(plan.spec, ids.shape[1])
    hidden = np.stack(list(prepare.embedded(plan.embedding(), ids)))
    for index in range(len(plan.spec.layers)):
        prefix = f"layers.{index}."
        mine = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        statistics, rows = runner.run(index, mine, shared, hidden, lambda _: None)
        following = np.stack(list(rows))
        spread = np.linspace(0, len(hidden) - 1, SEARCHED).astype(np.intp)
        search = published_awq.LayerSearch(runner, plan.spec, index, shared, hidden[spread])
        arrays |= {prefix + name: array for name, array in search(mine, statistics).items()}
        hidden = following
    statistics_of_head = Statistics(plan.spec.hidden)
    for sequence in hidden:
        statistics_of_head.add(rms_norm(sequence, arrays["final_norm"], plan.spec.norm_eps))
    arrays["head.weight"] = published_awq.clipped(arrays["head.weight"], statistics_of_head.gram)
    return arrays


def with_settings(plan: Plan, **settings: Any) -> Plan:
    """The same model quantised otherwise."""
    return replace(plan, recipe=replace(plan.recipe, quantise=replace(plan.recipe.quantise, **settings)))


def bits(plan: Plan) -> float:
    """Per weight of all matrices that the default recipe quantises."""
    matrices = [weight for weight in plan.stored() if weight.role == "head" or _in_layer(weight)]
    stored = sum(quantise.stored_bytes(weight, plan.recipe) for weight in matrices)
    return 8 * stored / sum(math.prod(weight.shape) for weight in matrices)


def _in_layer(weight: Weight) -> bool:
    return weight.name.split(".", 2)[-1] in POINTS


def ways(plan: Plan, formats: bool) -> Iterator[tuple[str, float, Callable[[], Arrays]]]:
    """Names, bits per weight of the quantised matrices, and what makes the weights."""
    chosen: dict[str, dict[str, Any]] = {name: {"method": name} for name in ("rtn", "awq", "gptq", "awq+gptq")}
    if formats:
        chosen = {"awq+gptq": {}, "zero points": {"zeros": True}}
        chosen |= {f"groups of {size}": {"group_size": size} for size in (64, 32)}
        chosen |= {f"head {name}": {"head": name} for name in ("int8", "float16")}
        chosen |= {f"gated_delta {name}": {"gated_delta": name} for name in ("int8", "float16")}
    else:
        yield "absmax / 7, nearest", bits(plan), lambda: plain(plan)
        yield "AWQ as published", published_awq.BITS, lambda: published(plan)
    for name, settings in chosen.items():
        other = with_settings(plan, **settings)
        yield name, bits(other), lambda other=other: ours(other)  # type: ignore[misc]


def rows_of(plan: Plan, arrays: Arrays, ids: NDArray[np.int32]) -> Float32:
    """Normed rows [S, T-1, H] in front of the head."""
    runner = LayerRunner(plan.spec, ids.shape[1])
    shared = {name: array for name, array in arrays.items() if name.startswith("rope.")}
    hidden = np.stack(list(prepare.embedded(plan.embedding(), ids[:, :-1])))
    for index in range(len(plan.spec.layers)):
        prefix = f"layers.{index}."
        mine = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        hidden = np.stack(list(runner.forward(index, mine, shared, hidden, lambda _: None)))
    return rms_norm(hidden, arrays["final_norm"], plan.spec.norm_eps)


class Texts:
    """Texts that models are compared on, with what the float model makes of them."""

    def __init__(self, plan: Plan, arrays: Arrays, ids: dict[str, NDArray[np.int32]]) -> None:
        self._plan = plan
        self._head = arrays["head.weight"]
        self._ids = ids
        self._rows = {name: rows_of(plan, arrays, found) for name, found in ids.items()}

    def compare(self, arrays: Arrays) -> dict[str, Quality]:
        """Each text's numbers of a model with other weights."""
        return {name: summary(list(self._compared(name, arrays))) for name in self._ids}

    def _compared(self, name: str, arrays: Arrays) -> Iterator[Comparison]:
        found = rows_of(self._plan, arrays, self._ids[name])
        for ids, expected_rows, found_rows in zip(self._ids[name], self._rows[name], found, strict=True):
            for start in range(0, len(ids) - 1, STEP):
                here = slice(start, start + STEP)
                comparison = Comparison(ids[1:][here])
                comparison.add(expected_rows[here] @ self._head.T, found_rows[here] @ arrays["head.weight"].T)
                yield comparison


def read_texts(plan: Plan, named: list[str], count: int, tokens: int) -> dict[str, NDArray[np.int32]]:
    """Token ids of texts given as NAME=FILE or NAME=FILE:SHARE, what comes after that share of the file."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for argument in named:
            name, _, source = argument.partition("=")
            path, _, share = source.partition(":")
            text = Path(path).read_text(encoding="utf-8")
            part = Path(folder) / "text.txt"
            part.write_text(text[int(float(share or 0) * len(text)) :], encoding="utf-8")
            found[name] = texts.sequences(name, part, count, tokens, plan.tokenizer)
    return found


def table(record: dict[str, Any]) -> str:
    """The record in Markdown."""
    names = list(record["float"])
    heads = "".join(f" {name}: KL | top-1 | perplexity |" for name in names)
    lines = [f"| way | bits |{heads}", "|---" * (2 + 3 * len(names)) + "|"]
    for row in record["ways"]:
        cells = (row["texts"][name] for name in names)
        numbers = "".join(
            f" {c['kl_mean']:.4f} | {100 * c['top1']:.1f} % | {c['perplexity_increase']:+.2f} % |" for c in cells
        )
        lines.append(f"| {row['way']} | {row['bits']:.3f} |{numbers}")
    return "\n".join(lines)


def measure(plan: Plan, arguments: argparse.Namespace) -> dict[str, Any]:
    """The record of one model."""
    chosen = outliers.injected(plan) if arguments.outliers else plan
    compared = Texts(plan, floats(plan), read_texts(plan, arguments.text, arguments.sequences, 512))
    record: dict[str, Any] = {
        "model": arguments.checkpoint.name + (" with outlier channels" if arguments.outliers else ""),
        "weights": plan.parameters(),
        "calibration": vars(plan.recipe.calibration),
        "cores": len(os.sched_getaffinity(0)),
        "float": {name: _numbers(found) for name, found in compared.compare(floats(chosen)).items()},
        "ways": [],
    }
    for way, bits, make in ways(chosen, arguments.formats):
        if arguments.way and way not in arguments.way:
            continue
        started, spent = time.perf_counter(), time.process_time()
        arrays = make()
        seconds = {"wall_s": time.perf_counter() - started, "cpu_s": time.process_time() - spent}
        found = {name: _numbers(quality) for name, quality in compared.compare(arrays).items()}
        row = {"way": way, "bits": bits, **{key: round(value, 1) for key, value in seconds.items()}, "texts": found}
        record["ways"].append(row)
        print(json.dumps(row), flush=True)
    return record


def _numbers(quality: Quality) -> dict[str, float]:
    return {key: value for key, value in vars(quality).items() if key != "histogram"}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--sequences", type=int, default=24, help="of 512 tokens of each text (default %(default)s)")
    parser.add_argument(
        "--calibration", type=int, default=Calibration().sequences, help="sequences (default %(default)s)"
    )
    parser.add_argument("--outliers", action="store_true", help="in a copy with outlier channels")
    parser.add_argument("--formats", action="store_true", help="the default method in other formats instead")
    parser.add_argument("--way", action="append", help="only this one of the table; may be given several times")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    record = measure(planned(arguments.checkpoint, arguments.calibration, Calibration().tokens), arguments)
    print(table(record))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
