# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from xml.etree import ElementTree

import pytest

from orinkit_export.report import html


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0, "0"),
        (1234567, "1,234,567"),
        (0.25, "0.25"),
        (0.0191234, "0.01912"),
        (2.0, "2"),
        (1e-7, "1e-07"),
        ("<x>", "<x>"),
    ],
)
def test_a_cell(value: object, shown: str) -> None:
    assert html.cell(value) == shown


def test_a_table() -> None:
    made = html.table(("a & b", ""), [("x", 1000), ("<y>", None)])
    root = ElementTree.fromstring(made)
    assert [head.text for head in root.iter("th")] == ["a & b", None]
    assert [cell.text for cell in root.iter("td")] == ["x", "1,000", "<y>", "-"]
    assert html.table(("a",), []) == ""
    assert ElementTree.fromstring(html.table(("a",), [(1,)], "All")).findtext("summary") == "All"


def test_a_section_without_content_is_left_out() -> None:
    assert html.section("Folds", "Why.", "", "") == ""
    assert html.plots("", "") == ""
    assert html.section("A & B", "a < b", "<p>x</p>") == '<h2>A &amp; B</h2>\n<p class="soft">a &lt; b</p>\n<p>x</p>\n'


def test_a_document_has_its_style_inside_and_a_title() -> None:
    made = html.document("<demo>", html.tiles({"a": "1 > 0"}))
    assert made.startswith("<!doctype html>\n")
    assert "<title>&lt;demo&gt;</title>" in made
    assert "prefers-color-scheme: dark" in made
    assert '<div class="tile">a<b>1 &gt; 0</b></div>' in made
    assert 'name="viewport" content="width=device-width' in made
