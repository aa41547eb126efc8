# SPDX-License-Identifier: Apache-2.0
"""Plots as inline SVG: lines over layers, horizontal bars, columns of a histogram.

A plot is a <figure> with caption, legend and one <svg> of fixed coordinates that scales to its column. Colours are
classes of the page's style sheet (`s0`, `s1`, .. for series), so that they follow light and dark. No script.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from orinkit_export.report.html import number

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 62, 10, 18, 36
"""Margins of lines and columns, which hold the axes' labels."""

BAR, GAP, LABEL, VALUE = 13, 9, 116, 76
"""Height of a bar, space between two groups of bars, width of the labels before and the values behind."""

MAX_TICKS = 7


@dataclass(frozen=True)
class Series:
    """Points (x, y) under one name."""

    name: str
    points: tuple[tuple[float, float], ...]


def lines(caption: str, series: Sequence[Series], *, x_name: str, y_name: str, log: bool = False) -> str:
    """Lines with a marker at every point; `log` for a logarithmic y axis, on which values not above 0 are left out."""
    shown = [Series(each.name, tuple(p for p in each.points if not log or p[1] > 0)) for each in series]
    xs, ys = ([point[axis] for each in shown for point in each.points] for axis in (0, 1))
    if not xs:
        return ""
    x_axis, y_axis = _Axis.linear(min(xs), max(xs), whole=True), _Axis.of(ys, log)
    body = [_frame(x_axis, y_axis, x_name, y_name)]
    for index, each in enumerate(shown):
        places = [(_across(x_axis.part(x)), _up(y_axis.part(y))) for x, y in each.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in places)
        body.append(f'<g class="s{index}"><polyline points="{path}"/>{dots}</g>')
    return _figure(caption, [each.name for each in series], HEIGHT, "".join(body))


def columns(
    caption: str,
    edges: Sequence[float],
    series: Sequence[tuple[str, Sequence[int]]],
    *,
    marks: Sequence[tuple[str, float]] = (),
    x_name: str,
    y_name: str,
) -> str:
    """A histogram over logarithmic `edges`; counts have one bin more than there are edges between two of them: the
    first is below all edges, the last above. `marks` are named places on the x axis."""
    used = [index for _, counts in series for index, count in enumerate(counts) if count]
    first, last = (min(used), max(used)) if used else (0, 1)
    step = math.log10(edges[1] / edges[0])
    start = math.log10(edges[0]) - step
    x_axis = _Axis.decades(start + first * step, start + (last + 1) * step)
    y_axis = _Axis.linear(0, max((count for _, counts in series for count in counts), default=1) or 1)
    body = [_frame(x_axis, y_axis, x_name, y_name)]
    for index, (_, counts) in enumerate(series):
        width = (_across(1) - _across(0)) * step / (x_axis.high - x_axis.low) / len(series)
        for place in range(first, last + 1):
            x, y = _across(x_axis.part(10 ** (start + place * step))) + index * width, _up(y_axis.part(counts[place]))
            size = f'width="{max(width - 1, 0.5):.1f}" height="{_up(0) - y:.1f}"'
            body.append(f'<rect class="s{index}" x="{x:.1f}" y="{y:.1f}" {size}/>')
    for index, (name, value) in enumerate(marks):
        x = _across(x_axis.part(value))
        side = f'class="end" x="{x - 3:.1f}"' if index == 0 else f'x="{x + 3:.1f}"'
        body.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{_up(0)}"/>')
        body.append(f'<text {side} y="{TOP - 6}">{escape(name)}</text>')
    return _figure(caption, [name for name, _ in series], HEIGHT, "".join(body))


