# SPDX-License-Identifier: Apache-2.0
"""`report.html`: what stands in a report, drawn where it can be, and every number of it in a table."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

import yaml

from orinkit import config
from orinkit.errors import BundleError
from orinkit_export import evaluate
from orinkit_export.disk import writing
from orinkit_export.findings import OUTLIER
from orinkit_export.report.data import HTML, JSON, Matrix, Report, encode
from orinkit_export.report.html import document, number, plots, section, table, tiles
from orinkit_export.report.svg import Series, bars, columns, lines

POINTS = {"norm1": "into the mixer", "mixer": "out of the mixer", "norm2": "into the MLP", "inner": "inside the MLP"}
"""Where channels are scaled and inputs measured, in words."""

QUALITY = {
    "perplexity_float": "perplexity of the float model",
    "perplexity": "perplexity of the export",
    "perplexity_increase": "increase, per cent",
    "kl_mean": "KL divergence, mean, nats",
    "kl_p99": "KL divergence, 99th percentile, nats",
    "top1": "same best token, share",
    "positions": "positions compared",
}
AGREEMENT = {
    "kl_mean": "KL divergence, mean, nats",
    "kl_max": "KL divergence, largest, nats",
    "top1": "same best token, share",
    "largest_activation": "largest activation between ops (float16 ends at 65,504)",
    "positions": "positions compared",
}
INPUTS = {"largest": "largest value", "channel_mean": "mean of its channel", "typical": "mean of the median channel"}


def write(report: Report, folder: Path) -> None:
    """Write both files of a report to `folder`. Raises ResourceError."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in ((JSON, encode(report)), (HTML, page(report))):
            part = folder / _part(name)
            part.write_text(text, encoding="utf-8")
            part.replace(folder / name)


def check(folder: Path) -> None:
    """The files of a report are replaced, so nothing else may lie there. Raises BundleError."""
    if not folder.exists():
        return
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if others := found - {JSON, HTML, _part(JSON), _part(HTML)}:
        raise BundleError(
            f"{folder}: expected a report, an empty folder or nothing, found {min(others)!r}; choose another output"
        )


def _part(name: str) -> str:
    return f".{name}.part"


def page(report: Report) -> str:
    """The whole file."""
    recipe = yaml.safe_dump(config.dump(report.recipe), sort_keys=False)
    sections = (_gate, _choices, _errors, _folds, _inputs, _sizes, _costs)
    body = _head(report) + "".join(make(report) for make in sections)
    return document(
        f"{report.name}: what the export lost", body + section("Recipe", "", f"<pre>{escape(recipe)}</pre>")
    )


def verdict(report: Report) -> str:
    """Whether the export is within its bounds."""
    if not report.missed:
        return '<p class="verdict good">Within its bounds.</p>\n'
    missed = escape("; ".join(map(str, report.missed)))
    return f'<p class="verdict bad">{"Accepted all the same" if report.accepted else "Refused"}: {missed}</p>\n'


def _head(report: Report) -> str:
    model, quantise = report.model, report.recipe.quantise
    facts = (
        f"{model.architecture}, {number(model.parameters)} weights, {model.layers} layers",
        f"hidden {number(model.hidden)}, vocabulary {number(model.vocab)}",
        f"method {quantise.method}, groups of {quantise.group_size}, target {report.target}, {report.tool}",
    )
    first = {
        "KL divergence, mean": number(report.quality.kl_mean),
        "perplexity": f"{report.quality.perplexity_increase:+.2f} %",
        "same best token": f"{100 * report.quality.top1:.1f} %",
        "weights": f"{report.data_bytes / 1e6:.4g} MB",
        "bits per weight": f"{report.bits_per_weight:.3f}",
    }
    told = "".join(f'<p class="soft">{escape(line)}</p>\n' for line in facts)
    return f"<h1>{escape(report.name)}</h1>\n{told}{verdict(report)}{tiles(first)}"


def _gate(report: Report) -> str:
    quality = report.quality
    heads = ("bound", "measured", "allowed", "passed")
    bounds = table(heads, [(c.name, c.value, c.bound, "yes" if c.passed else "no") for c in report.checks])
    used = [(check.name, (check.used,)) for check in report.checks]
    shares = [[f"{100 * check.used:.0f} %"] for check in report.checks]
    marks = (("mean", quality.kl_mean), ("99 %", quality.kl_p99))
    drawn = plots(
        bars("How much of what is allowed is used up", (), used, shares, limit=1.0),
        histogram({"positions": quality.histogram}, marks),
    )
    numbers = table(("against the float model", ""), [(text, getattr(quality, key)) for key, text in QUALITY.items()])
    bins = table(("nats", "positions"), zip(_bins(), quality.histogram, strict=True), "Positions by KL divergence")
    graph = [(AGREEMENT.get(key, key), value) for key, value in report.agreement.items()]
    explanation = "The export and its float model, on the evaluation text."
    if report.recipe.quantise.method == "import":
        explanation += (
            " The float model is what the checkpoint's own integers stand for, so these numbers say what the import "
            "lost, not what the checkpoint had lost before against the model that it was made of."
        )
    return section("Against the float model", explanation, bounds, drawn, numbers, bins) + section(
        "The graph against its reference", "", table(("on the golden prompts", ""), graph)
    )


