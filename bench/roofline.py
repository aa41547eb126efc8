# SPDX-License-Identifier: Apache-2.0
"""A roofline as one SVG: operations per byte across, operations per second up, both logarithmic.

The roofs are the copy bandwidth and the matrix rate that were measured in the runs of the points. Each op has a mark
and a colour of its own. The file needs nothing beside it and follows the reader's light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 860, 520
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 64, 50
X_DECADES, Y_DECADES = (-1, 4), (-3, 3)
MARKS = {
    "circle": "M-4,0a4,4 0 1 0 8,0a4,4 0 1 0 -8,0z",
    "square": "M-3.6,-3.6h7.2v7.2h-7.2z",
    "diamond": "M0,-5L5,0L0,5L-5,0z",
    "triangle": "M0,-5L4.6,3.6H-4.6z",
    "cross": "M-4,-2L-2,-4L0,-2L2,-4L4,-2L2,0L4,2L2,4L0,2L-2,4L-4,2L-2,0z",
}
STYLE = """\
svg{font:13px system-ui,sans-serif;background:#fff}
text{fill:#333}.grid{stroke:#e4e4e4}.roof{stroke:#333;stroke-width:2;fill:none}.ground{fill:#fff}
.s0{fill:#2563b0}.s1{fill:#c2410c}.s2{fill:#15803d}.s3{fill:#7e22ce}.s4{fill:#a16207}
path.mark{fill-opacity:.75}.end{text-anchor:end}.middle{text-anchor:middle}
@media(prefers-color-scheme:dark){svg{background:#16181c}.ground{fill:#16181c}text{fill:#d8d8d8}
.grid{stroke:#33363c}.roof{stroke:#d8d8d8}
.s0{fill:#7ab3f5}.s1{fill:#fb923c}.s2{fill:#5fd38a}.s3{fill:#c79bf2}.s4{fill:#e5c04b}}
"""


@dataclass(frozen=True)
class Point:
    """A launch: what it is, operations per byte, operations per second."""

    name: str
    intensity: float
    rate: float


def draw(series: Mapping[str, Sequence[Point]], bandwidth: float, peak: float, title: str) -> str:
    """The picture. bandwidth: bytes per second; peak: operations per second."""
    body = [_grid(), _roofs(bandwidth, peak)]
    for index, (name, points) in enumerate(series.items()):
        body += [_marks(index, points), _key(index, name)]
    ground = f'<rect class="ground" width="{WIDTH}" height="{HEIGHT}"/>'
    head = f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>'
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">\n'
        f"<style>\n{STYLE}</style>\n{ground}\n{head}\n" + "\n".join(body) + "\n</svg>\n"
    )


def _x(intensity: float) -> float:
    low, high = X_DECADES
    return LEFT + (math.log10(intensity) - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _y(rate: float) -> float:
    """`rate` in operations per second; the axis counts 10^12."""
    low, high = Y_DECADES
    return HEIGHT - BOTTOM - (math.log10(rate / 1e12) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def _grid() -> str:
    parts = []
    for decade in range(X_DECADES[0], X_DECADES[1] + 1):
        x = _x(10.0**decade)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="middle" x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}">{10.0**decade:g}</text>')
    for decade in range(Y_DECADES[0], Y_DECADES[1] + 1):
        y = _y(10.0**decade * 1e12)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="end" x="{LEFT - 6}" y="{y + 4:.1f}">{10.0**decade:g}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text class="middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}">operations per byte</text>')
    parts.append(f'<text class="middle" transform="translate(18 {middle}) rotate(-90)">TFLOP/s</text>')
    return "\n".join(parts)


def _roofs(bandwidth: float, peak: float) -> str:
    """The slope up to the ridge, then the flat."""
    left, ridge = 10.0 ** Y_DECADES[0] * 1e12 / bandwidth, peak / bandwidth
    left = max(left, 10.0 ** X_DECADES[0])
    places = ((left, left * bandwidth), (ridge, peak), (10.0 ** X_DECADES[1], peak))
    path = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in places)
    at = math.sqrt(left * ridge)
    angle = -math.degrees(math.atan2(_y(peak / 10) - _y(peak), _x(10.0) - _x(1.0)))
    slope = f'transform="translate({_x(at) - 4:.1f} {_y(at * bandwidth) - 8:.1f}) rotate({angle:.1f})"'
    flat = f'x="{WIDTH - RIGHT - 4}" y="{_y(peak) - 7:.1f}"'
    return (
        f'<polyline class="roof" points="{path}"/>\n'
        f'<text class="middle" {slope}>device copy {bandwidth / 1e12:.2f} TB/s</text>\n'
        f'<text class="end" {flat}>matrix product {peak / 1e12:.0f} TFLOP/s</text>'
    )


def _marks(index: int, points: Iterable[Point]) -> str:
    path = list(MARKS.values())[index]
    return "\n".join(
        f'<path class="mark s{index}" d="{path}" transform="translate({_x(point.intensity):.1f} {_y(point.rate):.1f})">'
        f"<title>{escape(point.name)}: {point.rate / 1e12:.3g} TFLOP/s</title></path>"
        for point in points
    )


def _key(index: int, name: str) -> str:
    x, path = LEFT + 130 * index, list(MARKS.values())[index]
    return (
        f'<path class="s{index}" d="{path}" transform="translate({x + 6} 42)"/>'
        f'<text x="{x + 17}" y="46">{escape(name)}</text>'
    )
