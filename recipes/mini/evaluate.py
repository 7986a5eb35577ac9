"""Evaluation of `mini`: the fixed protocol behind its card. N pictures, D feature width."""

import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from inkwash.files import atomic, write_text
from inkwash.metrics.fidelity import psnr
from inkwash.metrics.frechet import frechet_distance
from inkwash.models.autoencoder import FirstStage
from inkwash.pipeline.model import Model
from inkwash.prompts.attention import escape
from recipes.mini.classifier import Judge
from recipes.mini.pictures import Pictures
from recipes.mini.recipe import STYLES
from recipes.mini.tasks import device_of
from recipes.mini.words import noun

NUM_PROMPTS, NUM_PAIRS = 500, 100
STEPS, CFG_SCALE, SAMPLER = 20, 2.0, "euler_ancestral"
# the contact sheet: eleven names in each style, and nine scenes
NAMES = (
    "a taxi",
    "a rocket",
    "a pizza",
    "a red apple",
    "a guitar",
    "an umbrella",
    "a penguin",
    "a sunflower",
    "a ghost",
    "a cactus",
    "a locomotive",
)
SCENES = (
    "a red apple left of a blue book on a green background, noto style",
    "a rocket above a house on a light blue background, twemoji style",
    "a cat right of a deciduous tree on a yellow background, fluent style",
    "a guitar below a star on a purple background, emojione style",
    "a soccer ball in front of an automobile on a white background, fluent flat style",
    "a green heart left of a red heart on a white background, twemoji style",
    "pizza above a teacup without handle on an orange background, noto style",
    "a penguin left of a snowman on a blue background, emojione style",
    "a crown",
)


def sheet_prompts() -> list[str]:
    return [f"{name}, {style} style" for name in NAMES for style in STYLES] + list(SCENES)


@torch.inference_mode()
def reconstruction(model: FirstStage, pictures: Pictures, judge: Judge, batch: int = 32) -> dict[str, float]:
    """Mean PSNR of held-out pictures through the first stage, and the Fréchet distance to them."""
    ratios, before, after = [], [], []
    for rows in track(torch.arange(len(pictures.records)).split(batch), "reconstruction"):
        pixels = pictures.pixels(rows).to(device_of(judge))
        made = model.decode(model.encode(pixels).mean).clamp(-1, 1)
        ratios.append(psnr(made, pixels).cpu())
        before.append(judge.embed(pixels).cpu())
        after.append(judge.embed(made).cpu())
    everything = torch.cat(ratios)
    return {
        "psnr": float(everything.mean()),
        "psnr_without_clipart": float(everything[pictures.captioned].mean()),
        "frechet_distance": frechet_distance(torch.cat(before), torch.cat(after)),
        "pictures": len(everything),
    }


def prompted(data: Path) -> list[dict]:
    """The fixed prompts: drawn from all pairs of a common name and a style, held-out ones among them."""
    drawings = [d for d in json.loads((data / "drawings.json").read_text()) if d["common"]]
    return random.Random(0).sample(sorted(drawings, key=lambda d: d["index"]), NUM_PROMPTS)


def export_pictures(pictures: Pictures, folder: Path) -> int:
    """Write captioned pictures as files, each caption in a text file beside it, as `inkwash evaluate` reads them.

    Clip art is left out, which text never asks for. Returns how many there are.
    """
    rows = pictures.captioned
    for i in track(rows, "pictures"):
        write_text(folder / f"{i:06}.txt", pictures.records[i]["caption"] + "\n")
        with atomic(folder / f"{i:06}.png") as partial:
            Image.fromarray(np.asarray(pictures.images[i])).save(partial)
    return len(rows)


