"""Commands of what is made from `mini` in minutes on one GPU: its few-step student and its kin."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from inkwash.files import atomic
from inkwash.nn.blocks import channels_last
from inkwash.pipeline.prior import open_prior
from recipes.mini import align as steps_of
from recipes.mini import evaluate as measures
from recipes.mini import parts
from recipes.mini import prior as unclip
from recipes.mini import turbo as few
from recipes.mini.control import open_base
from recipes.mini.fast import Captioned, teach
from recipes.mini.recipe import BUILD, SHIPPED
from recipes.mini.tasks import CLIPPair


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
    weights = teach(
        network, lambda step: unclip.prior_loss(network, data, what, 2 * batch), config, folder / "text"
    )
    network.load_state_dict(dict(weights))
    unclip.write_text_prior(network, pair, build, folder / "model")
    unet = channels_last(model.unet).requires_grad_(True).train()
    config = replace(unclip.DECODER, minutes=minutes, num_steps=steps, batch=batch)
    loss = partial(unclip.decoder_loss, unet, data, what, model.schedule, model.prediction, batch)
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


COMMANDS = (turbo, evaluate_turbo, prior, evaluate_prior, align)
