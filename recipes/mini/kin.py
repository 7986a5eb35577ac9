"""Commands of what is made from `mini` in minutes on one GPU: its few-step student and its kin."""

import json
from dataclasses import replace
from pathlib import Path

import inkwash
from inkwash.files import atomic
from recipes.mini import evaluate as measures
from recipes.mini import parts
from recipes.mini import turbo as few
from recipes.mini.fast import Captioned, teach
from recipes.mini.recipe import BUILD, SHIPPED


def turbo(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    minutes: float = few.SHORT.minutes,
    steps: int = few.SHORT.num_steps,
    batch: int = few.SHORT.batch,
    lr: float = few.SHORT.lr,
    refresh: int = 8,
    cfg_scale: float = measures.CFG_SCALE,
    device: str = "cpu",
    compile: bool = False,
) -> None:
    """Teach the U-Net of `start` to draw in four steps without guidance, and write it beside that, as `start`-turbo.

    refresh: the student's steps between two batches of the teacher's ways. cfg_scale: of the teacher.
    """
    config = replace(few.SHORT, minutes=minutes, num_steps=steps, batch=batch, lr=lr)
    model = inkwash.load(start, device, "fp32")
    ways = few.make_ways(model, Captioned(parts.load_latents(build), model.device), cfg_scale, batch, compile)
    few.write(ways, teach(ways.student, ways.lessons(refresh), config, build / few.NAME), model, start)


def evaluate_turbo(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    cfg_scale: float = measures.CFG_SCALE,
    sheet: Path = Path("docs/pictures/turbo.png"),
    device: str = "cpu",
) -> None:
    """Measure `start`-turbo at 1, 2, 4 and 8 steps beside `start` at 20, and draw both; cfg_scale is `start`'s."""
    base, model = (
        inkwash.load(path, device) for path in (start, start.with_name(f"{start.name}-{few.NAME}"))
    )
    judge, data = parts.load_classifier(build, "judge"), build / "data"
    with atomic(sheet) as path:
        few.sheet(model, base, cfg_scale).save(path)
    figures = few.figures(model, base, judge, parts.common_names(data), data, cfg_scale)
    measures.report(build / few.NAME / "figures.json", figures)
    print(json.dumps(figures, indent=1))
