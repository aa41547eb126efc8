# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from xml.etree import ElementTree

import pytest

from orinkit_export.report import svg
from orinkit_export.report.svg import Series, bars, columns, lines


def drawing(figure: str) -> ElementTree.Element:
    """The <svg> of a figure, all of whose elements lie inside."""
    found = ElementTree.fromstring(figure).find("svg")
    assert found is not None
    _, _, width, height = map(float, found.attrib["viewBox"].split())
    for element in found.iter():
        for name, limit in (("x", width), ("cx", width), ("x1", width), ("x2", width), ("y", height), ("cy", height)):
            assert -1 <= float(element.get(name, 0)) <= limit + 1, ElementTree.tostring(element)
    return found


def texts(found: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in found.iter("text")]


def dots(found: ElementTree.Element, index: int) -> list[tuple[float, float]]:
    group = found.find(f"g[@class='s{index}']")
    assert group is not None
    return [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in group.iter("circle")]


def test_lines_lie_where_their_points_are() -> None:
    found = drawing(lines("error", [Series("a", ((0, 0), (1, 5), (2, 10)))], x_name="layer", y_name="share"))
    (x0, y0), (x1, y1), (x2, y2) = dots(found, 0)
    assert (x0, x2) == (svg.LEFT, svg.WIDTH - svg.RIGHT)
    assert (y0, y2) == (svg.HEIGHT - svg.BOTTOM, svg.TOP)
    assert (x1, y1) == pytest.approx(((x0 + x2) / 2, (y0 + y2) / 2), abs=0.1)
    assert texts(found) == ["0", "2", "4", "6", "8", "10", "0", "1", "2", "layer", "share"]


def test_a_logarithmic_axis_has_decades_and_leaves_out_what_is_not_above_0() -> None:
    series = [Series("a", ((0, 0.01), (1, 0.0), (2, 1.0))), Series("b", ((0, 0.1),))]
    found = drawing(lines("x", series, x_name="", y_name="", log=True))
    (_, low), (_, high) = dots(found, 0)
    ((_, middle),) = dots(found, 1)
    assert middle == pytest.approx((low + high) / 2)
    assert texts(found)[:3] == ["0.01", "0.1", "1"]


def test_series_are_told_apart_and_what_is_empty_is_not_drawn() -> None:
    series = [Series("<before>", ((0, 1),)), Series("after", ())]
    figure = lines("a & b", series, x_name="", y_name="")
    root = ElementTree.fromstring(figure)
    assert root.findtext("figcaption") == "a & b"
    assert [key.text for key in root.iter("span")] == ["<before>", "after"]
    assert drawing(figure).attrib["aria-label"] == "a & b"
    assert lines("x", [Series("a", ())], x_name="", y_name="") == ""
    assert 'class="legend"' not in lines("x", [Series("a", ((0, 1),))], x_name="", y_name="")


@pytest.mark.parametrize("values", [(3, 3), (0, 0), (-1, 1), (1e-9, 2e-9), (1e9, 5)], ids=str)
def test_any_range_has_a_few_ticks(values: tuple[float, float]) -> None:
    found = drawing(lines("x", [Series("a", tuple(enumerate(values)))], x_name="", y_name=""))
    ticks = [line for line in found.iter("line") if line.get("class") == "grid"]
    assert 2 <= len(ticks) <= svg.MAX_TICKS + 1


def test_columns_are_as_high_as_their_counts() -> None:
    edges = [1e-2, 1e-1, 1.0, 10.0]
    figure = columns("x", edges, [("a", (0, 4, 2, 0, 0))], marks=[("mean", 0.1), ("99 %", 1.0)], x_name="n", y_name="m")
    found = drawing(figure)
    first, second = found.iter("rect")
    assert float(first.attrib["height"]) == pytest.approx(2 * float(second.attrib["height"]), abs=0.1)
    (low, high) = [float(line.attrib["x1"]) for line in found.iter("line") if line.get("class") == "mark"]
    assert low == pytest.approx(float(second.attrib["x"]), abs=0.1)
    assert high == svg.WIDTH - svg.RIGHT
    assert {"mean", "99 %", "0.01", "0.1", "1", "4", "n", "m"} <= set(texts(found))


def test_columns_of_two_share_a_bin_and_the_open_bins_are_drawn() -> None:
    found = drawing(columns("x", [0.1, 1.0], [("a", (2, 0, 2)), ("b", (0, 2, 2))], x_name="", y_name=""))
    places = {
        kind: [float(r.attrib["x"]) for r in found.iter("rect") if r.get("class") == kind] for kind in ("s0", "s1")
    }
    assert len(places["s0"]) == len(places["s1"]) == 3
    assert all(a < b for a, b in zip(places["s0"], places["s1"], strict=True))
    drawing(columns("x", [0.1, 1.0], [("a", (0, 0, 0))], x_name="", y_name=""))


def test_bars_are_as_long_as_their_values() -> None:
    found = drawing(bars("x", ("a", "b"), [("one", (4.0, 2.0)), ("two", (0.0, 1.0))]))
    widths = [float(rect.attrib["width"]) for rect in found.iter("rect")]
    assert widths[:2] + widths[3:] == pytest.approx([4 * widths[3], 2 * widths[3], widths[3]], abs=0.2)
    assert widths[2] < 1
    assert texts(found) == ["one", "4", "2", "two", "0", "1"]


def test_bars_have_a_limit_and_texts_of_their_own() -> None:
    found = drawing(bars("x", (), [("one", (0.5,)), ("two", (1.5,))], [["50 %"], ["150 %"]], limit=1.0))
    first, second = found.iter("rect")
    (limit,) = found.iter("line")
    start = float(first.attrib["x"])
    assert float(limit.attrib["x1"]) - start == pytest.approx(2 * float(first.attrib["width"]), abs=0.2)
    assert float(second.attrib["width"]) == pytest.approx(3 * float(first.attrib["width"]), abs=0.2)
    assert texts(found) == ["one", "50 %", "two", "150 %"]