def bars(
    caption: str,
    names: Sequence[str],
    rows: Sequence[tuple[str, Sequence[float]]],
    shown: Sequence[Sequence[str]] | None = None,
    *,
    limit: float | None = None,
) -> str:
    """Horizontal bars from 0 on, a group per row with one bar for each of `names`. `shown` are the texts behind the
    bars; `limit` draws a line across all of them."""
    largest = max([value for _, values in rows for value in values] + [limit or 0]) or 1
    scale = (WIDTH - LABEL - VALUE) / largest
    group = BAR * max(1, len(names)) + GAP
    body = []
    for place, (label, values) in enumerate(rows):
        top = place * group + GAP / 2
        body.append(f'<text class="end" x="{LABEL - 6}" y="{top + (group - GAP) / 2 + 4:.1f}">{escape(label)}</text>')
        for index, value in enumerate(values):
            y, width = top + index * BAR, max(value * scale, 0.5)
            end = LABEL + max(width, (limit or 0) * scale) + 4
            text = shown[place][index] if shown else number(value)
            body.append(f'<rect class="s{index}" x="{LABEL}" y="{y:.1f}" width="{width:.1f}" height="{BAR - 2}"/>')
            body.append(f'<text x="{end:.1f}" y="{y + BAR - 3:.1f}">{escape(text)}</text>')
    height = len(rows) * group + GAP
    if limit is not None:
        x = LABEL + limit * scale
        body.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - GAP / 2}"/>')
    return _figure(caption, names, height, "".join(body))


@dataclass(frozen=True)
class _Axis:
    """An axis from `low` to `high`, which are exponents where it is logarithmic, with ticks (value, label)."""

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    @classmethod
    def of(cls, values: Sequence[float], log: bool) -> _Axis:
        if not log:
            return cls.linear(min(0.0, *values), max(values))
        return cls.decades(math.log10(min(values)), math.log10(max(values)))

    @classmethod
    def linear(cls, low: float, high: float, whole: bool = False) -> _Axis:
        high = high if high > low else low + 1
        step = 10.0 ** math.floor(math.log10((high - low) / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= MAX_TICKS - 1)
        step = max(step, 1.0) if whole else step
        places = [step * count for count in range(math.ceil(low / step), math.floor(high / step) + 1)]
        return cls(low, high, False, tuple((place, f"{place:.4g}") for place in places))

    @classmethod
    def decades(cls, low: float, high: float) -> _Axis:
        low, high = math.floor(low + 1e-9), max(math.ceil(high - 1e-9), math.floor(low + 1e-9) + 1)
        step = -(-(high - low) // (MAX_TICKS - 1))
        return cls(low, high, True, tuple((10.0**place, f"{10.0**place:g}") for place in range(low, high + 1, step)))

    def part(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        place = math.log10(value) if self.log else value
        return min(max((place - self.low) / (self.high - self.low), 0.0), 1.0)


def _across(part: float) -> float:
    return LEFT + part * (WIDTH - LEFT - RIGHT)


def _up(part: float) -> float:
    return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)


def _frame(x_axis: _Axis, y_axis: _Axis, x_name: str, y_name: str) -> str:
    """Ticks, grid lines and the axes' names."""
    base = _up(0)
    parts = []
    for value, label in y_axis.ticks:
        y = _up(y_axis.part(value))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="end" x="{LEFT - 5}" y="{y + 4:.1f}">{escape(label)}</text>')
    for value, label in x_axis.ticks:
        parts.append(
            f'<text class="middle" x="{_across(x_axis.part(value)):.1f}" y="{base + 14}">{escape(label)}</text>'
        )
    parts.append(f'<text class="middle name" x="{_across(0.5):.1f}" y="{HEIGHT - 5}">{escape(x_name)}</text>')
    parts.append(
        f'<text class="middle name" transform="translate(10 {_up(0.5):.1f}) rotate(-90)">{escape(y_name)}</text>'
    )
    return "".join(parts)


def _figure(caption: str, names: Sequence[str], height: float, body: str) -> str:
    keys = [f'<span class="key s{index}">{escape(name)}</span>' for index, name in enumerate(names)]
    legend = f'<div class="legend">{"".join(keys)}</div>' if len(keys) > 1 else ""
    drawing = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(caption)}">{body}</svg>'
    return f"<figure><figcaption>{escape(caption)}</figcaption>{legend}{drawing}</figure>"
