# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from orinkit.recipe import Bounds
from orinkit_export.report.data import HTML, JSON, Report, encode
from orinkit_export.report.html import number
from orinkit_export.report.page import page, write

VOID = {"meta"}
PHONE = 390
MEASURE = f"""<style>html {{ width: {PHONE}px }}</style><script>
const inside = e => e.closest(".scroll, pre, svg, details");
const wide = [...document.body.querySelectorAll("*")]
  .filter(e => !inside(e) && e.getBoundingClientRect().right > {PHONE} + 1).map(e => e.tagName);
const drawn = [...document.querySelectorAll("svg")].map(e => e.getBoundingClientRect().height);
const dark = getComputedStyle(document.body).backgroundColor;
document.title = JSON.stringify({{wide, least: Math.min(...drawn), figures: drawn.length, dark}});
</script>"""


class Read(HTMLParser):
    """The texts and attributes of a page; every element is closed, in the right order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def leaves(data: Any) -> Iterator[Any]:
    """Numbers and texts of parsed JSON."""
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        for value in data:
            yield from leaves(value)
    elif data is not None and not isinstance(data, bool):
        yield data


@pytest.fixture(scope="module")
def content(report: Report) -> str:
    return page(report)


def test_every_number_of_the_json_is_shown(report: Report, content: str) -> None:
    told = json.loads(encode(report))
    del told["format"], told["compared_with"]
    recipe = told.pop("recipe")
    shown = " ".join(Read(content).texts)
    words = set(re.split(r"[\s:;]+", shown))
    assert [value for value in leaves(told) if isinstance(value, (int, float)) and number(value) not in words] == []
    texts = [
        value for value in leaves(told) if isinstance(value, str) and value not in ("norm1", "norm2", "mixer", "inner")
    ]
    assert [value for value in texts if value not in shown] == []
    assert [value for value in leaves(recipe) if str(value) not in shown and repr(value)[1:-1] not in shown] == []


def test_a_page_needs_nothing_from_outside(content: str) -> None:
    read = Read(content)
    assert not read.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "use", "image"}
    assert not {name for name, _ in read.attributes} & {"src", "href", "xlink:href", "srcset", "data", "style"}
    assert not {name for name, _ in read.attributes if name.startswith("on")}
    assert re.findall(r"https?:|//\w|url\(|@import|data:", content) == []


def test_every_drawing_is_well_formed_and_has_a_name(content: str) -> None:
    drawings = [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", content, re.DOTALL)]
    captions = [drawing.attrib["aria-label"] for drawing in drawings]
    assert {"qkvz", "o", "gate_up", "down", "Seconds", "MB by kind and format", "Positions by KL divergence"} <= set(
        captions
    )
    assert len(set(captions)) == len(captions) > 12


def test_what_was_not_measured_is_left_out_or_said(report: Report) -> None:
    matrices = tuple(replace(matrix, before=None, after=None) for matrix in report.matrices)
    texts = Read(page(replace(report, matrices=matrices, folds=(), inputs=()))).texts
    assert "Not measured: this method looks at no text." in texts
    assert {"Folds", "Activations"} & set(texts) == set()


@pytest.mark.parametrize(
    ("bounds", "accepted", "verdict"),
    [
        (Bounds(1e6, 1e3, 0.0), False, "Within its bounds."),
        (Bounds(1e6, 0.0, 0.0), False, "Refused: kl_mean: expected at most 0, found "),
        (Bounds(1e6, 0.0, 0.0), True, "Accepted all the same: kl_mean: expected at most 0, found "),
    ],
)
def test_the_verdict(bounds: Bounds, accepted: bool, verdict: str, report: Report) -> None:
    texts = Read(page(replace(report, bounds=bounds, accepted=accepted))).texts
    assert any(text.startswith(verdict) for text in texts)


def test_what_comes_from_outside_is_escaped(report: Report) -> None:
    nasty = replace(report, name="<script>alert(1)</script>", tool='"><img src=x>', target="a & b")
    read = Read(page(nasty))
    assert not read.tags & {"script", "img"}
    assert "<script>alert(1)</script>" in read.texts


def test_both_files_are_written_and_others_stay(report: Report, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report/notes.txt").write_text("mine")
    for _ in range(2):
        write(report, tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {JSON, HTML, "notes.txt"}
    assert (tmp_path / "report" / HTML).read_text(encoding="utf-8") == page(report)
    assert (tmp_path / "report" / JSON).read_text(encoding="utf-8") == encode(report)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_fits_it_on_a_phone_in_light_and_dark(content: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(content.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    seen = []
    for scheme in (1, 0):
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        arguments = [
            *options,
            f"--blink-settings=preferredColorScheme={scheme}",
            "--dump-dom",
            f"file://{tmp_path}/page.html",
        ]
        done = subprocess.run(["chromium", *arguments], capture_output=True, text=True, check=True, timeout=120)
        title = re.search(r"<title>(.*?)</title>", done.stdout)
        assert title is not None
        seen.append(json.loads(title[1]))
    for measured in seen:
        assert measured["wide"] == []
        assert measured["figures"] > 12
        assert measured["least"] > 20
    assert [measured["dark"] for measured in seen] == ["rgb(255, 255, 255)", "rgb(18, 22, 28)"]
