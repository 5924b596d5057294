import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crt.report.figures import (
    HEIGHT,
    WIDTH,
    Axis,
    Difference,
    Estimate,
    Series,
    bars,
    difference_chart,
    line_chart,
)


def line_paths(svg: str) -> list[list[tuple[float, float]]]:
    root = ET.fromstring(svg)
    paths = [node.get("d") for node in root if node.get("class", "").startswith("line")]
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path)] for path in paths]


def test_lines_go_through_their_points():
    svg = line_chart("a", "t", "d", [Series("student", [0, 1, 2], [1.0, 0.5, 0.0])], "x", "y", y_top=1.0)
    (points,) = line_paths(svg)
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0, y1 - y0) == pytest.approx((x2 - x1, y2 - y1), abs=0.2)
    assert y0 == 12  # the top of the plot
    assert x0 < x1 < x2 <= WIDTH
    assert y2 < HEIGHT


def test_not_finite_values_leave_a_gap():
    svg = line_chart("a", "t", "d", [Series("student", [0, 1, 2, 3], [1, math.nan, 3, 4])], "x", "y")
    path = next(node for node in ET.fromstring(svg) if node.get("class") == "line student").get("d")
    assert path.count("M") == 2
    assert "nan" not in svg


@pytest.mark.parametrize(
    "series",
    [
        [],
        [Series("student", [], [])],
        [Series("student", [1], [2.0])],
        [Series("teacher", [0, 1], [0.0, 0.0])],
    ],
)
def test_charts_of_little(series):
    ET.fromstring(line_chart("a", "t", "d", series, "x", "y"))


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_within(low, length):
    high = low + length
    if high - low < 1e-9 * max(abs(low), abs(high)):
        return
    axis = Axis(low, high, 0, 100)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 6
    slack = 1e-6 * length
    assert all(low - slack <= tick <= high + slack for tick in ticks)


def test_tick_labels():
    assert [Axis(0, 1, 0, 1, "%").text(t) for t in (0, 0.2, 1.0)] == ["0 %", "20 %", "100 %"]
    assert Axis(-1, 1, 0, 1).text(-0.5) == "−0.5"
    assert Axis(-0.1, 0.1, 0, 1, "points").text(-0.05) == "−5"


def test_texts_are_escaped():
    evil = "</svg><script>alert(1)</script>"
    for svg in (
        line_chart("a", evil, evil, [], evil, evil),
        difference_chart("a", evil, evil, [Difference(evil, 0, -0.1, 0.1, None)]),
        bars([1, 2], '"' + evil),
    ):
        assert "<script" not in svg
        ET.fromstring(svg)


def test_marks_show_their_intervals():
    marks = [Estimate(0.5, 0.5, 0.25, 0.75)]
    svg = line_chart("a", "t", "d", [Series("student", [0, 1], [1, 0], marks)], "x", "y", y_top=1.0)
    root = ET.fromstring(svg)
    circle = next(node for node in root if node.get("class") == "mark student")
    whisker = next(node for node in root if node.get("class") == "whisker student").get("d")
    low, high = map(float, re.fullmatch(r"M[\d.]+ ([\d.]+)V([\d.]+)", whisker).groups())
    assert (low + high) / 2 == pytest.approx(float(circle.get("cy")), abs=0.1)
    assert low > high  # downwards in SVG


def test_difference_chart_places_margin_and_zero():
    rows = [Difference("at 0.0", 0.01, -0.01, 0.03, 0.02), Difference("at 0.5", -0.05, -0.08, -0.02, None)]
    root = ET.fromstring(difference_chart("a", "t", "d", rows))
    margins = [node for node in root if node.get("class") == "margin"]
    dots = [float(node.get("cx")) for node in root if node.get("class") == "mark student"]
    assert len(margins) == 1
    at = float(re.match(r"M([\d.]+)", margins[0].get("d")).group(1))
    assert dots[1] < at < dots[0]
    # 0.01 and -0.05 are 0.06 apart, the margin 0.03 from the first.
    assert (dots[0] - at) / (dots[0] - dots[1]) == pytest.approx(0.5, abs=0.01)


def test_bars_are_proportional():
    heights = [float(node.get("height")) for node in ET.fromstring(bars([0, 5, 10], "d"))]
    assert heights == pytest.approx([0, 11, 22])
    ET.fromstring(bars([], "d"))
    assert [float(node.get("height")) for node in ET.fromstring(bars([0], "d"))] == [0]


def test_whole_numbers_get_no_ticks_between_them():
    svg = line_chart("a", "t", "d", [Series("student", [1, 2], [1.0, 2.0])], "epoch", "y")
    ticks = [
        node.text
        for node in ET.fromstring(svg)
        if node.get("text-anchor") == "middle" and node.get("y") == "291"
    ]
    assert ticks == ["1", "2"]


def test_the_axis_reaches_all_marks():
    svg = line_chart(
        "a", "t", "d", [Series("student", [0, 0.4], [1, 0], [Estimate(0.75, 0, 0, 0.1)])], "x", "y", 1.0
    )
    circle = next(node for node in ET.fromstring(svg) if node.tag == "circle")
    assert float(circle.get("cx")) <= WIDTH - 14
