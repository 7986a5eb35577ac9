"""Evaluation of `mini`'s variants: how closely each follows its conditions, measured on held-out pictures.

N pictures, B batch, S their side, H W latent size.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from torch import Tensor

from inkwash.metrics.fidelity import psnr
from inkwash.metrics.frechet import frechet_distance
from inkwash.models.perceptual import PerceptualDistance
from inkwash.pipeline.api import Pipeline
from inkwash.pipeline.images import to_images
from inkwash.pipeline.model import Model
from inkwash.prompts.attention import escape
from inkwash.training import masks
from recipes.mini.classifier import Judge
from recipes.mini.drawing import (
    NUM_PICTURES,
    SHOWN,
    drawn,
    heldout,
    mean,
    objects,
    overlap,
    places,
    save_sheet,
)
from recipes.mini.evaluate import CFG_SCALE, SAMPLER, STEPS, pixels_of
from recipes.mini.labels import Labels, caption_alone
from recipes.mini.parts import common_names
from recipes.mini.scenes import PLAIN
from recipes.mini.tasks import Beside
from recipes.mini.variants import near, noised, painted, shrunk

LEVEL = 20  # of noise on the small pictures, as Stable Diffusion's x4 upscaler defaults to
MARGIN, PADDING = 6, 12  # pixels between an object and its mask's edge, and from there on that are seen


# ---------------------------------------------------------------- what is asked for


def slugs(labels: Labels) -> dict[int, str]:
    """Names that the judge knows, by drawing."""
    return {
        d["index"]: d["slug"] for d in json.loads((labels.data / "drawings.json").read_text()) if d["common"]
    }


def objects_apart(labels: Labels) -> list[tuple[int, dict]]:
    """Scenes and an object of each that the judge knows and that touches no other, at least 32 pixels large."""
    known, found = slugs(labels), []
    for i, record in enumerate(labels.records):
        some = [o for o in labels.apart(i) if o["drawing"] in known and record["kind"] == "scene"]
        large = [o for o in some if min(o["box"][2] - o["box"][0], o["box"][3] - o["box"][1]) >= 32]
        found += [(i, large[0])] if large else []
    return found[:NUM_PICTURES]


def close_ups(pixels: Tensor, boxes: Sequence[Sequence[int]], side: int = 128) -> Tensor:
    """Crops of the boxes, (N, 3, side, side), with the margin that drawings have in their own pictures."""
    cuts = []
    for picture, (x0, y0, x1, y1) in zip(pixels, boxes, strict=True):
        half = max(x1 - x0, y1 - y0) * 128 / 112 / 2
        centre = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2]) * 2 / picture.shape[2] - 1
        theta = torch.cat([torch.eye(2) * 2 * half / picture.shape[2], centre[:, None]], dim=1)
        grid = F.affine_grid(theta[None], [1, 3, side, side], align_corners=False)
        cuts.append(F.grid_sample(picture[None].cpu(), grid, padding_mode="border", align_corners=False))
    return torch.cat(cuts)


@torch.inference_mode()
def recognised(judge: Judge, pixels: Tensor, names: Sequence[int]) -> dict[str, float]:
    """Rates at which the judge gives the name, first or among five, to pictures (N, 3, S, S)."""
    logits = torch.cat([judge(chunk)[0] for chunk in pixels.split(64)])
    wanted = torch.tensor(names)[:, None]
    top5 = logits.topk(5, dim=1).indices
    return {"name_top1": mean(top5[:, :1] == wanted), "name_top5": mean((top5 == wanted).any(1))}


@torch.inference_mode()
def distance(judge: Judge, made: Tensor, wanted: Tensor) -> float:
    """The Fréchet distance of pictures (N, 3, S, S)."""
    both = (torch.cat([judge.embed(c) for c in x.split(64)]) for x in (made, wanted))
    return round(frechet_distance(*both), 3)


# ---------------------------------------------------------------- each variant


def inpainting(model: Pipeline, base: Model, labels: Labels, judge: Judge, sheet: Path) -> dict:
    """Two protocols, each by the variant and by `keep_known` with the base, of the same captions, masks and seeds.

    object: a box around one object of a scene, drawn with its surroundings alone, and its own caption; how many the
    judge knows again, also of the real ones. scene: masks of three shapes, and the scene's caption. Rows of the sheet:
    holes, base, variant, real ones.
    """
    side, rng = labels.pictures.images.shape[1], torch.Generator().manual_seed(0)
    chosen, scenes = objects_apart(labels), heldout(labels, kind="scene")
    boxes = [one["box"] for _, one in chosen]
    grown = [(x0 - MARGIN, y0 - MARGIN, x1 + MARGIN, y1 + MARGIN) for x0, y0, x1, y1 in boxes]
    protocols = {
        "object": (
            torch.tensor([i for i, _ in chosen]),
            [masks.boxed(box, side) for box in grown],
            [caption_alone(one) for _, one in chosen],
        ),
        "scene": (
            scenes,
            [masks.SHAPES[k % 3](side, rng) for k in range(len(scenes))],
            [labels.records[i]["caption"] for i in scenes.tolist()],
        ),
    }
    figures: dict[str, dict] = {}
    for protocol, (rows, holes, captions) in protocols.items():
        pixels, mask = labels.pixels(rows), torch.stack(holes)[:, None].float()
        alone, models = protocol == "object", {"base": base, "variant": model}
        made = {who: filled(each, pixels, mask, captions, alone) for who, each in models.items()}
        for who, pictures in made.items():
            figures[f"{protocol}, {who}"] = {
                "psnr_in_mask": mean(psnr_within(pictures, pixels, mask)),
                "perceptual_distance": mean(perceptual(judge, pictures, pixels)),
                "frechet_distance": distance(judge, pictures, pixels),
            }
        if alone:
            names = named(labels, [one for _, one in chosen])
            for who, pictures in (made | {"real": pixels}).items():
                figures.setdefault(f"object, {who}", {}).update(
                    recognised(judge, close_ups(pictures, boxes), names)
                )
            save_sheet([pixels * (1 - mask), *made.values(), pixels], sheet)
    return figures


def filled(
    model: Pipeline, pixels: Tensor, mask: Tensor, captions: Sequence[str], only_masked: bool
) -> Tensor:
    """The pictures with what the model draws in the masks, through the pipeline that everyone uses."""
    options: Any = {
        "steps": STEPS,
        "cfg_scale": CFG_SCALE,
        "sampler": SAMPLER,
        "strength": 1.0,
        "mask_blur": 0.0,
    }
    options |= {"only_masked": only_masked, "padding": PADDING}
    holes = [Image.fromarray(hole.numpy()) for hole in (mask[:, 0] * 255).byte()]
    given = list(zip(captions, to_images(pixels), holes, strict=True))
    made = []
    for k, (text, image, hole) in track(list(enumerate(given)), f"{len(captions)} holes by {model.name}"):
        made += model.inpaint(escape(text), image, hole, seed=k, **options)
    return pixels_of(made)


def psnr_within(made: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """PSNR (N,) in dB of the pixels where the mask is 1."""
    share = mask.mean(dim=(1, 2, 3)).double().clamp_min(1e-6)
    return psnr(made, wanted) + 10 * share.log10()


def upscaler(model: Model, base: Model, labels: Labels, judge: Judge, sheet: Path) -> dict:
    """Held-out pictures from 1/f of their sides, against bicubic enlargement. Rows: small, bicubic, variant, real."""
    rows = heldout(labels)
    pixels, small = labels.pixels(rows), shrunk(labels, rows)
    noise = torch.randn(small.shape, generator=torch.Generator().manual_seed(0))
    level = torch.full((len(rows),), LEVEL)
    seen = Beside(noised(small, level, noise), level)
    made = {
        "bicubic": F.interpolate(small, size=pixels.shape[2:], mode="bicubic").clamp(-1, 1),
        "variant": drawn(model, [labels.records[i]["caption"] for i in rows.tolist()], seen, cfg_scale=1.0),
    }
    save_sheet([F.interpolate(small, size=pixels.shape[2:]), *made.values(), pixels], sheet)
    return {
        who: {
            "psnr": mean(psnr(pictures, pixels)),
            "perceptual_distance": mean(perceptual(judge, pictures, pixels)),
            "frechet_distance": distance(judge, pictures, pixels),
        }
        for who, pictures in made.items()
    }


def depth(model: Model, base: Model, labels: Labels, judge: Judge, sheet: Path) -> dict:
    """Places of objects in scenes of held-out captions and depths, before plain backgrounds, by intersection over
    union with the true places. Rows of the sheet: depth, base, which sees the caption alone, variant, real ones."""
    plain = [i for i, r in enumerate(labels.records) if r["kind"] == "scene" and PLAIN in r["caption"]]
    rows = torch.tensor(plain[:NUM_PICTURES])
    pixels, maps = labels.pixels(rows), near(labels, rows)
    true = places(labels, rows)
    captions = [labels.records[i]["caption"] for i in rows.tolist()]
    made = {
        "base": drawn(base, captions, Beside()),
        "variant": drawn(model, captions, Beside(maps)),
        "real": pixels,
    }
    save_sheet([F.interpolate(maps, size=pixels.shape[2:]).expand_as(pixels), *made.values()], sheet)
    return {who: {"iou": mean(overlap(objects(x), true))} for who, x in made.items()}


def classes(model: Model, base: Model, labels: Labels, judge: Judge, sheet: Path) -> dict:
    """The judge's recognition of classes drawn by number alone. Rows of the sheet: the variant's pictures."""
    num = len(common_names(labels.data))
    numbers = torch.randperm(num, generator=torch.Generator().manual_seed(0))[:NUM_PICTURES]
    none = Beside(vector=torch.full_like(numbers, num))
    made = drawn(model, [""] * len(numbers), Beside(vector=numbers), none)
    save_sheet([made, made[SHOWN:]], sheet)
    return {"variant": recognised(judge, made, numbers.tolist())}


def layout(model: Model, base: Model, labels: Labels, judge: Judge, sheet: Path) -> dict:
    """Measure how well pictures follow held-out layouts: the intersection over union of drawn and true places, in scenes
    before plain backgrounds; and the judge's recognition of the object in one box of each. The variant sees no caption,
    the base the caption alone. Rows of the sheet: base, variant, real ones."""
    chosen = objects_apart(labels)
    rows, boxes = torch.tensor([i for i, _ in chosen]), [one["box"] for _, one in chosen]
    size = model.default_size // model.autoencoder.config.factor
    seen = torch.stack([painted(labels.records[i]["objects"], labels, size) for i in rows.tolist()])
    pixels, captions = labels.pixels(rows), [labels.records[i]["caption"] for i in rows.tolist()]
    nothing = Beside(torch.zeros_like(seen))
    made = {
        "base": drawn(base, captions, Beside()),
        "variant": drawn(model, [""] * len(rows), Beside(seen), nothing),
        "real": pixels,
    }
    save_sheet(list(made.values()), sheet)
    names = named(labels, [one for _, one in chosen])
    plain = [k for k, caption in enumerate(captions) if PLAIN in caption]
    true = places(labels, rows[plain])
    return {
        who: {"iou": mean(overlap(objects(x[plain]), true))} | recognised(judge, close_ups(x, boxes), names)
        for who, x in made.items()
    }


MEASURES = {
    "inpainting": inpainting,
    "upscaler": upscaler,
    "depth": depth,
    "class": classes,
    "layout": layout,
}


# ---------------------------------------------------------------- measures


def perceptual(judge: Judge, made: Tensor, wanted: Tensor) -> Tensor:
    """Distance (N,) over the judge's features."""
    measure = PerceptualDistance(judge.features)
    return torch.cat([measure(a, b).detach() for a, b in zip(made.split(32), wanted.split(32), strict=True)])


def named(labels: Labels, objects: Sequence[dict]) -> list[int]:
    """The judge's numbers of the objects' names."""
    known, index = slugs(labels), {name: k for k, name in enumerate(common_names(labels.data))}
    return [index[known[one["drawing"]]] for one in objects]