def histogram(counts: dict[str, tuple[int, ...]], marks: tuple[tuple[str, float], ...] = ()) -> str:
    """Positions by their KL divergence, of one export or several."""
    edges, series = evaluate.EDGES.tolist(), list(counts.items())
    return columns("Positions by KL divergence", edges, series, marks=marks, x_name="nats", y_name="positions")


def _bins() -> list[str]:
    edges = [f"{edge:.3g}" for edge in evaluate.EDGES]
    between = [f"{low} to {high}" for low, high in itertools.pairwise(edges)]
    return [f"below {edges[0]}", *between, f"from {edges[-1]} on"]


def errors(kind: str, series: Mapping[str, tuple[Iterable[Matrix], str]]) -> str:
    """Errors of one kind of matrix by layer; each series is some matrices and which of their errors."""
    lists = [Series(name, _by_layer(matrices, kind, which)) for name, (matrices, which) in series.items()]
    return lines(kind, lists, x_name="layer", y_name="error")


def _by_layer(matrices: Iterable[Matrix], kind: str, which: str) -> tuple[tuple[float, float], ...]:
    chosen = ((matrix.layer, getattr(matrix, which)) for matrix in matrices if matrix.kind == kind)
    return tuple((layer, value) for layer, value in chosen if layer is not None and value is not None)


def kinds(matrices: Iterable[Matrix]) -> list[str]:
    """Kinds of the layers' matrices, in the order stored."""
    return list(dict.fromkeys(matrix.kind for matrix in matrices if matrix.layer is not None))


def _errors(report: Report) -> str:
    of, explanation = report.matrices, "Not measured: this method looks at no text."
    drawn = plots(*(errors(kind, {"before": (of, "before"), "after": (of, "after")}) for kind in kinds(of)))
    if drawn:
        explanation = (
            "Share of the power of a matrix' outputs that rounding loses, on the calibration text. Before: scales of "
            "absmax / 7 and the nearest integers. After: as stored."
        )
    rows = [(m.name, m.format, m.before, m.after, m.weights, m.bytes, 8 * m.bytes / m.weights) for m in of]
    heads = ("matrix", "format", "before", "after", "weights", "bytes", "bits per weight")
    return section("Error of each matrix", explanation, drawn, table(heads, rows, "All matrices"))


def _choices(report: Report) -> str:
    found = report.choices
    if not found:
        return ""
    rows = [(c.name, c.format, c.bits, c.error, c.kl, c.narrow, c.kl_narrow) for c in found]
    heads = ("matrix", "format", "bits per weight", "error", "KL divergence", "narrowest", "its KL divergence")
    explanation = (
        "What the recipe left to a measurement. KL divergence in nats of the float model with only this matrix "
        "rounded, to the nearest, from the float model, on calibration text: measured for the narrowest format, and "
        "for others in proportion to the errors of its outputs."
    )
    return section("Formats that were chosen", explanation, table(heads, rows, "All choices"))


def _folds(report: Report) -> str:
    found = report.folds
    series = [
        Series(text, tuple((fold.layer, fold.ratio) for fold in found if fold.point == place))
        for place, text in POINTS.items()
    ]
    drawn = plots(lines("Error with the fold over error without", series, x_name="layer", y_name="ratio"))
    rows = [(f.layer, POINTS.get(f.point, f.point), f.kind, f.alpha, f.ratio, f.spread) for f in found]
    heads = ("layer", "where", "kind", "alpha", "ratio", "largest / smallest")
    explanation = "Channels are scaled before rounding and scaled back in what produces them. 1: nothing was gained."
    return section("Folds", explanation, drawn, table(heads, rows, "All folds"))


def _inputs(report: Report) -> str:
    found = report.inputs
    figures = []
    for place, text in POINTS.items():
        here = [entry for entry in found if entry.point == place]
        series = [Series(name, tuple((i.layer, getattr(i, key)) for i in here)) for key, name in INPUTS.items()]
        figures.append(lines(text, series, x_name="layer", y_name="magnitude", log=True))
    rows = [
        (i.layer, POINTS.get(i.point, i.point), i.largest, i.channel, i.channel_mean, i.typical, i.outliers)
        for i in found
    ]
    heads = ("layer", "where", "largest", "in channel", "its mean", "typical", "outliers")
    explanation = (
        "Magnitudes of the inputs of the matrices, on the calibration text. An outlier is a channel with more than "
        f"{OUTLIER} times the mean magnitude of the median channel."
    )
    return section("Activations", explanation, plots(*figures), table(heads, rows, "All inputs"))


def _sizes(report: Report) -> str:
    rows = [(kind, (size / 1e6,)) for kind, size in report.sizes.items()]
    total = f"{number(report.data_bytes)} bytes, {report.bits_per_weight:.4g} bits per weight."
    return section("Sizes", total, plots(bars("MB by kind and format", (), rows)))


def _costs(report: Report) -> str:
    found = report.stages
    drawn = plots(
        bars("Seconds", (), [(name, (cost.seconds,)) for name, cost in found.items()]),
        bars("Most memory so far, GB", (), [(name, (cost.peak_bytes / 1e9,)) for name, cost in found.items()]),
    )
    rows = [(name, cost.seconds, cost.peak_bytes) for name, cost in found.items()]
    explanation = "Of the run that completed each stage. Memory is the most that the process had held until then."
    return section("Time and memory", explanation, drawn, table(("stage", "seconds", "peak bytes"), rows, "All stages"))
