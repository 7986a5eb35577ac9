"""Commands of what is made from `mini` in minutes on one GPU: its few-step student and its kin."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from inkwash.files import atomic
from inkwash.pipeline.model import Model
from inkwash.pipeline.prior import SCHEDULE, open_prior
from recipes.mini import align as steps_of
from recipes.mini import cascade as imagen
from recipes.mini import evaluate as measures
from recipes.mini import ip_adapter as seer
from recipes.mini import parts
from recipes.mini import prior as unclip
from recipes.mini import turbo as few
from recipes.mini import vision as eyes
from recipes.mini.drawing import drawn
from recipes.mini.fast import Captioned, lasting, on_device, teach
from recipes.mini.parts import open_base
from recipes.mini.pictures import load_pictures
from recipes.mini.recipe import BUILD, SHIPPED
from recipes.mini.tasks import Beside, CLIPPair


def turbo(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    minutes: float = math.inf,
    steps: int | None = None,
    batch: int = few.BATCH,
    lr: float | None = None,
    refresh: int = 8,
    teacher_steps: int = measures.STEPS,
    kept: int = few.WAYS,
    cfg_scale: float = measures.CFG_SCALE,
    device: str = "cpu",
    compile: bool = False,
) -> None:
    """Teach the U-Net of `start` to draw in four steps without guidance, and write it beside that, as `start`-turbo.

    refresh: the student's steps between two batches of the teacher's ways, of which as many as `kept` are remembered.
    teacher_steps, cfg_scale: of the teacher's ways.
    """
    model = open_base(start, device)
    data = Captioned(parts.load_latents(build), model.device)
    ways = few.make_ways(model, data, cfg_scale, batch, compile, teacher_steps, kept)
    config = lasting(few.TRAINING, steps, lr)
    teach(ways.student, ways.lessons(refresh), config, build / few.NAME, minutes, {"ways": ways})
    few.write(ways, model, start)


def evaluate_turbo(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    cfg_scale: float = measures.CFG_SCALE,
    sheet: Path = Path("docs/pictures/turbo.png"),
    device: str = "cpu",
    judged_by: parts.JudgeName = "judge",
) -> None:
    """Measure `start`-turbo at 1, 2, 4 and 8 steps beside `start` at 20, and draw both; cfg_scale is `start`'s."""
    base, model = (open_base(path, device) for path in (start, start.with_name(f"{start.name}-{few.NAME}")))
    judge, data = parts.load_judge(build, judged_by), build / "data"
    with atomic(sheet) as path:
        few.sheet(model, base, cfg_scale).save(path)
    figures = few.figures(model, base, judge, parts.common_names(data), data, cfg_scale)
    measures.report(build / few.NAME / parts.figures_name(judged_by), figures)


def vision(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    minutes: float = math.inf,
    steps: int | None = None,
    batch: int = eyes.BATCH,
    device: str = "cpu",
) -> None:
    """Train a vision tower for `start`'s text encoder, which stays as it is, and measure both on held-out pictures."""
    model = open_base(start, device)
    pair, folder = eyes.make_pair(model), build / eyes.NAME
    data = Captioned(parts.load_latents(build), model.device)
    pictures = eyes.seen_pictures(build, pair, model.device)
    ends = eyes.ends_of(model.text_encoders[0].tokenizer, pictures.records)
    pooled = eyes.pooled_of(data.contexts, ends)
    loss = partial(eyes.loss, pair, data, pictures, pooled, batch)
    teach(pair, lambda step: loss(), lasting(eyes.TRAINING, steps), folder, minutes)
    figures = eyes.figures(pair, model, build)
    measures.report(folder / "figures.json", figures)


def prior(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    minutes: float = math.inf,
    steps: int | None = None,
    batch: int = unclip.BATCH,
    device: str = "cpu",
) -> None:
    """Train a prior from text to the vectors of pictures that the tower of `vision` gives, and write it into `build`."""
    model, folder = open_base(start, device), build / "prior"
    data, pair, what = world_of(model, build)
    network, schedule = unclip.make_prior(what), on_device(SCHEDULE, model.device)
    loss = partial(unclip.prior_loss, network, data, what, schedule, batch)
    teach(network, lambda step: loss(), lasting(unclip.PRIOR, steps), folder / "text", minutes)
    unclip.write_text_prior(network, pair, model.text_encoders[0].tokenizer, folder / "model")


def ip_adapter(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    out: Path = seer.OUT,
    minutes: float = math.inf,
    steps: int | None = None,
    batch: int = seer.BATCH,
    device: str = "cpu",
) -> None:
    """Train an IP-Adapter for `start`, which sees by the tower of `vision`, and write both as the folder `out`."""
    model = open_base(start, device)
    data, pair, what = world_of(model, build)
    config, schedule = lasting(seer.TRAINING, steps), on_device(model.schedule, model.device)
    student = seer.Student(model, seer.make(model, data, what), data.contexts[0].float())
    loss = partial(seer.loss, student, data, what, schedule, model.prediction, batch)
    folder = build / "ip-adapter"
    teach(student.adapter, lambda step: loss(1 - step / config.num_steps), config, folder, minutes)
    seer.write(student.adapter, pair.vision, what, out)


