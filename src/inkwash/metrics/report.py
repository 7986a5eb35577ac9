"""Report of an evaluation: as text, as JSON, and as a page in one file."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from inkwash.explain.drawing import GREY, GRID, INK, PAPER, SEAL, Drawing
from inkwash.explain.plots import Point, histogram, scatter
from inkwash.metrics.figures import LOWER_IS_BETTER, Figures
from inkwash.pipeline.images import open_picture

SHOWN = 12  # pictures of a sheet
THUMBNAIL = 160  # pixels
COLOURS = {"paper": PAPER, "ink": INK, "grey": GREY, "grid": GRID, "seal": SEAL}


@dataclass(frozen=True)
class Run:
    """The figures of one setting. setting: its value, where runs differ in a number."""

    label: str
    figures: Figures
    pictures: int
    setting: float | None = None


@dataclass(frozen=True)
class Sheet:
    """Some of the pictures, each with others that belong to it, and a line about them."""

    title: str
    rows: Sequence[tuple[str, Sequence[Path]]]


@dataclass(frozen=True)
class Report:
    """A report of an evaluation. title: what was evaluated. facts: what the figures depend on, by name."""

    title: str
    facts: Mapping[str, str]
    runs: Sequence[Run]
    histograms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sheets: Sequence[Sheet] = ()
    setting_name: str = "setting"

    def names(self) -> list[str]:
        """Names of all figures, in order."""
        return list(dict.fromkeys(name for run in self.runs for name in run.figures.estimates))

    def refused(self) -> list[str]:
        """Why figures are not given."""
        return list(dict.fromkeys(why for run in self.runs for why in run.figures.refused.values()))


def as_json(report: Report) -> dict[str, Any]:
    """Everything but the pictures."""
    runs = [
        {
            "label": run.label,
            "setting": run.setting,
            "pictures": run.pictures,
            "figures": {name: asdict(estimate) for name, estimate in run.figures.estimates.items()},
            "refused": run.figures.refused,
        }
        for run in report.runs
    ]
    return {"title": report.title, **report.facts, "runs": runs}


def as_text(report: Report) -> str:
    """A line for each figure, with its 95 % interval in brackets."""
    lines = [report.title, *(f"{name}: {value}" for name, value in report.facts.items())]
    for run in report.runs:
        lines += ["", f"{run.label}, {run.pictures:,} pictures"]
        lines += [f"  {name:<26}{estimate}" for name, estimate in run.figures.estimates.items()]
    return "\n".join([*lines, *(f"not given: {why}" for why in report.refused())])


def plots(report: Report) -> Iterator[tuple[str, Drawing]]:
    """Titles and plots: distance against fit and against the setting, precision and recall, histograms."""
    runs = [run for run in report.runs if run.setting is not None]
    names = report.names()

    def points(x: str | None, y: str, ends: bool = False) -> list[Point]:
        made = []
        for run in runs:
            estimate = run.figures.estimates[y]
            at = run.setting if x is None else run.figures.estimates[x].value
            low, high = (estimate.low, estimate.high) if ends else (None, None)
            made.append(Point(at or 0.0, estimate.value, "" if x is None else f"{run.setting:g}", low, high))
        return made

    distance = next((name for name in ("frechet_distance", "kid") if name in names), None)
    if len(runs) > 1 and distance:
        if "clip_score" in names:
            yield (
                f"{distance} and clip_score",
                scatter(points("clip_score", distance), "clip_score", distance),
            )
        yield (
            f"{distance} over {report.setting_name}",
            scatter(points(None, distance, True), report.setting_name, distance),
        )
    if len(runs) > 1 and "precision" in names:
        yield "precision and recall", scatter(points("recall", "precision"), "recall", "precision")
    for name, values in report.histograms.items():
        yield "", histogram(values, name)


def thumbnail(path: Path) -> str:
    """A picture as an HTML image that needs no other file."""
    image = open_picture(path)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/jpeg;base64,{data}" {size} alt="{escape(path.name)}">'


def table(report: Report) -> str:
    """Figures down, runs across; the best of a row in colour."""
    head = "".join(
        f"<th>{escape(run.label)}<br><small>{run.pictures:,} pictures</small></th>" for run in report.runs
    )
    rows = []
    for name in report.names():
        found = [run.figures.estimates.get(name) for run in report.runs]
        values = [estimate.value for estimate in found if estimate]
        best = (min if name in LOWER_IS_BETTER else max)(values) if len(values) > 1 else None
        cells = "".join(
            "<td></td>"
            if estimate is None
            else f"<td{' class=best' if estimate.value == best else ''}>{estimate.value:.4g} "
            f"<small>{estimate.low:.4g} to {estimate.high:.4g}</small></td>"
            for estimate in found
        )
        arrow = "↓" if name in LOWER_IS_BETTER else "↑"
        rows.append(f"<tr><th>{escape(name)} {arrow}</th>{cells}</tr>")
    return f'<div class="table"><table><tr><td></td>{head}</tr>{"".join(rows)}</table></div>'


def as_html(report: Report) -> str:
    """A page in one file."""
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in report.facts.items()
    )
    parts = [f"<h1>{escape(report.title)}</h1><dl>{facts}</dl><h2>Figures</h2>", table(report)]
    note = "Small: the 95 % interval of what infinitely many pictures would give, corrected for their number."
    parts += [
        f"<p><small>{note}</small></p>",
        *(f"<p>Not given: {escape(why)}</p>" for why in report.refused()),
    ]
    drawn = [
        f"<figure>{plot.svg()}<figcaption>{escape(title)}</figcaption></figure>"
        for title, plot in plots(report)
    ]
    if drawn:
        parts.append(f'<h2>Plots</h2><div class="plots">{"".join(drawn)}</div>')
    for sheet in report.sheets:
        tiles = "".join(
            f"<figure>{''.join(map(thumbnail, paths))}<figcaption>{escape(line)}</figcaption></figure>"
            for line, paths in sheet.rows
        )
        parts.append(f'<h2>{escape(sheet.title)}</h2><div class="sheet">{tiles}</div>')
    colours = ";".join(f"--{name}:{value}" for name, value in COLOURS.items())
    style = f":root{{{colours}}}\n{files('inkwash.metrics').joinpath('report.css').read_text('utf-8')}"
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return f"{head}<title>{escape(report.title)}</title><style>{style}</style>{''.join(parts)}</html>\n"
