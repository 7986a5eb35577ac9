"""The effect of merging on drawings: `mini` and one of its styles tuned into it, along alpha.

`python -m recipes.mini.merging drawings noto/` writes drawings of one style by their names alone, without its name.
`inkwash train text-to-image --data noto --output tuned ...` tunes `mini` on them, so that it draws that style unasked.
`python -m recipes.mini.merging measure tuned/model.safetensors` merges both along alpha, has each merge draw names that no
tuning saw, and measures how near the pictures are to that style and what the outside judge recognises in them.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cyclopts import App
from PIL import Image
from torch import Tensor

from inkwash.explain.drawing import Drawing, write_plots
from inkwash.explain.plots import Point, scatter
from inkwash.explain.tiles import contact_sheet
from inkwash.files import atomic, write_text
from inkwash.merge.expression import Model, merged
from inkwash.merge.grids import opened
from inkwash.metrics.frechet import frechet_distance
from inkwash.metrics.kernel import kid
from inkwash.prompts.attention import escape
from recipes.mini import outside
from recipes.mini.classifier import Judge
from recipes.mini.evaluate import draw, pixels_of, recognition
from recipes.mini.pictures import Pictures, common_drawings, load_pictures
from recipes.mini.recipe import STYLES
from recipes.mini.words import noun

BUILD = Path("build/mini")
DRAWN = 200  # names that are drawn, which no tuning sees
ROWS = 6  # of the sheet
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)

app = App(name="merging", help=__doc__)


class Named(NamedTuple):
    """A drawing's class among the judge's, and its name."""

    number: int
    name: str


def shuffled_names(data: Path) -> list[Named]:
    """The names that all styles have, in a fixed order of no meaning: the first DRAWN are drawn, the others learnt."""
    found = [Named(i, name) for i, name in enumerate(common_drawings(data).values())]
    return random.Random(0).sample(found, len(found))


def rows_of(pictures: Pictures, style: str, names: Sequence[Named]) -> np.ndarray:
    """Positions of the drawings of these names in a style."""
    rows, wanted = pictures.where(kind="single", style=style, common=True), {each.name for each in names}
    return np.array([i for i in rows if pictures.records[i]["name"] in wanted], np.int64)


@app.command
def drawings(folder: Path, *, style: str = "noto", build: Path = BUILD) -> None:
    """Write a style's drawings with captions that do not say the style, and print how many."""
    pictures = load_pictures(build / "data", "train")
    rows = rows_of(pictures, style, shuffled_names(build / "data")[DRAWN:])
    for i in rows:
        record = pictures.records[i]
        write_text(folder / f"{record['slug']}.txt", noun(record["name"]) + "\n")
        with atomic(folder / f"{record['slug']}.png") as partial:
            Image.fromarray(np.asarray(pictures.images[i])).save(partial, "PNG")
    print(len(rows))


def real_drawings(data: Path, style: str, names: Sequence[Named]) -> tuple[Tensor, Tensor]:
    """The real drawings (N, 3, S, S) of these names in a style, whichever split they are in, and their classes (N,)."""
    numbers, pixels, classes = {each.name: each.number for each in names}, [], []
    for pictures in (load_pictures(data, split) for split in ("train", "heldout")):
        rows = rows_of(pictures, style, names)
        pixels.append(pictures.pixels(rows))
        classes += [numbers[pictures.records[i]["name"]] for i in rows]
    return torch.cat(pixels), torch.tensor(classes)


@torch.inference_mode()
def embedded(judge: Judge, pixels: Tensor) -> Tensor:
    return torch.cat([judge.embed(some) for some in pixels.split(32)])


def recognised(judge: Judge, pixels: Tensor, numbers: Tensor, style: str) -> dict[str, float]:
    """The shares of pictures whose name (N,) and whose style the judge recognises."""
    seen = recognition(judge, pixels, numbers, torch.full_like(numbers, STYLES.index(style)))
    return {"name": seen["name_top1"], "style": seen["style_top1"]}


def distances(judge: Judge, pixels: Tensor, real: Tensor) -> dict[str, Any]:
    """Both distances of pictures to real ones' features (M, D)."""
    features = embedded(judge, pixels)
    kernel = kid(features, real)
    return {
        "frechet_distance": frechet_distance(features, real),
        "kid": kernel.value,
        "kid_interval": [kernel.low, kernel.high],
    }


@app.command
def measure(
    tuned: Path,
    *,
    model: str = "mini",
    style: str = "noto",
    pictures: int = DRAWN,
    steps: int = 20,
    dtype: str = "bf16",
    method: str = "weighted_sum",
    build: Path = BUILD,
    figures: Path = Path("benchmarks/results/merge-alpha.json"),
    sheet: Path = Path("docs/pictures/merge-alpha.png"),
    plot: Path = Path("docs/pictures/merge-alpha.svg"),
) -> None:
    """Draw and measure along alpha; write the figures, their plot, and a sheet of the first names."""
    names = shuffled_names(build / "data")
    judge = outside.load(build, len(names))
    some, first, second = names[: min(pictures, DRAWN)], Model.open(model), Model.open(tuned)
    numbers = torch.tensor([each.number for each in some])
    real, classes = real_drawings(build / "data", style, some)
    wanted, found, columns = embedded(judge, real), [], []
    for alpha in ALPHAS:
        made = opened(merged(method, first, second, alpha=alpha), first.source.metadata, dtype)
        images = draw(made, [escape(noun(each.name)) for each in some], steps=steps)
        pixels = pixels_of(images)
        found.append(
            {"alpha": alpha} | recognised(judge, pixels, numbers, style) | distances(judge, pixels, wanted)
        )
        columns.append(images[:ROWS])
        print(json.dumps(found[-1]), flush=True)
    said = {"method": method, "style": style, "pictures": len(some), "steps": steps, "dtype": dtype}
    of_real = recognised(judge, real, classes, style) | {"pictures": len(real)}
    write_text(figures, json.dumps(said | {"real": of_real, "along_alpha": found}, indent=1) + "\n")
    with atomic(sheet) as partial:
        contact_sheet([column[row] for row in range(ROWS) for column in columns], len(ALPHAS)).save(
            partial, "PNG"
        )
    write_plots(plots(found), plot)
    print(table(found, of_real))


def plots(found: Sequence[dict[str, Any]]) -> list[Drawing]:
    """Both distances and both shares over alpha."""

    def over(name: str, title: str) -> Drawing:
        ends = [each.get(f"{name}_interval", (None, None)) for each in found]
        points = [Point(each["alpha"], each[name], "", *end) for each, end in zip(found, ends, strict=True)]
        return scatter(points, "alpha", title)

    return [
        over("frechet_distance", "Fréchet distance to the style"),
        over("kid", "kernel distance to the style"),
        over("style", "style recognised"),
        over("name", "name recognised"),
    ]


def table(found: Sequence[dict[str, Any]], real: dict[str, float]) -> str:
    """The table in Markdown, with the judge's shares of the real drawings in the last row."""
    lines = ["| alpha | name | style | Fréchet distance | kernel distance |", "|---|---|---|---|---|"]
    for each in found:
        low, high = each["kid_interval"]
        lines.append(
            f"| {each['alpha']:g} | {each['name']:.1%} | {each['style']:.1%} | {each['frechet_distance']:.1f} "
            f"| {each['kid']:.4f} ({low:.4f} to {high:.4f}) |"
        )
    return "\n".join([*lines, f"| real drawings | {real['name']:.1%} | {real['style']:.1%} | | |"])


if __name__ == "__main__":
    app()
