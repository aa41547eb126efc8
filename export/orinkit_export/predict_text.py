# SPDX-License-Identifier: Apache-2.0
"""A prediction for people: tables on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orinkit_export.predict import Prediction


@dataclass(frozen=True)
class Section:
    """A table: its title, its columns (the first one of words, the others of numbers and remarks) and its rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sections(found: Prediction) -> Iterator[Section]:
    """Memory, decode and prefill; those without rows are left out."""
    items = [
        (item.name, f"{item.nbytes / 1e6:,.1f}", item.detail + (" (estimate)" if item.is_estimate else ""))
        for item in found.memory.items
    ]
    total = ("total", f"{found.memory.total() / 1e6:,.1f}", f"engine {found.memory.engine}")
    yield Section("memory", ("what", "MB", ""), (*items, total))
    decode = [
        (
            f"{step.batch} x depth {step.depth}",
            f"{step.tokens_per_second:,.1f}",
            f"{step.seconds * 1e3:.2f}",
            f"{step.nbytes / 1e6:,.1f}",
            f"{step.launches}",
        )
        for step in found.decode
    ]
    if decode:
        yield Section("decode", ("sequences", "tokens/s", "ms a step", "MB read", "launches"), tuple(decode))
    prefill = [
        (f"{step.tokens} tokens", f"{step.tokens_per_second:,.0f}", f"{step.seconds * 1e3:,.1f}")
        for step in found.prefill
    ]
    if prefill:
        yield Section("prefill", ("prompt", "tokens/s", "ms"), tuple(prefill))


def verdict(found: Prediction) -> Iterator[str]:
    """Whether it fits, what to change if not, and what the numbers rest on."""
    source = "the checkpoint's weights" if found.is_exact else "config.json alone"
    yield f"sizes are from {source}; nothing was built"
    if found.fit is None:
        yield f"{found.target} does not say how much memory there is: whether it fits is not known"
    else:
        fit = found.fit
        yield (
            f"needs {fit.need / 1e9:.2f} GB of {fit.have / 1e9:.2f} GB: Linux sees {fit.visible / 1e9:.2f} GB, holds "
            f"{fit.system / 1e9:.2f} GB itself, and {fit.reserve / 1e9:.2f} GB stay free"
        )
        left = f"{abs(fit.spare) / 1e9:.2f} GB"
        yield f"fits, {left} to spare" if found.fits else f"does not fit, {left} are missing; change in the recipe:"
    for change in found.changes:
        yield f"  {change.text} saves {change.saves / 1e9:.2f} GB{' and fits' if change.fits else ''}"
    for assumption in found.assumptions:
        yield f"assumed, not measured on a board: {assumption}"


def plain(found: Prediction) -> Iterator[str]:
    """All of it in lines that a program can cut at the colon."""
    for section in sections(found):
        for row in section.rows:
            named = zip(section.columns[1:], row[1:], strict=True)
            yield f"{section.title}: {row[0]}: {', '.join(f'{value} {column}'.strip() for column, value in named)}"
    yield from verdict(found)


def show(found: Prediction) -> None:
    """Write the tables to the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(Text(f"{found.recipe} on {found.target}", style="bold"))
    for section in sections(found):
        table = Table(title=section.title, title_justify="left", box=None, padding=(0, 2), title_style="bold")
        for index, column in enumerate(section.columns):
            table.add_column(column, justify="right" if index and column else "left")
        for row in section.rows:
            table.add_row(*map(Text, row))
        console.print(table)
    for line in verdict(found):
        console.print(Text(line))
