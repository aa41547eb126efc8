# SPDX-License-Identifier: Apache-2.0
"""Parts of a page that needs nothing from outside, for a wide screen and for a phone, in light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("style.css")


def document(title: str, body: str) -> str:
    """A whole file."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def section(title: str, explanation: str, *content: str) -> str:
    """A heading, an explanation and what follows; nothing where nothing follows."""
    sentence = f'<p class="soft">{escape(explanation)}</p>\n' if explanation else ""
    return f"<h2>{escape(title)}</h2>\n{sentence}{''.join(content)}\n" if any(content) else ""


def plots(*figures: str) -> str:
    """Figures side by side where there is room."""
    shown = "".join(figures)
    return f'<div class="plots">{shown}</div>\n' if shown else ""


def tiles(values: dict[str, str]) -> str:
    """A few numbers that one wants to see first."""
    shown = "".join(f'<div class="tile">{escape(name)}<b>{escape(value)}</b></div>' for name, value in values.items())
    return f'<div class="tiles">{shown}</div>\n'


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> str:
    """A table, folded away under `title` if there is one; nothing without rows."""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell(value))}</td>' for value in row)}</tr>\n" for row in rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    made = f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n'
    if not body:
        return ""
    return made if title is None else f"<details><summary>{escape(title)}</summary>{made}</details>\n"


def cell(value: object) -> str:
    """A value as text: numbers as `number` writes them, None as a dash."""
    if value is None:
        return "-"
    return number(value) if isinstance(value, (int, float)) else str(value)


def number(value: float) -> str:
    """Whole numbers by thousands, others with four digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