def world_of(model: Model, build: Path) -> tuple[Captioned, CLIPPair, unclip.Seen]:
    """The cached latents, the pair of towers, and what these see of the pictures and captions."""
    data, pair = Captioned(parts.load_latents(build), model.device), eyes.load_pair(model, build)
    return data, pair, unclip.seen(build, pair, model.text_encoders[0].tokenizer, data)


def evaluate_prior(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    out: Path = seer.OUT,
    sheet: Path = Path("docs/pictures/prior.png"),
    device: str = "cpu",
    dtype: str = "fp32",
    pictures: int | None = None,
    judged_by: parts.JudgeName = "judge",
) -> None:
    """Measure pictures of the prior and the IP-Adapter beside those of `start`, and variations of these, and draw all.

    pictures: of the fixed prompts so many; by default all.
    """
    decoder = seer.Decoder(open_base(start, device, dtype), out)
    text_prior, data = open_prior(build / "prior/model", device), build / "data"
    with atomic(sheet) as path:
        seer.sheet(text_prior, decoder, few.COLUMNS).quantize(256).save(path, optimize=True)
    judge = parts.load_judge(build, judged_by)
    found = seer.figures(text_prior, decoder, judge, parts.common_names(data), data, pictures)
    measures.report(build / "prior" / parts.figures_name(judged_by), found)


def align(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    steps: int = 10,
    pictures: int = steps_of.PICTURES,
    levels: int = steps_of.NUM_LEVELS,
    cfg_scale: float = measures.CFG_SCALE,
    device: str = "cpu",
    judged_by: parts.JudgeName = "judge",
) -> None:
    """Find the noise levels, of so many on a grid, that suit `start` best, and measure them beside the other schedules."""
    model, data = open_base(start, device), build / "data"
    captioned = Captioned(parts.load_latents(build), model.device)
    sigmas, changed = steps_of.changes(model, captioned, pictures, levels)
    best = steps_of.aligned(sigmas, steps_of.costs(sigmas, changed), steps)
    found = steps_of.timesteps(model, best)
    print(json.dumps({"timesteps": list(found), "sigmas": [round(float(s), 4) for s in best]}), flush=True)
    judge, names = parts.load_judge(build, judged_by), parts.common_names(data)
    ended = torch.cat([model.schedule.sigmas[found], torch.zeros(1, dtype=torch.float64)])
    made = steps_of.figures(model, judge, names, data, ended, cfg_scale)
    measures.report(build / "align" / parts.figures_name(judged_by), {"timesteps": list(found)} | made)


def cascade(
    stage: Literal["small", "large"],
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    minutes: float = math.inf,
    steps: int | None = None,
    batch: int | None = None,
    device: str = "cpu",
) -> None:
    """Train a stage of the cascade: small draws 32 x 32 pixels of text, from `start`, large enlarges them four times."""
    config, num = lasting(imagen.TRAINING[stage], steps), batch or imagen.BATCHES[stage]
    base = open_base(start, device)
    captions = Captioned(parts.load_latents(build), base.device)
    world = imagen.world_of(load_pictures(build / "data", "train"), captions)
    unet, folder = imagen.make(stage, base, world), build / "cascade"
    teach(unet, lambda step: imagen.loss(stage, unet, world, num), config, folder / stage, minutes)
    imagen.save(unet, folder / f"{stage}.safetensors")


def evaluate_cascade(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    sheet: Path = Path("docs/pictures/cascade.png"),
    device: str = "cpu",
    pictures: int | None = None,
    judged_by: parts.JudgeName = "judge",
) -> None:
    """Measure the cascade's pictures beside those of `start`, whose text encoder it reads, and draw both.

    pictures: of the fixed prompts so many; by default all.
    """
    base, folder, data = open_base(start, device), build / "cascade", build / "data"
    small, large = (imagen.load(stage, folder / f"{stage}.safetensors", device) for stage in imagen.CONFIGS)
    with atomic(sheet) as path:
        imagen.sheet((small, large), base, few.COLUMNS).quantize(256).save(path, optimize=True)
    judge, names = parts.load_judge(build, judged_by), parts.common_names(data)
    ways = {
        "cascade": partial(imagen.draw, (small, large), base),
        "first stage, interpolated": partial(imagen.draw, (small, None), base),
        base.name: partial(drawn, base, seen=Beside()),
    }
    made = {name: measures.judged_prompts(judge, names, data, way, pictures) for name, way in ways.items()}
    measures.report(folder / parts.figures_name(judged_by), made)


COMMANDS = (
    turbo,
    evaluate_turbo,
    vision,
    prior,
    ip_adapter,
    evaluate_prior,
    cascade,
    evaluate_cascade,
    align,
)
