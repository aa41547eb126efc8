# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of docs/kernels.md and the picture docs/kernels.svg from bench/results/*-h200.json.

PYTHONPATH=toolkit python bench/kernels_page.py

The text of the page is written by hand; what stands between `<!-- NAME -->` and `<!-- end -->` is written here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import roofline
import yaml

from orinkit import config
from orinkit.memory.speed import BANDWIDTH_SHARE, MATRIX_RATE, MATRIX_SHARE
from orinkit.target import Board, Gpu

ROOT = Path(__file__).parents[1]
RESULTS, DOCS = ROOT / "bench/results", ROOT / "docs"
OPS = ("int4_gemm", "linear", "attention", "gated_delta", "sampling")
BOARDS = ("agx-orin-64gb", "agx-orin-32gb", "orin-nx-16gb", "orin-nano-8gb", "orin-nano-4gb")
PROJECTED = (
    ("int4_gemm", "1 token, 7168x1024"),
    ("int4_gemm", "1 token, 1024x3584"),
    ("int4_gemm", "1 token, 248320x1024"),
    ("int4_gemm", "1 token, 18432x2560"),
    ("int4_gemm", "64 tokens, 18432x2560"),
    ("int4_gemm", "2048 tokens, 1024x3584"),
    ("int4_gemm", "2048 tokens, 18432x2560"),
    ("attention", "decode, Qwen3.5-0.8B heads, 1 x 1 after 2047 of 2048"),
    ("attention", "decode, Qwen3.5-0.8B heads, 1 x 1 after 32767 of 32768"),
    ("attention", "prefill, Qwen3.5-0.8B heads, 2048 after 0"),
    ("gated_delta", "decode, 16 heads, 1 sequences of 1"),
    ("gated_delta", "prefill, 16 heads, 1 sequences of 2048"),
    ("sampling", "1 row, peaked, greedy"),
)
"""Rows of the results, by op and case."""
LAUNCHES = {"sampling": 2, "gated_delta prefill": 4}
"""Kernels of one step of an op where it is not one."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """One file: the machine, what it can do at most, and the rows by op and case."""

    op: str
    machine: Mapping[str, str]
    ceilings: Mapping[str, float]
    rows: Mapping[tuple[str, str], Row]


@dataclass(frozen=True)
class Wanted:
    """A row of kernel_targets.yaml."""

    op: str
    case: str
    by: str
    target: float
    over: str = ""
    peer: float | None = None
    floor: float | None = None
    why: str = ""

    @property
    def is_time(self) -> bool:
        return self.by in ("us", "ratio")

    def value(self, result: Result) -> float:
        row = result.rows[self.op, self.case]
        if self.by == "tflops":
            return float(row["operations"] / row["us"] / 1e6)
        if self.by != "ratio":
            return float(row[self.by])
        op, _, case = self.over.rpartition(": ")
        return float(row["us"] / result.rows[op or self.op, case]["us"])

    def is_met(self, value: float) -> bool:
        return value <= self.target if self.is_time else value >= self.target

    def shown(self, value: float | None) -> str:
        if value is None:
            return ""
        if self.by == "ratio":
            return f"{value:.2f} x" if value < 10 else f"{value:.1f} x"
        units = {"us": f"{value:.3g} µs", "tflops": f"{value:.0f} TFLOP/s"}
        return units.get(self.by, f"{100 * value:.1f} %")


def read(folder: Path = RESULTS) -> list[Result]:
    """The results of all ops."""
    found = []
    for op in OPS:
        record = json.loads((folder / f"{op}-h200.json").read_text(encoding="utf-8"))
        rows = {(row["op"], row["case"]): row for row in record["rows"]}
        found.append(Result(op, record["machine"], record["ceilings"], rows))
    return found


def wanted() -> list[Wanted]:
    rows = yaml.safe_load((ROOT / "bench/kernel_targets.yaml").read_text(encoding="utf-8"))
    return [Wanted(**row) for row in rows]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def machine_table(results: Sequence[Result]) -> str:
    rows = []
    for each in results:
        facts, tops = each.machine, each.ceilings
        clocks = f"{facts['clocks.sm']} of {facts['clocks.max.sm']}"
        speeds = [f"{tops['copy_gb_per_s'] / 1e3:.2f} TB/s", f"{tops['matrix_tflop_per_s']:.0f} TFLOP/s"]
        rows.append([f"`{each.op}`", facts["name"], facts["driver_version"], clocks, *speeds, facts["date"][:10]])
    head = ["results", "GPU", "driver", "clock at the end", "device copy", "matrix product", "date"]
    return table(head, rows)


def target_table(results: Sequence[Result]) -> str:
    by_op = {each.op: each for each in results}
    rows = []
    for each in wanted():
        value = each.value(by_op[each.op])
        case = each.case + (f", against: {each.over}" if each.over else "")
        outcome = "met" if each.is_met(value) else f"**missed**: {each.why}"
        figures = [each.shown(number) for number in (value, each.target, each.peer, each.floor)]
        rows.append([f"`{each.op}`", case, *figures, outcome])
    return table(["op", "case", "reached", "target", "peer", "read-only kernel", ""], rows)


def launches(op: str, case: str) -> int:
    return LAUNCHES.get(op) or LAUNCHES.get(f"{op} {case.split(',')[0]}", 1)


def projected(row: Row, gpu: Gpu) -> float:
    """Microseconds by the assumptions of orin-export plan, without the cost of launches."""
    assert gpu.clock_mhz is not None, "the boards of the page have their clock"
    reading = row["bytes"] / (gpu.bandwidth_gbs * 1e3 * BANDWIDTH_SHARE)
    rate = MATRIX_RATE[gpu.sm] * gpu.sm_count * gpu.clock_mhz * MATRIX_SHARE
    return float(max(reading, row["operations"] / rate))


def projection_table(results: Sequence[Result]) -> str:
    boards = [config.read(ROOT / f"targets/boards/{name}.yaml", Board) for name in BOARDS]
    found = {key: row for each in results for key, row in each.rows.items()}
    rows = []
    for op, case in PROJECTED:
        row = found[op, case]
        times = [f"{projected(row, board.gpu):,.0f}" for board in boards if board.gpu]
        facts = [f"{row['bytes'] / 1e6:.3g}", f"{row['operations'] / 1e9:.3g}", str(launches(op, case))]
        rows.append([f"`{op}`", case, *facts, *times])
    return table(["op", "case", "MB", "GFLOP", "kernels", *(board.name for board in boards)], rows)


def points(results: Sequence[Result]) -> dict[str, list[roofline.Point]]:
    """Of each op's own rows that compute something."""
    return {
        each.op: [
            roofline.Point(f"{each.op}, {case}", row["operations"] / row["bytes"], row["operations"] / row["us"] * 1e6)
            for (op, case), row in each.rows.items()
            if op == each.op and row["operations"] > 0
        ]
        for each in results
    }


def picture(results: Sequence[Result]) -> str:
    bandwidth = max(each.ceilings["copy_gb_per_s"] for each in results) * 1e9
    peak = max(each.ceilings["matrix_tflop_per_s"] for each in results) * 1e12
    title = f"Kernels on one {results[0].machine['name']}: all shapes that were measured"
    return roofline.draw(points(results), bandwidth, peak, title)


TABLES: dict[str, Callable[[Sequence[Result]], str]] = {
    "machines": machine_table,
    "targets": target_table,
    "projection": projection_table,
}


def page(text: str, results: Sequence[Result]) -> str:
    """`text` with its tables made again."""

    def made(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{TABLES[match[1]](results)}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", made, text, flags=re.DOTALL)


def main() -> None:
    """See the module's docstring."""
    results, at = read(), DOCS / "kernels.md"
    at.write_text(page(at.read_text(encoding="utf-8"), results), encoding="utf-8")
    (DOCS / "kernels.svg").write_text(picture(results), encoding="utf-8")


if __name__ == "__main__":
    main()
