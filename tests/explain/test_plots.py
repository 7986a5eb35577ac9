"""Plots as SVG and as pictures, and pictures of many pictures."""

import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import resvg_py
from PIL import Image

from inkwash.explain.drawing import PAPER, Drawing, as_svg, write_plots
from inkwash.explain.plots import Point, bars, curves, histogram, scatter, ticks
from inkwash.explain.tiles import contact_sheet, labelled_sheet

POINTS = [Point(0, 1, "a", 0.5, 1.5), Point(1, 3, "b", 2, 4), Point(3, 2, "c", 1.8, 2.5)]
PLOTS = {
    "scatter": scatter(POINTS, "x", "y"),
    "histogram": histogram([0.0, 0.1, 0.1, 0.7, 0.9, 0.9, 0.9], "x", bins=4),
    "bars": bars({"IN00": 0.5, "M00": -0.25, "OUT00": 1.0}, "alpha"),
    "curves": curves(
        {"error": [(0, 3.0), (5, 1.0), (9, 0.5)], "validation": [(0, 2.0), (9, 1)]}, "step", "t"
    ),
}


def rendered(svg: str) -> np.ndarray:
    """A picture by resvg, (H, W, 3) in float."""
    return np.asarray(Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg))).convert("RGB")).astype(
        float
    )


@pytest.mark.parametrize("name", PLOTS)
def test_a_plots_picture_is_its_svg_as_resvg_draws_it(name: str) -> None:
    shapes = Drawing(PLOTS[name].size)
    shapes.shapes = PLOTS[name].shapes  # what letters look like depends on the fonts that are there
    ours, theirs = np.asarray(shapes.image()).astype(float), rendered(as_svg([shapes]))
    difference = np.abs(ours - theirs)
    assert difference.mean() < 0.6 and (difference.max(-1) > 100).mean() < 0.002
    blank = np.abs(theirs - np.asarray(Image.new("RGB", shapes.size, PAPER)).astype(float))
    assert blank.mean() > 3 * difference.mean()


@pytest.mark.parametrize("name", PLOTS)
def test_every_text_is_in_the_picture_and_in_the_svg(name: str) -> None:
    plot = PLOTS[name]
    texts = [text for text in plot.texts if text.text]
    root = ElementTree.fromstring(plot.svg())
    assert [found.text for found in root.findall("text") if found.text] == [text.text for text in texts]
    whole = np.asarray(plot.image()).astype(int)
    without = Drawing(plot.size)
    without.shapes = plot.shapes
    changed = np.abs(whole - np.asarray(without.image()).astype(int)).sum(-1) > 60
    for text in texts:
        x, y = round(text.x), round(text.y)
        near = (
            changed[max(y - 80, 0) : y + 80, max(x - 13, 0) : x + 2]
            if text.turned
            else changed[max(y - 13, 0) : y + 2, max(x - 80, 0) : x + 80]
        )
        assert near.any(), text


def test_plots_are_written_by_the_files_ending(tmp_path: Path) -> None:
    two = [PLOTS["scatter"], PLOTS["bars"]]
    write_plots(two, tmp_path / "plots.PNG", across=2)
    write_plots(two, tmp_path / "plots.svg")
    image, (width, height) = Image.open(tmp_path / "plots.PNG"), two[0].size
    assert image.format == "PNG" and image.size == (2 * width, height)
    assert image.crop((width, 0, 2 * width, height)).tobytes() == two[1].image().tobytes()
    root = ElementTree.parse(tmp_path / "plots.svg").getroot()
    assert (root.get("width"), root.get("height")) == (str(width), str(2 * height))
    assert [child.get("y") for child in root] == ["0", str(height)]


def test_a_contact_sheet_holds_every_picture() -> None:
    images = [Image.new("RGB", (20, 10), (40 * k, 0, 0)) for k in range(5)]
    sheet = contact_sheet(images, columns=3)
    assert sheet.size == (2 + 3 * 22, 2 + 2 * 12)
    places = [(2 + k % 3 * 22, 2 + k // 3 * 12) for k in range(5)]
    found = [sheet.crop((x, y, x + 20, y + 10)).tobytes() for x, y in places]
    assert found == [image.tobytes() for image in images]


@pytest.mark.parametrize(
    ("size", "side", "shown"), [((300, 200), 144, (144, 96)), ((32, 16), None, (160, 80))]
)
def test_labelled_pictures_fit_their_tiles(
    size: tuple[int, int], side: int | None, shown: tuple[int, int]
) -> None:
    sheet = labelled_sheet([Image.new("RGB", size, "blue")] * 3, ["a", "b" * 200, ""], "title", 2, side)
    blue = (np.asarray(sheet) == (0, 0, 255)).all(-1)
    columns, rows = np.flatnonzero(blue.any(0)), np.flatnonzero(blue.any(1))
    assert len(columns) == 2 * shown[0] and len(rows) == 2 * shown[1]


def test_points_lie_where_their_values_are() -> None:
    svg = ElementTree.fromstring(scatter([Point(0, 0), Point(1, 10), Point(2, 20)], "x", "y").svg())
    spots = [(float(c.get("cx") or 0), float(c.get("cy") or 0)) for c in svg.findall("circle")]
    assert spots[1][0] - spots[0][0] == pytest.approx(spots[2][0] - spots[1][0], abs=0.2)
    assert spots[0][1] - spots[1][1] == pytest.approx(spots[1][1] - spots[2][1], abs=0.2)
    assert spots[0][1] > spots[2][1] and spots[0][0] < spots[2][0]


def test_bars_are_as_high_as_there_are_values() -> None:
    svg = ElementTree.fromstring(histogram([0.0] * 3 + [1.0] * 6 + [0.5], "x", bins=3).svg())
    heights = [float(bar.get("height") or 0) for bar in svg.findall("rect")[1:]]
    assert heights[0] == pytest.approx(3 * heights[1], rel=0.02) and heights[2] == pytest.approx(
        6 * heights[1], rel=0.02
    )


@pytest.mark.parametrize(
    ("ends", "expected"), [((0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]), ((-3, 4), [-2, 0, 2, 4])]
)
def test_ticks_are_round(ends: tuple[float, float], expected: list[float]) -> None:
    assert ticks(*ends) == pytest.approx(expected)
