# SPDX-License-Identifier: Apache-2.0
"""Two exports side by side: the numbers of their reports as text for a terminal and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

from orinkit_export.report.data import Report
from orinkit_export.report.html import cell, document, plots, section, table
from orinkit_export.report.page import QUALITY, errors, histogram, kinds, verdict
from orinkit_export.report.svg import bars


@dataclass(frozen=True)
class Pair:
    """One number of both exports; None where an export does not have it."""

    name: str
    a: float | None
    b: float | None

    @property
    def change(self) -> str:
        """From a to b in per cent of a."""
        return "-" if self.a is None or self.b is None or self.a <= 0 else f"{100 * (self.b / self.a - 1):+.1f} %"


def pairs(a: Report, b: Report) -> dict[str, list[Pair]]:
    """What is compared, by heading."""
    quality = [Pair(text, getattr(a.quality, key), getattr(b.quality, key)) for key, text in QUALITY.items()]
    after = ({matrix.name: matrix.after for matrix in side.matrices if matrix.after is not None} for side in (a, b))
    whole = Pair("bits per weight", a.bits_per_weight, b.bits_per_weight)
    seconds = ({name: cost.seconds for name, cost in side.stages.items()} for side in (a, b))
    memory = (max(cost.peak_bytes for cost in side.stages.values()) for side in (a, b))
    return {
        "against the float model": quality,
        "sizes, bytes": [*_joined(a.sizes, b.sizes), Pair("total", a.data_bytes, b.data_bytes), whole],
        "error of each matrix": _joined(*after),
        "seconds of each stage": _joined(*seconds),
        "memory, bytes": [Pair("most", *memory)],
    }


def _joined(a: Mapping[str, float], b: Mapping[str, float]) -> list[Pair]:
    return [Pair(name, a.get(name), b.get(name)) for name in dict.fromkeys([*a, *b])]


def warnings(a: Report, b: Report) -> Iterator[str]:
    """What makes a comparison doubtful."""
    if a.compared_with != b.compared_with:
        yield "evaluated on different texts or against different float models: only sizes and costs can be compared"
    if a.recipe.calibration != b.recipe.calibration:
        yield "calibrated on different texts: errors of matrices are of different inputs"


def text(a: Report, b: Report, names: tuple[str, str]) -> Iterator[str]:
    """Lines for a terminal; `names` tell the exports apart."""
    yield from (f"A: {names[0]}", f"B: {names[1]}", *(f"note: {line}" for line in warnings(a, b)))
    for heading, found in pairs(a, b).items():
        if found:
            width = max(len(pair.name) for pair in found)
            yield ""
            yield f"{heading:<{width}} {'A':>14} {'B':>14} {'B to A':>10}"
            for pair in found:
                yield f"{pair.name:<{width}} {cell(pair.a):>14} {cell(pair.b):>14} {pair.change:>10}"


def page(a: Report, b: Report, names: tuple[str, str]) -> str:
    """Both on one page, drawn where it can be."""
    found = pairs(a, b)
    tables = {heading: table((heading, *names, "change"), _rows(found[heading])) for heading in found}
    title = f"{names[0]} and {names[1]}"
    sides = "".join(f"<p>{escape(name)}</p>\n{verdict(side)}" for name, side in zip(names, (a, b), strict=True))
    notes = "".join(f'<p class="bad">{escape(line)}</p>\n' for line in warnings(a, b))
    both = zip(names, (a, b), strict=True)
    counts = plots(histogram({name: side.quality.histogram for name, side in both}))
    of = {names[0]: (a.matrices, "after"), names[1]: (b.matrices, "after")}
    drawn = plots(*(errors(kind, of) for kind in dict.fromkeys([*kinds(a.matrices), *kinds(b.matrices)])))
    sizes = [(pair.name, ((pair.a or 0) / 1e6, (pair.b or 0) / 1e6)) for pair in _joined(a.sizes, b.sizes)]
    body = (
        f"<h1>{escape(title)}</h1>\n{sides}{notes}",
        section("Against the float model", "", tables["against the float model"], counts),
        section("Error of each matrix", "As stored.", drawn, tables["error of each matrix"]),
        section("Sizes", "", plots(bars("MB by kind and format", names, sizes)), tables["sizes, bytes"]),
        section("Time and memory", "", tables["seconds of each stage"], tables["memory, bytes"]),
    )
    return document(title, "".join(body))


def _rows(found: list[Pair]) -> Iterator[tuple[object, ...]]:
    return ((pair.name, pair.a, pair.b, pair.change) for pair in found)