def pixels_of(images: Sequence[Image.Image]) -> Tensor:
    arrays = [torch.from_numpy(np.array(image)) for image in images]
    return torch.stack(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def draw(
    model: Model, prompts: Sequence[str], cfg_scale: float = CFG_SCALE, batch: int = 16, **options: Any
) -> list[Image.Image]:
    """A picture for each prompt through the pipeline that everyone uses, seed k for prompt k. options: of the request."""
    made: list[Image.Image] = []
    for first in track(range(0, len(prompts), batch), f"pictures at cfg_scale {cfg_scale:g}"):
        made += drawn(model, prompts[first : first + batch], seed=first, cfg_scale=cfg_scale, **options)
    return made


def drawn(model: Model, prompts: Sequence[str], **options: Any) -> list[Image.Image]:
    """A batch of pictures by the protocol. options: of the request."""
    # here, so that training and what measures without requests need no pydantic
    from inkwash.pipeline.task_requests import TextToImageRequest
    from inkwash.pipeline.tasks import TASKS

    given = {"steps": STEPS, "cfg_scale": CFG_SCALE, "sampler": SAMPLER, "schedule": "uniform"} | options
    request = TextToImageRequest(prompt=tuple(prompts), batch_size=len(prompts), **given)
    return TASKS["text_to_image"].draw(model, request, {})


@torch.inference_mode()
def recognition(judge: Judge, pixels: Tensor, names: Tensor, styles: Tensor) -> dict[str, float]:
    """Shares of pictures that the judge recognises as what was asked for."""
    logits = [[part.cpu() for part in judge(chunk.to(device_of(judge)))] for chunk in pixels.split(64)]
    by_name, by_style = (torch.cat(parts) for parts in zip(*logits, strict=True))
    top5 = by_name.topk(5, dim=1).indices
    return {
        "name_top1": float((by_name.argmax(1) == names).float().mean()),
        "name_top5": float((top5 == names[:, None]).any(1).float().mean()),
        "style_top1": float((by_style.argmax(1) == styles).float().mean()),
    }


def judged_prompts(
    judge: Judge,
    names: Sequence[str],
    data: Path,
    draw: Callable[[list[str]], Tensor],
    num: int | None = None,
) -> dict[str, float]:
    """Recognition of the fixed prompts by the judge, in pictures drawn of their captions, and the seconds of drawing.

    num: of prompts, the first ones; by default all.
    """
    asked = prompted(data)[:num]
    begun = time.monotonic()
    pixels = draw([f"{noun(drawing['name'])}, {drawing['style']} style" for drawing in asked]).cpu()
    seconds = round(time.monotonic() - begun, 2)
    wanted = torch.tensor([names.index(drawing["slug"]) for drawing in asked])
    styles = torch.tensor([STYLES.index(drawing["style"]) for drawing in asked])
    return recognition(judge, pixels, wanted, styles) | {"seconds": seconds}


@torch.inference_mode()
def text_to_image_figures(
    model: Model, judge: Judge, names: Sequence[str], data: Path, heldout: Pictures, cfg_scale: float
) -> dict[str, float]:
    """Recognition of the fixed prompts, and the Fréchet distance of pictures of held-out captions."""
    asked = prompted(data)
    pixels = pixels_of(draw(model, [caption_of(drawing) for drawing in asked], cfg_scale))
    wanted = torch.tensor([names.index(drawing["slug"]) for drawing in asked])
    styles = torch.tensor([STYLES.index(drawing["style"]) for drawing in asked])
    figures = recognition(judge, pixels, wanted, styles)
    seen = torch.tensor([drawing["split"] == "train" for drawing in asked])
    unseen = recognition(judge, pixels[~seen], wanted[~seen], styles[~seen])
    figures |= {f"heldout_{key}": value for key, value in unseen.items()}
    figures["heldout_pairs"] = int((~seen).sum())

    rows = heldout.captioned.tolist()
    rows = random.Random(0).sample(rows, min(NUM_PROMPTS, len(rows)))
    made = pixels_of(draw(model, [escape(heldout.records[i]["caption"]) for i in rows], cfg_scale))
    features = [
        torch.cat([judge.embed(chunk.to(device_of(judge))).cpu() for chunk in pictures.split(64)])
        for pictures in (made, heldout.pixels(torch.tensor(rows)))
    ]
    return figures | {"frechet_distance": frechet_distance(*features), "frechet_pictures": len(rows)}


@torch.inference_mode()
def pair_figures(
    model: Model, judge: Judge, names: Sequence[str], data: Path, num: int = NUM_PAIRS
) -> dict[str, dict[str, float]]:
    """Recognition of the first fixed prompts drawn two in a picture, side by side: of one prompt that says so, and each in
    a region of its own."""
    asked, side = prompted(data)[: 2 * num], model.default_size
    pairs = list(zip(asked[::2], asked[1::2], strict=True))
    wanted = torch.tensor([[names.index(drawing["slug"]) for drawing in pair] for pair in pairs])
    figures = {}
    for way, options in (("prompt", of_one_prompt), ("regions", of_regions)):
        halves: list[Tensor] = []
        for k in track(range(len(pairs)), f"pairs by {way}"):
            picture = pixels_of(drawn(model, seed=k, width=2 * side, height=side, **options(*pairs[k])))
            halves += picture.split(side, dim=3)
        found = torch.cat([judge(half.to(device_of(judge)))[0].argmax(1).cpu() for half in halves])
        right = found.view(-1, 2) == wanted
        figures[f"pairs by {way}"] = {
            "named": float(right.float().mean()),
            "both_named": float(right.all(1).float().mean()),
            "pictures": len(right),
        }
    return figures


def of_one_prompt(left: dict, right: dict) -> dict[str, Any]:
    """Options of a request for a pair of drawings in the style of the left one, in one prompt."""
    said = f"{noun(left['name'])} left of {noun(right['name'])}, {left['style']} style"
    return {"prompts": [escape(said)]}


def of_regions(left: dict, right: dict) -> dict[str, Any]:
    """Options of a request for a pair of drawings as regions."""
    regions = ((0, 0, 0.5, 1, caption_of(left)), (0.5, 0, 1, 1, caption_of(right)))
    return {"prompts": [""], "regions": regions}


def caption_of(drawing: dict) -> str:
    """The main caption, as the data builder writes it, for a pipeline that knows the prompt language."""
    return escape(f"{noun(drawing['name'])}, {drawing['style']} style")


def save(path: Path, figures: dict) -> None:
    """Write figures as JSON."""
    write_text(path, json.dumps(figures, indent=1) + "\n")


def report(path: Path, figures: dict) -> None:
    """Write figures as JSON, and print them."""
    save(path, figures)
    print(json.dumps(figures, indent=1))


@torch.inference_mode()
def judged(judge: Judge, heldout: Pictures, names: Sequence[str]) -> dict[str, float]:
    """The judge's own recognition of real drawings that no training has seen."""
    rows = heldout.where(kind="single", common=True)
    records = [heldout.records[i] for i in rows]
    wanted = torch.tensor([names.index(r["slug"]) for r in records])
    styles = torch.tensor([STYLES.index(r["style"]) for r in records])
    return recognition(judge, heldout.pixels(rows), wanted, styles) | {"pictures": len(rows)}
