"""Commands of what is made from `mini` in minutes on one GPU: its few-step student and its kin."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from inkwash.files import atomic
from inkwash.nn.blocks import channels_last
from inkwash.pipeline.prior import SCHEDULE, open_prior
from recipes.mini import align as steps_of
from recipes.mini import cascade as imagen
from recipes.mini import evaluate as measures
from recipes.mini import parts
from recipes.mini import prior as unclip
from recipes.mini import turbo as few
from recipes.mini.drawing import drawn
from recipes.mini.fast import Captioned, on_device, teach
from recipes.mini.parts import open_base
from recipes.mini.pictures import load_pictures
from recipes.mini.recipe import BUILD, SHIPPED
from recipes.mini.tasks import Beside, CLIPPair


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
    model = open_base(start, device)
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
    base, model = (open_base(path, device) for path in (start, start.with_name(f"{start.name}-{few.NAME}")))
    judge, data = parts.load_classifier(build, "judge"), build / "data"
    with atomic(sheet) as path:
        few.sheet(model, base, cfg_scale).save(path)
    figures = few.figures(model, base, judge, parts.common_names(data), data, cfg_scale)
    measures.report(build / few.NAME / "figures.json", figures)
    print(json.dumps(figures, indent=1))


@torch.no_grad()
def load_pair(build: Path, device: torch.device) -> CLIPPair:
    """`mini`'s text and vision towers, as they were trained together."""
    pair = parts.make_clip(parts.load_text_encoder(build)[1])
    parts.load_average(pair, build / "clip" / "state.safetensors", "clip")
    return pair.to(device)


def prior(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    minutes: float = unclip.PRIOR.minutes,
    steps: int = unclip.PRIOR.num_steps,
    batch: int = unclip.DECODER.batch,
    device: str = "cpu",
) -> None:
    """Train a prior from text to pictures' vectors, and from `start`'s U-Net a decoder of them; each takes the minutes.

    They are written into `build` as prior/model and prior/decoder, which `inkwash vary` draws with.
    """
    model, folder = open_base(start, device), build / "prior"
    data, pair = Captioned(parts.load_latents(build), model.device), load_pair(build, model.device)
    what = unclip.seen(build, pair, data)
    network = unclip.make_prior(what)
    config = replace(unclip.PRIOR, minutes=minutes, num_steps=steps, batch=2 * batch)
    own, schedule = (on_device(each, model.device) for each in (SCHEDULE, model.schedule))
    of_text = partial(unclip.prior_loss, network, data, what, own, config.batch)
    weights = teach(network, lambda step: of_text(), config, folder / "text")
    network.load_state_dict(dict(weights))
    unclip.write_text_prior(network, pair, build, folder / "model")
    unet = channels_last(model.unet).requires_grad_(True).train()
    config = replace(unclip.DECODER, minutes=minutes, num_steps=steps, batch=batch)
    loss = partial(unclip.decoder_loss, unet, data, what, schedule, model.prediction, batch)
    unet.load_state_dict(dict(teach(unet, lambda step: loss(), config, folder / "pictures")))
    unclip.write_decoder(unet, pair.vision, what.scale, start, folder / "decoder")


def evaluate_prior(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    sheet: Path = Path("docs/pictures/prior.png"),
    device: str = "cpu",
) -> None:
    """Measure pictures of prior and decoder beside those of `start`, and draw both, with variations."""
    base, decoder = (open_base(path, device) for path in (start, build / "prior/decoder"))
    text_prior, data = open_prior(build / "prior/model", device), build / "data"
    with atomic(sheet) as path:
        unclip.sheet(text_prior, decoder, base, few.COLUMNS).save(path)
    judge = parts.load_classifier(build, "judge")
    made = unclip.figures(text_prior, decoder, base, judge, parts.common_names(data), data)
    measures.report(build / "prior" / "figures.json", made)
    print(json.dumps(made, indent=1))


def align(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    steps: int = 10,
    pictures: int = steps_of.PICTURES,
    cfg_scale: float = measures.CFG_SCALE,
    device: str = "cpu",
) -> None:
    """Find the noise levels that suit `start` best in so many steps, and measure them beside the other schedules."""
    model, data = open_base(start, device), build / "data"
    captioned = Captioned(parts.load_latents(build), model.device)
    sigmas, changed = steps_of.changes(model, captioned, pictures)
    best = steps_of.aligned(sigmas, steps_of.costs(sigmas, changed), steps)
    found = steps_of.timesteps(model, best)
    print(json.dumps({"timesteps": list(found), "sigmas": [round(float(s), 4) for s in best]}), flush=True)
    judge, names = parts.load_classifier(build, "judge"), parts.common_names(data)
    levels = torch.cat([model.schedule.sigmas[found], torch.zeros(1, dtype=torch.float64)])
    made = steps_of.figures(model, judge, names, data, levels, cfg_scale)
    measures.report(build / "align" / "figures.json", {"timesteps": list(found)} | made)
    print(json.dumps(made, indent=1))


def cascade(
    stage: Literal["small", "large"],
    *,
    build: Path = BUILD,
    minutes: float = 2.5,
    steps: int = 20_000,
    batch: int | None = None,
    device: str = "cpu",
) -> None:
    """Train a stage of the cascade: small draws 32 x 32 pixels of text, large enlarges them four times."""
    config = imagen.TRAINING[stage]
    config = replace(config, minutes=minutes, num_steps=steps, batch=batch or config.batch)
    captions = Captioned(parts.load_latents(build), torch.device(device))
    world = imagen.world_of(load_pictures(build / "data", "train"), captions)
    unet, folder = imagen.make(stage, torch.device(device)), build / "cascade"
    weights = teach(unet, lambda step: imagen.loss(stage, unet, world, config.batch), config, folder / stage)
    unet.load_state_dict(dict(weights))
    imagen.save(unet, folder / f"{stage}.safetensors")


def evaluate_cascade(
    *,
    build: Path = BUILD,
    start: Path = SHIPPED,
    sheet: Path = Path("docs/pictures/cascade.png"),
    device: str = "cpu",
) -> None:
    """Measure the cascade's pictures beside those of `start`, whose text encoder it reads, and draw both."""
    base, folder, data = open_base(start, device), build / "cascade", build / "data"
    small, large = (imagen.load(stage, folder / f"{stage}.safetensors", device) for stage in imagen.CONFIGS)
    with atomic(sheet) as path:
        imagen.sheet((small, large), base, few.COLUMNS).save(path)
    judge, names = parts.load_classifier(build, "judge"), parts.common_names(data)
    ways = {
        "cascade": partial(imagen.draw, (small, large), base),
        base.name: partial(drawn, base, seen=Beside()),
    }
    made = {name: measures.judged_prompts(judge, names, data, way) for name, way in ways.items()}
    measures.report(folder / "figures.json", made)
    print(json.dumps(made, indent=1))


COMMANDS = (turbo, evaluate_turbo, prior, evaluate_prior, cascade, evaluate_cascade, align)
