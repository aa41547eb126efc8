# SPDX-License-Identifier: Apache-2.0
"""The page of kernel figures is what the results give."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import kernels_page
import pytest
import roofline

ROOT = Path(__file__).parents[2]


def test_page_and_picture_are_what_the_results_give() -> None:
    """Otherwise: make page."""
    results = kernels_page.read()
    committed = (ROOT / "docs/kernels.md").read_text(encoding="utf-8")
    assert kernels_page.page(committed, results) == committed
    assert kernels_page.picture(results) == (ROOT / "docs/kernels.svg").read_text(encoding="utf-8")


def test_every_table_of_the_page_is_generated() -> None:
    committed = (ROOT / "docs/kernels.md").read_text(encoding="utf-8")
    assert all(f"<!-- {name} -->" in committed for name in kernels_page.TABLES)


def test_a_missed_target_says_why() -> None:
    results = {each.op: each for each in kernels_page.read()}
    wanted = kernels_page.wanted()
    missed = [each for each in wanted if not each.is_met(each.value(results[each.op]))]
    assert [each.case for each in missed if not each.why] == []
    assert len(missed) < len(wanted)


@pytest.mark.parametrize(
    ("by", "value", "is_met"),
    [
        ("us", 2.0, True),
        ("us", 2.1, False),
        ("ratio", 2.1, False),
        ("tflops", 2.1, True),
        ("of_copy", 1.9, False),
    ],
)
def test_times_are_bounds_from_above_and_rates_from_below(by: str, value: float, is_met: bool) -> None:
    assert kernels_page.Wanted("op", "case", by, 2.0).is_met(value) == is_met


def test_every_point_lies_in_the_picture_and_below_the_roofs() -> None:
    results = kernels_page.read()
    svg = ElementTree.fromstring(kernels_page.picture(results))
    marks = [node.get("transform", "") for node in svg.iter("{http://www.w3.org/2000/svg}path") if node.get("class")]
    places = [tuple(map(float, text[len("translate(") : -1].split())) for text in marks if text.startswith("trans")]
    assert len(places) > 100
    assert all(0 <= x <= roofline.WIDTH and 0 <= y <= roofline.HEIGHT for x, y in places)
    for each in results:
        for row in each.rows.values():
            bandwidth, peak = each.ceilings["copy_gb_per_s"] * 1e3, each.ceilings["matrix_tflop_per_s"] * 1e6
            assert row["bytes"] / row["us"] <= 1.25 * bandwidth, row  # reading alone is faster than a copy
            assert row["operations"] / row["us"] <= peak, row
