"""Pages say what was found, and need no other file."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from inkwash.metrics.estimates import Estimate
from inkwash.metrics.figures import Figures
from inkwash.metrics.plots import Point, histogram, scatter, ticks
from inkwash.metrics.report import Report, Run, Sheet, as_html, as_json, as_text, plots


@pytest.fixture
def report(tmp_path: Path) -> Report:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    runs = [
        Run(
            f"cfg_scale {scale}",
            Figures(
                {
                    "frechet_distance": Estimate(10.0 - scale, 1.0, 12.0),
                    "clip_score": Estimate(20.0 + scale, 19.0, 30.0),
                    "precision": Estimate(0.5, 0.4, 0.6),
                    "recall": Estimate(0.25, 0.2, 0.3),
                },
                {"kid": "too few <pictures>"},
            ),
            100,
            scale,
        )
        for scale in (2.0, 5.0)
    ]
    sheet = Sheet("best", [("a <b> caption", [tmp_path / "a.png", tmp_path / "a.png"])])
    facts = {"model": "a <model>"}
    return Report("Title & more", facts, runs, {"clip_score": [1.0, 2.0, 2.5]}, [sheet], "cfg_scale")


def test_the_page_holds_everything_and_asks_for_nothing(report: Report) -> None:
    page = as_html(report)
    assert "Title &amp; more" in page and "a &lt;model&gt;" in page and "a &lt;b&gt; caption" in page
    assert page.count("data:image/jpeg;base64,") == 2 and page.count("<svg") == 4
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|<script|@import", page)
    assert "Not given: too few &lt;pictures&gt;" in page
    best = re.findall(r"<td class=best>(\S+)", page)
    assert best[:2] == ["5", "25"]  # the lower distance, the higher score


def test_plots_are_drawn_of_runs_that_differ_in_a_number(report: Report) -> None:
    titles = [title for title, _ in plots(report)]
    assert titles == [
        "frechet_distance and clip_score",
        "frechet_distance over cfg_scale",
        "precision and recall",
        "",
    ]
    assert [title for title, _ in plots(Report("one", {}, report.runs[:1]))] == []


def test_json_and_text_agree(report: Report) -> None:
    content = json.loads(json.dumps(as_json(report)))
    assert content["model"] == "a <model>" and content["runs"][1]["setting"] == 5.0
    assert content["runs"][0]["figures"]["precision"] == {"value": 0.5, "low": 0.4, "high": 0.6}
    assert "  precision                 0.5 (0.4 to 0.6)" in as_text(report).splitlines()
    assert as_text(report).count("not given: too few") == 1


def test_points_lie_where_their_values_are() -> None:
    svg = ElementTree.fromstring(scatter([Point(0, 0), Point(1, 10), Point(2, 20)], "x", "y"))
    spots = [(float(c.get("cx") or 0), float(c.get("cy") or 0)) for c in svg.findall("circle")]
    assert spots[1][0] - spots[0][0] == pytest.approx(spots[2][0] - spots[1][0], abs=0.2)
    assert spots[0][1] - spots[1][1] == pytest.approx(spots[1][1] - spots[2][1], abs=0.2)
    assert spots[0][1] > spots[2][1] and spots[0][0] < spots[2][0]


def test_bars_are_as_high_as_there_are_values() -> None:
    svg = ElementTree.fromstring(histogram([0.0] * 3 + [1.0] * 6 + [0.5], "x", bins=3))
    heights = [float(bar.get("height") or 0) for bar in svg.findall("rect")[1:]]
    assert heights[0] == pytest.approx(3 * heights[1], rel=0.02) and heights[2] == pytest.approx(
        6 * heights[1], rel=0.02
    )


@pytest.mark.parametrize(
    ("ends", "expected"), [((0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]), ((-3, 4), [-2, 0, 2, 4])]
)
def test_ticks_are_round(ends: tuple[float, float], expected: list[float]) -> None:
    assert ticks(*ends) == pytest.approx(expected)
