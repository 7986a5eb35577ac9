"""Pages say what was found, and need no other file."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from inkwash.metrics.estimates import Estimate
from inkwash.metrics.figures import Figures
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
